"""Two replicas, restarted one after the other under constant load, behind clients that retry.

  rolling_restarts.py RESTARTS [CLIENTS]     prints what happened; fails if any request did

A client may send a request again after UNAVAILABLE as long as nothing of an answer has come: no initial metadata is
sent before a request is admitted, and a draining server refuses whatever it has not admitted. Replicas that are to go
stay in the clients' list until they are gone, as behind a load balancer that has not noticed yet.
"""

import itertools
import random
import signal
import sys
import threading
import time

import grpc
from switchyard.v1 import generation_pb2_grpc

from server import LAYERS, MIXERS, Server, request


class Replicas:
    """The servers that clients may go to."""

    def __init__(self, count):
        self._lock = threading.Lock()
        self._servers = [Server() for _ in range(count)]
        self._stubs = [self._stub(server) for server in self._servers]

    @staticmethod
    def _stub(server):
        return generation_pb2_grpc.GenerationServiceStub(server.connect(server.target))

    def stubs(self):
        with self._lock:
            return list(self._stubs)

    def restart(self, number):
        """As a rolling update does: SIGTERM, wait for the end, start anew. Returns (exit status, seconds to drain)."""
        server = self._servers[number]
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(120)
        seconds = time.monotonic() - started
        fresh = Server()
        with self._lock:
            self._servers[number], self._stubs[number] = fresh, self._stub(fresh)
        server.stop()
        return code, seconds

    def stop(self):
        return [server.stop() for server in self._servers]


class Client(threading.Thread):
    """Sends one request after the other, and tries another replica while it may."""

    def __init__(self, replicas, number, expected, stopping):
        super().__init__()
        self._replicas, self._rng, self._expected, self._stopping = replicas, random.Random(number), expected, stopping
        self.completed, self.retries, self.failures = 0, 0, []

    def run(self):
        while not self._stopping.is_set() and not self.failures:
            mixer = self._rng.choice(MIXERS)
            try:
                ids = self._generate(mixer)
                if ids != self._expected[mixer]:
                    self.failures.append(f"{mixer}: other tokens than alone: {ids}")
                self.completed += 1
            except grpc.RpcError as error:
                self.failures.append(f"{error.code()}: {error.details()}")

    def _generate(self, mixer):
        deadline = time.monotonic() + 60
        for attempt in itertools.count():
            stub = self._rng.choice(self._replicas.stubs())
            ids, call = [], stub.Generate(message(mixer), timeout=60)
            try:
                for event in call:
                    ids += event.chunk.token_ids
                return ids
            except grpc.RpcError as error:
                may_retry = error.code() == grpc.StatusCode.UNAVAILABLE and not ids and not call.initial_metadata()
                if not may_retry or time.monotonic() > deadline:
                    raise
                self.retries += 1
                time.sleep(min(0.02 * 2 ** attempt, 0.5) * self._rng.random())  # back off


def message(mixer):
    return request("It is a truth", max_tokens=24, ignore_eos=True, placement=[mixer] * LAYERS)


def run(restarts, num_clients=4, say=print):
    """Returns (requests completed, retries, failures, exit statuses)."""
    replicas = Replicas(2)
    stopping = threading.Event()
    expected = {}
    for mixer in MIXERS:
        expected[mixer] = [i for event in replicas.stubs()[0].Generate(message(mixer)) for i in event.chunk.token_ids]
    clients = [Client(replicas, number, expected, stopping) for number in range(num_clients)]
    started, codes, slowest = time.monotonic(), [], 0.0
    for client in clients:
        client.start()
    try:
        for number in range(restarts):
            before = sum(client.completed for client in clients)
            code, seconds = replicas.restart(number % 2)
            codes.append(code)
            slowest = max(slowest, seconds)
            # Each restart sees traffic: a restart without any shows nothing.
            while sum(client.completed for client in clients) < before + 2 * num_clients:
                if any(client.failures for client in clients):
                    break
                time.sleep(0.01)
            if any(client.failures for client in clients):
                break
    finally:
        stopping.set()
        for client in clients:
            client.join()
        codes += replicas.stop()
    completed, retries = sum(c.completed for c in clients), sum(c.retries for c in clients)
    failures = [failure for client in clients for failure in client.failures]
    say(f"{restarts} restarts in {time.monotonic() - started:.0f} s: {completed} requests of {num_clients} clients completed, "
        f"{len(failures)} failed, {retries} retries; slowest drain {slowest:.2f} s")
    return completed, retries, failures, codes


if __name__ == "__main__":
    _, _, FAILURES, CODES = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 4)
    for line in FAILURES:
        print(line)
    sys.exit(1 if FAILURES or any(CODES) else 0)
