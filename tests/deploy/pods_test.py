"""The CPU demo's manifests as processes: a group forms, serves, switches, loses members and comes back."""

import os
import pathlib
import re
import signal
import tempfile
import threading
import unittest

import grpc
from switchyard.v1 import admin_pb2 as admin
from switchyard.v1 import admin_pb2_grpc, generation_pb2_grpc

import manifests
import testing
from minikubelet import Cluster, probe
from server import LAYERS, request

BINARY = pathlib.Path("cli/switchyard").resolve()
COORDINATOR, WORKERS = "switchyard-coordinator-0", ["switchyard-worker-0", "switchyard-worker-1"]
GENERATION = "switchyard.v1.GenerationService"


def image_files():
    """What deploy/Dockerfile copies into the demo's image beside the binary."""
    text = pathlib.Path("deploy/Dockerfile").read_text(encoding="utf-8")
    demo = text[text.index("AS cpu-demo"):]
    return {place: pathlib.Path(source).resolve() for source, place in re.findall(r"(?m)^COPY (\S+) (\S+)$", demo)}


class Client:
    """Speaks to whichever coordinator the services name now."""

    def __init__(self, cluster):
        [client] = cluster.endpoints("switchyard")
        [operator] = cluster.endpoints("switchyard-admin")
        self.channels = [grpc.insecure_channel(address) for address in (client, operator)]
        self.generation = generation_pb2_grpc.GenerationServiceStub(self.channels[0])
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channels[1])

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for channel in self.channels:
            channel.close()

    def generate(self, prompt="She was", **fields):
        """(token ids, placement, epoch)"""
        ids = []
        for event in self.generation.Generate(request(prompt, max_tokens=8, **fields), timeout=60):
            ids += event.chunk.token_ids
        return ids, list(event.complete.placement.names), event.complete.epoch

    def presets(self):
        listed = self.admin.ListPresets(admin.ListPresetsRequest(), timeout=60).presets
        return {preset.name: list(preset.placement.names) for preset in listed}

    def set_default(self, preset):
        wanted = admin.SetDefaultPlacementRequest()
        wanted.placement.preset = preset
        return self.admin.SetDefaultPlacement(wanted, timeout=60)


class PodsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(self.folder.cleanup)

    def start(self):
        cluster = Cluster(manifests.load("cpu-demo"), self.folder.name, {"switchyard": BINARY}, image_files())
        self.addCleanup(cluster.__exit__)
        return cluster.__enter__()

    def test_a_group_forms_serves_and_switches(self):
        cluster = self.start()
        self.assertEqual(cluster.endpoints("switchyard"), [], "nobody is sent to a coordinator that is not ready")
        cluster.wait_until_ready()
        self.assertEqual(cluster.pods[COORDINATOR].restarts, 0, cluster.describe())
        with Client(cluster) as client:
            tokens, placement, epoch = client.generate()
            self.assertEqual((len(tokens), placement, epoch), (8, ["attention"] * LAYERS, 1))
            ranks = client.admin.GetServerInfo(admin.GetServerInfoRequest(), timeout=60).ranks
            self.assertEqual([rank.address for rank in ranks], [f"{cluster.pods[name].ip}:9000" for name in WORKERS])

            # The presets are the config map's.
            self.assertEqual(client.presets()["fast"], ["gdn"] * LAYERS)
            self.assertEqual(client.set_default("fast").epoch, 2)
            self.assertEqual(client.generate()[1:], (["gdn"] * LAYERS, 2))

            # An edited config map is read; what the default was set from cannot vanish.
            before = client.presets()
            cluster.update_config_map("switchyard-presets", {"presets.json": '{"presets": {"fast": "gdn", "new": "kda"}}'})
            cluster.wait_for("the new preset", lambda: "new" in client.presets())
            self.assertNotIn("mixed", client.presets())
            self.assertEqual(client.generate(placement="new")[1], ["kda"] * LAYERS)
            log = cluster.pods[COORDINATOR].containers[0].log
            for bad, why in [('{"presets": {"new": "kda"}}', "is gone"), ('{"presets"', "parse error")]:
                kept, seen = client.presets(), log.read_text(encoding="utf-8").count("the presets stay as they were")
                cluster.update_config_map("switchyard-presets", {"presets.json": bad})
                cluster.wait_for("a word about the bad file", lambda: log.read_text(encoding="utf-8").count(
                    "the presets stay as they were") > seen)
                self.assertEqual(client.presets(), kept, bad)
                self.assertIn(why, log.read_text(encoding="utf-8"))
            self.assertIn("mixed", before)
        self.assertEqual(sum(pod.restarts for pod in cluster.pods.values()), 0, cluster.describe())

    def lose(self, cluster, victim):
        """Kills a container's process and waits until the whole group is back, every member with a new process."""
        old = {name: pod.containers[0].process.pid for name, pod in cluster.pods.items()}
        codes = {name: len(pod.containers[0].exit_codes) for name, pod in cluster.pods.items()}
        os.kill(old[victim], signal.SIGKILL)
        cluster.wait_for("the group back", lambda: all(
            pod.ready and pod.containers[0].process.pid != old[name] for name, pod in cluster.pods.items()))
        for name, pod in cluster.pods.items():
            first = pod.containers[0].exit_codes[codes[name]]
            # A lost group is a failure of every member: it shows in the pods' status.
            self.assertEqual(first, -signal.SIGKILL if name == victim else 1, f"{name}\n{cluster.describe()}")

    def test_a_group_comes_back_whoever_is_lost(self):
        cluster = self.start()
        cluster.wait_until_ready()
        with Client(cluster) as client:
            wanted = client.generate()
            client.set_default("fast")
            # A stream that runs ends with UNAVAILABLE, so that its client goes elsewhere.
            stream = client.generation.Generate(request("She was", max_tokens=4000, ignore_eos=True), timeout=120)
            next(stream)
            self.lose(cluster, WORKERS[1])
            with self.assertRaises(grpc.RpcError) as raised:
                for _ in stream:
                    pass
            self.assertEqual(raised.exception.code(), grpc.StatusCode.UNAVAILABLE)
        with Client(cluster) as client:
            self.assertEqual(client.generate(), wanted, "the manifests' default again, in a new life")
        self.lose(cluster, COORDINATOR)
        with Client(cluster) as client:
            self.assertEqual(client.generate(), wanted)

    def test_a_deleted_coordinator_drains_and_its_successor_finds_the_workers(self):
        cluster = self.start()
        cluster.wait_until_ready()
        pod = cluster.pods[COORDINATOR]
        with Client(cluster) as client:
            wanted = client.generate()
            stream = client.generation.Generate(request("She was", max_tokens=3000, ignore_eos=True), timeout=120)
            next(stream)
            codes = []
            deletion = threading.Thread(target=lambda: codes.extend(pod.delete()))
            deletion.start()
            # Not ready is not dead: the drain is over when the stream is.
            health = f"{pod.ip}:8002"
            drained = False
            complete = None
            for event in stream:
                if not drained and not probe(health, GENERATION, 5):
                    drained = True
                    self.assertTrue(probe(health, "", 5), "alive while it drains")
                complete = event.complete
            self.assertTrue(drained)
            self.assertEqual(complete.completion_tokens, 3000)
            deletion.join()
            self.assertEqual(codes, [0])
        # The workers' group was shut down; they wait for the next coordinator.
        workers = [cluster.pods[name].containers[0] for name in WORKERS]
        cluster.wait_for("the workers' end", lambda: all(worker.exit_codes for worker in workers))
        self.assertEqual([worker.exit_codes for worker in workers], [[0], [0]], cluster.describe())
        pod.start()
        cluster.wait_until_ready()
        with Client(cluster) as client:
            self.assertEqual(client.generate(), wanted)

    def test_the_coordinator_waits_for_a_worker_that_comes_late(self):
        cluster = self.start()
        late = cluster.pods[WORKERS[1]]
        late.delete(graceful=False)
        coordinator = cluster.pods[COORDINATOR].containers[0]
        cluster.wait_for("rank 0 ready", lambda: cluster.pods[WORKERS[0]].ready)
        cluster.wait_for("the coordinator alive", lambda: probe(f"{coordinator.pod.ip}:8002", "", 1))
        self.assertFalse(cluster.endpoints("switchyard"))
        late.start()
        cluster.wait_until_ready()
        self.assertEqual((coordinator.restarts, coordinator.exit_codes), (0, []), cluster.describe())


if __name__ == "__main__":
    testing.main()
