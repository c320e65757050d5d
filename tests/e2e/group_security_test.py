"""Workers accept only their coordinator, by token and by certificate."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import unittest

import grpc
from switchyard.v1 import worker_pb2 as worker

import testing
from certificates import Authority, credentials
from server import BINARY, TINY, Process, Server

METHODS = worker.DESCRIPTOR.services_by_name["WorkerService"].methods


def call(channel, method, metadata=()):
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.name == "Execute":
            list(channel.stream_stream(path)(iter([b""]), timeout=20, metadata=metadata))
        else:
            channel.unary_unary(path)(b"", timeout=20, metadata=metadata)
        return grpc.StatusCode.OK
    except grpc.RpcError as error:
        return error.code()


class Worker(Process):
    def __init__(self, *flags):
        super().__init__([BINARY, "worker", "--port", "0", "--health-port", "0", "--device", "cpu", "--threads", "1",
                          *flags])
        self.health_target = self.address("health on", 60)
        self.target = self.address("worker listening on", 60)


class GroupTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.token_file = self.write("group-token", "group-5d20c77e\n")

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
        return path

    def workers(self, count, *flags):
        started = []
        for _ in range(count):
            started.append(Worker(*flags))
            self.addCleanup(started[-1].stop)
        return started

    def coordinate(self, workers, *flags):
        return Server("--workers", ",".join(w.target for w in workers), "--connect-timeout", "5s", *flags,
                      command="coordinator")

    def fails(self, words, workers, *flags):
        with self.assertRaises(RuntimeError) as raised:
            self.coordinate(workers, *flags)
        for word in words:
            self.assertIn(word, str(raised.exception))

    def test_a_worker_refuses_every_call_without_the_token(self):
        [rank] = self.workers(1, "--group-token-file", self.token_file)
        with contextlib.closing(grpc.insecure_channel(rank.target)) as channel:
            for metadata in [(), [("authorization", "Bearer group-5d20c77")]]:
                for method in METHODS:
                    self.assertEqual(call(channel, method, metadata), grpc.StatusCode.UNAUTHENTICATED, method.name)
        self.fails(["rank 0", "authorization"], [rank])
        self.fails(["rank 0", "authorization"], [rank], "--group-token-file", self.write("wrong", "wrong\n"))
        with self.coordinate([rank], "--group-token-file", self.token_file) as server:  # it is still there for its own
            self.assertEqual(len(server.complete([1], max_tokens=5, ignore_eos=True).ids), 5)
        self.assertEqual(rank.process.wait(20), 0)

    def test_mutual_tls_in_the_group(self):
        ours, theirs = Authority(self.folder, "ours"), Authority(self.folder, "theirs")
        cert, key = ours.issue("rank")
        flags = ["--group-tls-cert", cert, "--group-tls-key", key, "--group-tls-ca", ours.cert,
                 "--group-token-file", self.token_file]
        ranks = self.workers(2, *flags)
        other_cert, other_key = theirs.issue("stranger")
        with contextlib.closing(grpc.secure_channel(ranks[0].target, credentials(ours.cert))) as channel:
            self.assertEqual(call(channel, METHODS[0]), grpc.StatusCode.UNAVAILABLE)
        self.fails(["rank 0", "rank 1"], ranks, "--group-token-file", self.token_file)
        self.fails(["rank 0", "rank 1"], ranks, "--group-tls-cert", other_cert, "--group-tls-key", other_key,
                   "--group-tls-ca", ours.cert, "--group-token-file", self.token_file)
        with self.coordinate(ranks, *flags) as server:
            self.assertEqual(len(server.complete([1], max_tokens=5, ignore_eos=True).ids), 5)
            self.assertEqual(server.health("switchyard.v1.WorkerService", ranks[1].health_target), "SERVING")

    def test_a_worker_is_alive_before_it_is_ready(self):
        [rank] = self.workers(1)
        with self.coordinate([rank]) as server:
            self.assertEqual(server.health("", rank.health_target), "SERVING")
            self.assertEqual(server.health("switchyard.v1.WorkerService", rank.health_target), "SERVING")
        [idle] = self.workers(1)
        with Server() as server:
            self.assertEqual(server.health("", idle.health_target), "SERVING")
            self.assertEqual(server.health("switchyard.v1.WorkerService", idle.health_target), "NOT_SERVING")

    def test_bad_files_name_themselves(self):
        for words, flags in [(["/no/file"], ["--group-token-file", "/no/file"]),
                             (["/no/cert"], ["--group-tls-cert", "/no/cert", "--group-tls-key", "/no/key",
                                             "--group-tls-ca", "/no/ca"])]:
            for command in [["worker", "--port", "0", "--device", "cpu"],
                            ["coordinator", "--model", TINY, "--workers", "127.0.0.1:1", "--port", "0", "--admin-port",
                             "0", "--health-port", "0", "--metrics-port", "0", "--connect-timeout", "1s"]]:
                done = subprocess.run([BINARY, *command, *flags], capture_output=True, text=True, timeout=60, check=False)
                self.assertGreater(done.returncode, 0)
                for word in words:
                    self.assertIn(word, done.stderr)


class LocalWorkersTest(unittest.TestCase):
    def test_workers_of_serve_know_their_coordinator(self):
        with Server(world_size=2) as server:
            for rank in server.info().ranks:
                with contextlib.closing(grpc.insecure_channel(rank.address)) as channel:
                    for method in METHODS:
                        self.assertEqual(call(channel, method), grpc.StatusCode.UNAUTHENTICATED, method.name)
            secrets = set()
            for pid in server.worker_pids():
                command = self.read(f"/proc/{pid}/cmdline").decode().split("\0")
                [file] = [flag.split("=", 1)[1] for flag in command if flag.startswith("--group-token-file=")]
                secrets.add(self.read(file.replace("/self/", f"/{pid}/")).decode().strip())
            [secret] = secrets
            self.assertGreaterEqual(len(secret), 32)
            for pid in [server.process.pid, *server.worker_pids()]:
                for place in ["cmdline", "environ"]:
                    self.assertNotIn(secret.encode(), self.read(f"/proc/{pid}/{place}"))
            self.assertEqual(len(server.complete([1], max_tokens=5, ignore_eos=True).ids), 5)
        self.assertNotIn(secret, "\n".join(server.stderr_lines))

    @staticmethod
    def read(path):
        with open(path, "rb") as file:
            return file.read()


if __name__ == "__main__":
    testing.main()
