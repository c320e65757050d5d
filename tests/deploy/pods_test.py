"""The CPU demo's manifests as processes: a group forms, serves, switches, loses members and comes back."""

import threading

import grpc
from switchyard.v1 import admin_pb2 as admin

import testing
from minikubelet import probe
from pods import COORDINATOR, WORKERS, Client, PodsTestCase
from server import LAYERS, request

GENERATION = "switchyard.v1.GenerationService"


class PodsTest(PodsTestCase):
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
            stream = client.generation.Generate(request("She was", max_tokens=800, ignore_eos=True), timeout=120)
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
            self.assertEqual(complete.completion_tokens, 800)
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
