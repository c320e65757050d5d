"""Faults: clients that go away, workers that are killed or hang, a server that is told to stop."""

import os
import signal
import socket
import threading
import time
import unittest

import grpc

import testing
from server import BINARY, LAYERS, TINY, Process, Server, request


def endless(placement="attention"):
    return request([1], max_tokens=4000, ignore_eos=True, placement=[placement] * LAYERS)


class ClientGoneTest(unittest.TestCase):
    def test_a_cancelled_stream_frees_its_cache(self):
        with Server(world_size=2) as server:
            for mixer in ["attention", "sliding_window", "gdn", "kda"]:
                stream = server.generation.Generate(endless(mixer))
                next(stream)
                self.assertGreater(server.load().cache_used_bytes, 0)
                stream.cancel()
                load = server.wait_until_idle()
                self.assertEqual((load.num_blocks_held, load.num_slots_held, load.cache_used_bytes), (0, 0, 0))

    def test_a_deadline_ends_the_stream_and_frees_its_cache(self):
        with Server() as server:
            with self.assertRaises(grpc.RpcError) as raised:
                for _ in server.generation.Generate(endless(), timeout=0.3):
                    pass
            self.assertEqual(raised.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
            load = server.wait_until_idle()
            self.assertEqual((load.num_blocks_held, load.num_slots_held), (0, 0))

    def test_a_client_that_never_reads_delays_nobody(self):
        with Server() as server:
            lazy = [server.generation.Generate(request([1], max_tokens=1500, ignore_eos=True)) for _ in range(4)]
            alone = server.complete("She was", max_tokens=40).ids
            self.assertEqual(server.complete("She was", max_tokens=40).ids, alone)
            total = [sum(len(e.chunk.token_ids) for e in stream) for stream in lazy]  # nothing was lost meanwhile
            self.assertEqual(total, [1500] * 4)

    def test_no_message_grows_too_long_for_a_client_that_reads_late(self):
        with Server() as server:
            lazy = server.generation.Generate(request([1], max_tokens=3000, ignore_eos=True, logprobs=20))
            events = [next(lazy)]
            server.wait_until_idle(120)
            events += lazy
            self.assertEqual(sum(len(event.chunk.token_ids) for event in events), 3000)
            self.assertGreater(sum(event.ByteSize() for event in events), 500_000)
            self.assertLess(max(event.ByteSize() for event in events), 70_000)


class WorkerLostTest(unittest.TestCase):
    def lose(self, signal_number, *flags):
        """Signals rank 1 while streams run; returns (statuses, seconds until the last, exit code, stderr)."""
        server = Server(*flags, world_size=2)
        streams = [server.generation.Generate(endless(m)) for m in ["attention", "gdn", "kda"]]
        for stream in streams:
            next(stream)
        victim = server.worker_pids()[1]
        started = time.monotonic()
        os.kill(victim, signal_number)
        errors = []

        def drain(stream):
            try:
                for _ in stream:
                    pass
            except grpc.RpcError as error:
                errors.append(error)
        threads = [threading.Thread(target=drain, args=(stream,)) for stream in streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        seconds = time.monotonic() - started
        code = server.process.wait(30)
        server.stop()
        return errors, seconds, code, "\n".join(server.stderr_lines)

    def test_killed_worker_ends_every_stream_within_five_seconds_and_is_named(self):
        for _ in range(3):
            errors, seconds, code, stderr = self.lose(signal.SIGKILL)
            self.assertEqual([e.code() for e in errors], [grpc.StatusCode.UNAVAILABLE] * 3)
            self.assertLess(seconds, 5)
            self.assertIn("rank 1", stderr)
            self.assertNotEqual(code, 0)
            for error in errors:
                self.assertIn("rank", error.details())

    def test_stopped_worker_misses_the_deadline(self):
        errors, seconds, code, stderr = self.lose(signal.SIGSTOP, "--step-timeout", "2s")
        self.assertEqual([e.code() for e in errors], [grpc.StatusCode.UNAVAILABLE] * 3)
        self.assertLess(seconds, 10)
        self.assertIn("rank", stderr)
        self.assertNotEqual(code, 0)

    def test_no_worker_outlives_a_killed_server(self):
        server = Server(world_size=2)
        workers = server.worker_pids()
        self.assertEqual(len(workers), 2)
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 10
        alive = workers
        while alive and time.monotonic() < deadline:
            alive = [pid for pid in workers if self.runs(pid)]
            time.sleep(0.05)
        self.assertEqual(alive, [])

    @staticmethod
    def runs(pid):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
                return stat.read().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False


    def test_a_worker_that_is_told_to_stop_is_named(self):
        server = Server(world_size=2)
        streams = [server.generation.Generate(endless(mixer)) for mixer in ["attention", "gdn"]]
        for stream in streams:
            next(stream)
        os.kill(server.worker_pids()[0], signal.SIGTERM)
        for stream in streams:
            with self.assertRaises(grpc.RpcError) as raised:
                for _ in stream:
                    pass
            self.assertEqual(raised.exception.code(), grpc.StatusCode.UNAVAILABLE)
            self.assertRegex(raised.exception.details(), "^rank 0 ")
        self.assertEqual(server.process.wait(30), 1)
        server.stop()


class StopTest(unittest.TestCase):
    def test_sigterm_while_the_workers_start(self):
        server = Process([BINARY, "serve", "--model", TINY, "--device", "cpu", "--port", "0", "--admin-port", "0",
                          "--metrics-port", "0", "--health-port", "0"])
        while not server.worker_pids() and server.process.poll() is None:
            time.sleep(0.001)
        self.assertEqual(server.stop(), 0)

    def test_a_second_sigterm_ends_the_streams_without_an_error_in_the_log(self):
        server = Server(world_size=2)
        streams = [server.generation.Generate(endless(mixer)) for mixer in ["attention", "gdn"]]
        for stream in streams:
            next(stream)
        server.process.send_signal(signal.SIGTERM)
        while server.health("switchyard.v1.GenerationService") == "SERVING":
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            with self.assertRaises(grpc.RpcError) as raised:
                for _ in stream:
                    pass
            self.assertEqual((raised.exception.code(), raised.exception.details()),
                             (grpc.StatusCode.UNAVAILABLE, "the server is shutting down"))
        self.assertEqual(server.process.wait(30), 0)
        server.stop()
        self.assertEqual([line for line in server.stderr_lines if " error " in line], [])

    def test_sigterm_before_it_serves(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            command = [BINARY, "coordinator", "--model", TINY, "--workers", f"127.0.0.1:{unused.getsockname()[1]}",
                       "--port", "0", "--admin-port", "0", "--metrics-port", "0", "--health-port", "0"]
            coordinator = Process(command)
            coordinator.address("health on", 60)
            self.assertEqual(coordinator.stop(), 0)
            self.assertIn("told to stop before it served", "\n".join(coordinator.stderr_lines))

    def test_sigterm_finishes_running_streams_and_refuses_new_ones(self):
        server = Server(world_size=2)
        stream = server.generation.Generate(request([1], max_tokens=400, ignore_eos=True))
        tokens = len(next(stream).chunk.token_ids)
        server.process.send_signal(signal.SIGTERM)
        refused = False
        for event in stream:
            tokens += len(event.chunk.token_ids)
            if not refused:
                try:
                    server.complete([1], max_tokens=1, timeout=5)
                except grpc.RpcError as error:
                    refused = error.code() == grpc.StatusCode.UNAVAILABLE
        self.assertTrue(refused)
        self.assertEqual(tokens, 400)
        self.assertEqual(server.process.wait(20), 0)
        server.stop()


if __name__ == "__main__":
    testing.main()
