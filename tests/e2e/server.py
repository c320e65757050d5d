"""Starts `switchyard serve` as a user would, and speaks to it with grpcio."""

import os
import queue
import re
import signal
import subprocess
import threading
import time

import grpc
import health_pb2
from switchyard.v1 import admin_pb2 as admin
from switchyard.v1 import admin_pb2_grpc
from switchyard.v1 import generation_pb2 as generation
from switchyard.v1 import generation_pb2_grpc

BINARY = os.environ.get("SWITCHYARD_BINARY", "cli/switchyard")
TESTDATA = "tests/testdata"
TINY = f"{TESTDATA}/apriel2-tiny"
LAYERS = 6  # of apriel2-tiny
MIXERS = ["attention", "sliding_window", "gdn", "kda"]


class Process:
    """A running command of ours; use as a context manager. Ends only what it started."""

    def __init__(self, command):
        self.command = command
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.stderr_lines = []
        self._lines = queue.Queue()
        self._readers = [threading.Thread(target=self._read_stdout, daemon=True),
                         threading.Thread(target=self._read_stderr, daemon=True)]
        for reader in self._readers:
            reader.start()

    def _read_stdout(self):
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_stderr(self):
        for line in self.process.stderr:
            self.stderr_lines.append(line.rstrip("\n"))

    def address(self, label, seconds):
        """Reads on until a line says `label HOST:PORT`, and returns that address."""
        deadline = time.monotonic() + seconds
        while True:
            line = self._lines.get(timeout=max(0.1, deadline - time.monotonic()))
            if line is None:
                self.process.wait()
                for reader in self._readers:
                    reader.join(10)
                raise RuntimeError(f"the process ended before it was ready (exit {self.process.returncode}):\n" +
                                   "\n".join(self.stderr_lines[-20:]))
            match = re.search(rf"{label} (\S+:\d+)", line)
            if match:
                return match.group(1)

    def worker_pids(self):
        """Process ids of the process's children, in rank order (they start in that order)."""
        task = f"/proc/{self.process.pid}/task"
        pids = set()
        for thread in os.listdir(task):
            with open(f"{task}/{thread}/children", encoding="ascii") as children:
                pids.update(int(pid) for pid in children.read().split())
        return sorted(pids)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.stop()

    def stop(self, seconds=60):
        """Ends the process politely and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        for reader in self._readers:
            reader.join(10)
        return self.process.returncode


class Server(Process):
    """A running `switchyard serve` (or coordinator), and a client of it."""

    def __init__(self, *flags, command="serve", model=TINY, world_size=1, ready_seconds=120, wait=True, credentials=None,
                 token=None, admin_token=None):
        """wait=False returns before the model is loaded; credentials and tokens are the client's, see connect()."""
        workers = ["--tensor-parallel-size", str(world_size), "--device", "cpu", "--threads", "1"]
        super().__init__([BINARY, command, "--model", model, *(workers if command == "serve" else []), "--cache-bytes",
                          "256MiB", "--port", "0", "--admin-port", "0", "--metrics-port", "0", "--health-port", "0",
                          *flags])
        self._channels = []
        self._credentials, self._token, self._admin_token = credentials, token, admin_token
        self.health_target = self.address("health on", ready_seconds)
        if wait:
            self.wait_until_ready(ready_seconds)

    def wait_until_ready(self, seconds=120):
        self.target = self.address("serving on", seconds)
        self.admin_target = self.address("admin on", seconds)
        self.metrics_target = self.address("metrics on", seconds)
        self.generation = generation_pb2_grpc.GenerationServiceStub(
            self.connect(self.target, self._credentials, self._token))
        self.admin = admin_pb2_grpc.AdminServiceStub(
            self.connect(self.admin_target, self._credentials, self._admin_token))

    def stop(self, seconds=60):
        code = super().stop(seconds)
        for channel in self._channels:
            channel.close()
        return code

    def connect(self, target, credentials=None, token=None, options=()):
        """A channel that lives until stop(): TLS with `credentials`, and a bearer `token` with every call.

        It has connections of its own, as another process would."""
        options = [("grpc.use_local_subchannel_pool", 1), *options]
        channel = (grpc.secure_channel(target, credentials, options) if credentials else
                   grpc.insecure_channel(target, options))
        self._channels.append(channel)
        return grpc.intercept_channel(channel, _Bearer(token)) if token else channel

    def health(self, service, target=None, credentials=None, timeout=10):
        """What grpc.health.v1 says of a service, by name of the answer; on the health port unless told."""
        call = self.connect(target or self.health_target, credentials).unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString)
        answer = call(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def watch_health(self, service, target=None, timeout=120):
        """The answers of grpc.health.v1's Watch, by name, as they come."""
        call = self.connect(target or self.health_target).unary_stream(
            "/grpc.health.v1.Health/Watch", request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString)
        for answer in call(health_pb2.HealthCheckRequest(service=service), timeout=timeout):
            yield health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def info(self):
        return self.admin.GetServerInfo(admin.GetServerInfoRequest())

    def load(self):
        return self.info().load

    def wait_until_idle(self, seconds=20):
        """Waits until nothing runs, and returns the load then."""
        deadline = time.monotonic() + seconds
        while True:
            load = self.load()
            if load.running_sequences == 0 and load.waiting_sequences == 0:
                return load
            if time.monotonic() > deadline:
                raise AssertionError(f"still busy after {seconds} s: {load}")
            time.sleep(0.02)

    def complete(self, prompt, timeout=120, **fields):
        """Generates to the end and returns a Completion."""
        completion = Completion()
        for event in self.generation.Generate(request(prompt, **fields), timeout=timeout):
            completion.add(event)
        return completion


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Sends a token with every call, over plaintext too, where grpc's own call credentials refuse to."""

    def __init__(self, token):
        self._header = ("authorization", f"Bearer {token}")

    def _intercept(self, go_on, details, message):
        return go_on(details._replace(metadata=[*(details.metadata or ()), self._header]), message)

    intercept_unary_unary = intercept_unary_stream = _intercept


class Completion:
    """What a stream has said so far."""

    def __init__(self):
        self.ids, self.text, self.logprobs, self.complete, self.num_chunks = [], "", [], None, 0

    def add(self, event):
        if event.HasField("chunk"):
            assert self.complete is None, "a chunk after the end"
            self.ids += event.chunk.token_ids
            self.text += event.chunk.text
            self.logprobs += event.chunk.logprobs
            self.num_chunks += 1
        else:
            assert self.complete is None, "two ends"
            self.complete = event.complete


def request(prompt, placement=None, request_id="", stop=(), stop_token_ids=(), logit_bias=None, **sampling):
    """A GenerateRequest. prompt: text or token ids; placement: preset name or mixer names; greedy unless told."""
    message = generation.GenerateRequest(request_id=request_id)
    if isinstance(prompt, str):
        message.text = prompt
    else:
        message.token_ids.ids.extend(prompt)
        message.token_ids.SetInParent()
    if isinstance(placement, str):
        message.placement.preset = placement
    elif placement is not None:
        message.placement.mixers.names.extend(placement)
        message.placement.mixers.SetInParent()
    sampling.setdefault("temperature", 0)
    for name, value in sampling.items():
        setattr(message.sampling, name, value)
    message.sampling.stop.extend(stop)
    message.sampling.stop_token_ids.extend(stop_token_ids)
    for token, bias in (logit_bias or {}).items():
        message.sampling.logit_bias[token] = bias
    return message
