"""Health as probes see it, and a server that is told to stop: readiness, liveness, drain."""

import os
import signal
import threading
import time
import unittest

import grpc

import testing
from server import LAYERS, Server, request

GENERATION = "switchyard.v1.GenerationService"
ADMIN = "switchyard.v1.AdminService"


def endless():
    return request([1], max_tokens=4000, ignore_eos=True, placement=["gdn"] * LAYERS)


class HealthTest(unittest.TestCase):
    def test_alive_from_the_start_and_ready_once_serving(self):
        server = Server(world_size=2, wait=False)
        try:
            self.assertEqual(server.health(""), "SERVING")
            watch = server.watch_health(GENERATION)
            first = next(watch)
            server.wait_until_ready()
            if first == "NOT_SERVING":  # else the model was loaded before the first answer
                self.assertEqual(next(watch), "SERVING")
            for target in [server.health_target, server.target]:
                self.assertEqual(server.health("", target), "SERVING")
                self.assertEqual(server.health(GENERATION, target), "SERVING")
            for target in [server.health_target, server.admin_target]:
                self.assertEqual(server.health(ADMIN, target), "SERVING")
            with self.assertRaises(grpc.RpcError) as raised:
                server.health("some.other.Service")
            self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)
        finally:
            self.assertEqual(server.stop(), 0)

    def test_the_health_port_serves_nothing_else(self):
        with Server() as server:
            call = server.connect(server.health_target).unary_unary(f"/{ADMIN}/GetServerInfo")
            with self.assertRaises(grpc.RpcError) as raised:
                call(b"", timeout=10)
            self.assertEqual(raised.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_a_long_queue_is_alive_and_a_hung_rank_is_not(self):
        with Server("--liveness-timeout", "2s", "--max-num-seqs", "1", world_size=2) as server:
            streams = [server.generation.Generate(endless())]
            next(streams[0])
            streams += [server.generation.Generate(endless()) for _ in range(7)]
            deadline = time.monotonic() + 20
            while server.load().waiting_sequences < 7:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.02)
            statuses = server.watch_health("")
            self.assertEqual(next(statuses), "SERVING")
            victim = server.worker_pids()[1]
            os.kill(victim, signal.SIGSTOP)
            try:
                self.assertEqual(next(statuses), "NOT_SERVING")
                self.assertEqual(server.health("", server.target), "NOT_SERVING")
                self.assertIsNone(server.process.poll())
            finally:
                os.kill(victim, signal.SIGCONT)
            self.assertEqual(next(statuses), "SERVING")
            for stream in streams:
                stream.cancel()
            server.wait_until_idle()
            self.assertEqual(server.health(""), "SERVING")


class DrainTest(unittest.TestCase):
    def finish(self, stream):
        """(tokens, status) of a stream read to its end."""
        tokens = 0
        try:
            for event in stream:
                tokens += len(event.chunk.token_ids)
            return tokens, grpc.StatusCode.OK
        except grpc.RpcError as error:
            return tokens, error.code()

    def test_sigterm_takes_readiness_back_and_refuses_while_streams_finish(self):
        server = Server(world_size=2)
        readiness = server.watch_health(GENERATION)
        self.assertEqual(next(readiness), "SERVING")
        stream = server.generation.Generate(request([1], max_tokens=1500, ignore_eos=True))
        tokens = len(next(stream).chunk.token_ids)
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(next(readiness), "NOT_SERVING")
        self.assertEqual(server.health(""), "SERVING")
        self.assertEqual(server.health(GENERATION, server.target), "NOT_SERVING")
        self.assertEqual(server.health(ADMIN, server.admin_target), "NOT_SERVING")
        refused = server.generation.Generate(request([1], max_tokens=1), timeout=20)
        self.assertEqual(self.finish(refused), (0, grpc.StatusCode.UNAVAILABLE))
        self.assertFalse(refused.initial_metadata(), "a refused request may be retried")
        more, status = self.finish(stream)
        self.assertEqual((tokens + more, status), (1500, grpc.StatusCode.OK))
        self.assertEqual(server.process.wait(20), 0)
        server.stop()

    def test_the_drain_timeout_ends_streams_as_unavailable(self):
        server = Server("--drain-timeout", "500ms")
        stream = server.generation.Generate(endless())
        next(stream)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.finish(stream)[1], grpc.StatusCode.UNAVAILABLE)
        self.assertGreaterEqual(time.monotonic() - started, 0.4)
        self.assertEqual(server.process.wait(20), 0)
        server.stop()

    def test_a_second_sigterm_ends_streams_at_once(self):
        server = Server("--drain-timeout", "10m", world_size=2)
        streams = [server.generation.Generate(endless()) for _ in range(3)]
        for stream in streams:
            next(stream)
        server.process.send_signal(signal.SIGTERM)
        for status in server.watch_health(GENERATION):  # the first signal has been taken
            if status == "NOT_SERVING":
                break
        server.process.send_signal(signal.SIGTERM)
        results = []
        threads = [threading.Thread(target=lambda s=stream: results.append(self.finish(s)[1])) for stream in streams]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual(results, [grpc.StatusCode.UNAVAILABLE] * 3)
        self.assertEqual(server.process.wait(20), 0)
        server.stop()

    def test_a_hung_rank_does_not_hold_the_second_sigterm_up(self):
        server = Server("--drain-timeout", "10m", "--step-timeout", "10m", world_size=2)
        stream = server.generation.Generate(endless())
        next(stream)
        os.kill(server.worker_pids()[1], signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        for status in server.watch_health(GENERATION):
            if status == "NOT_SERVING":
                break
        server.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.finish(stream)[1], grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(server.process.wait(30), 0)
        server.stop()


if __name__ == "__main__":
    testing.main()
