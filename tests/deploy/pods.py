"""What the tests of running pods have in common."""

import os
import pathlib
import re
import signal
import tempfile
import unittest

import grpc
from switchyard.v1 import admin_pb2 as admin
from switchyard.v1 import admin_pb2_grpc, generation_pb2_grpc

import manifests
from minikubelet import Cluster
from server import request

BINARY = pathlib.Path("cli/switchyard").resolve()
COORDINATOR, WORKERS = "switchyard-coordinator-0", ["switchyard-worker-0", "switchyard-worker-1"]


def image_files():
    """What deploy/Dockerfile copies into the demo's image beside the binary."""
    text = pathlib.Path("deploy/Dockerfile").read_text(encoding="utf-8")
    demo = text[text.index("AS cpu-demo"):]
    return {place: pathlib.Path(source).resolve() for source, place in re.findall(r"(?m)^COPY (\S+) (\S+)$", demo)}


class Client:
    """Speaks to whichever coordinator the services name now."""

    def __init__(self, cluster, client_channel=grpc.insecure_channel, admin_channel=grpc.insecure_channel):
        """The channels are functions of an address."""
        [client] = cluster.endpoints("switchyard")
        [operator] = cluster.endpoints("switchyard-admin")
        self.channels = [client_channel(client), admin_channel(operator)]
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


class PodsTestCase(unittest.TestCase):
    """Starts an overlay's pods, and loses some."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(self.folder.cleanup)

    def start(self, overlay="cpu-demo", **options):
        cluster = Cluster(manifests.load(overlay), pathlib.Path(self.folder.name) / "pods", {"switchyard": BINARY},
                          image_files(), **options)
        self.addCleanup(cluster.__exit__)
        return cluster.__enter__()

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
