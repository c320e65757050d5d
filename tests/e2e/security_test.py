"""Attacks: each is refused with the right status, the server stays up, and others are served meanwhile."""

import contextlib
import os
import random
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

import grpc
from switchyard.v1 import admin_pb2 as admin
from switchyard.v1 import generation_pb2 as generation
from switchyard.v1 import generation_pb2_grpc

import http2
import testing
from certificates import Authority, credentials
from server import BINARY, Server, request

API_TOKEN, ADMIN_TOKEN = "api-3f1c9a6b", "admin-97be21d4"
SERVICES = {"generation": generation.DESCRIPTOR.services_by_name["GenerationService"],
            "admin": admin.DESCRIPTOR.services_by_name["AdminService"]}


def call(channel, method, body, timeout=20, metadata=()):
    """The status code of a method called with bytes; every method of ours takes one message."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = channel.unary_stream if method.name == "Generate" else channel.unary_unary
    try:
        answer = kind(path)(body, timeout=timeout, metadata=metadata)
        if method.name == "Generate":
            list(answer)
        return grpc.StatusCode.OK
    except grpc.RpcError as error:
        return error.code()


@contextlib.contextmanager
def others_served(test, server):
    """An honest stream runs through the attack and gets what it always gets; afterwards so does the next one."""
    expected = server.complete("She was", max_tokens=30).ids
    got = {}
    thread = threading.Thread(target=lambda: got.update(ids=server.complete("She was", max_tokens=30).ids))
    thread.start()
    yield
    thread.join()
    test.assertEqual(got.get("ids"), expected)
    test.assertEqual(server.complete("She was", max_tokens=30).ids, expected)
    test.assertIsNone(server.process.poll())


def closed_by_peer(connection, seconds):
    """Whether the other side ends a connection within some seconds, whatever it says before."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
        return True
    except ConnectionError:
        return True
    except socket.timeout:
        return False


class Folder(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)

    @classmethod
    def write(cls, name, text):
        path = os.path.join(cls.folder, name)
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(path + ".new", path)
        return path

    def eventually(self, condition, seconds=20):
        deadline = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it did not come to pass")
            time.sleep(0.05)


class SecuredTest(Folder):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.ours, cls.theirs = Authority(cls.folder, "ours"), Authority(cls.folder, "theirs")
        cls.cert, cls.key = cls.ours.issue("server")
        cls.identity = cls.ours.issue("client")
        cls.client_ca = os.path.join(cls.folder, "client-ca.pem")
        shutil.copyfile(cls.ours.cert, cls.client_ca)
        cls.api_tokens = cls.write("api-tokens", f"# clients\n\n{API_TOKEN}\nanother-client\n")
        cls.admin_tokens = cls.write("admin-tokens", f"{ADMIN_TOKEN}\n")
        cls.credentials = credentials(cls.ours.cert, cls.identity)
        cls.server = Server("--tls-cert", cls.cert, "--tls-key", cls.key, "--tls-client-ca", cls.client_ca,
                            "--api-token-file", cls.api_tokens, "--admin-token-file", cls.admin_tokens,
                            "--handshake-timeout", "2s", world_size=2,
                            credentials=cls.credentials, token=API_TOKEN, admin_token=ADMIN_TOKEN)

    @classmethod
    def tearDownClass(cls):
        with urllib.request.urlopen(f"http://{cls.server.metrics_target}/metrics", timeout=20) as page:
            metrics = page.read().decode()
        assert cls.server.stop() == 0, cls.server.stderr_lines
        said = "\n".join(cls.server.stderr_lines) + metrics
        for secret in [API_TOKEN, ADMIN_TOKEN, "another-client"]:
            assert secret not in said, "a token was logged or exported"

    def refuses_connections(self, channel_credentials):
        with others_served(self, self.server):
            for target, methods in [(self.server.target, SERVICES["generation"].methods),
                                    (self.server.admin_target, SERVICES["admin"].methods)]:
                with contextlib.closing(grpc.secure_channel(target, channel_credentials)
                                        if channel_credentials else grpc.insecure_channel(target)) as channel:
                    self.assertEqual(call(channel, methods[0], b"", metadata=[("authorization", f"Bearer {API_TOKEN}")]),
                                     grpc.StatusCode.UNAVAILABLE)

    def cli(self, *arguments, target, token_file, identity=True):
        """A command of the binary that reaches the server with files, as an operator would."""
        files = ["--tls-ca", self.ours.cert, "--token-file", token_file]
        if identity:
            files += ["--tls-cert", self.identity[0], "--tls-key", self.identity[1]]
        return subprocess.run([BINARY, *arguments, "--target", target, *files], capture_output=True, text=True, timeout=60,
                              check=False)

    def test_the_commands_reach_it_with_certificates_and_tokens(self):
        expected = self.server.complete("She was", max_tokens=12)
        said = self.cli("generate", "--prompt", "She was", "--temperature", "0", "--max-tokens", "12", "--quiet",
                        target=self.server.target, token_file=self.api_tokens)
        self.assertEqual((said.returncode, said.stdout.rstrip("\n")), (0, expected.text), said.stderr)
        said = self.cli("placement", "get", target=self.server.admin_target, token_file=self.admin_tokens)
        self.assertEqual(said.returncode, 0, said.stderr)
        self.assertIn("epoch", said.stdout)

    def test_the_commands_say_why_they_are_refused(self):
        said = self.cli("placement", "get", target=self.server.admin_target, token_file=self.api_tokens)
        self.assertEqual(said.returncode, 1)
        self.assertIn("token", said.stderr)
        said = self.cli("generate", "--prompt", "She was", target=self.server.target, token_file=self.api_tokens, identity=False)
        self.assertEqual(said.returncode, 1)
        self.assertIn(self.server.target, said.stderr)
        for secret in [API_TOKEN, ADMIN_TOKEN]:
            self.assertNotIn(secret, said.stderr)

    def test_no_certificate(self):
        self.refuses_connections(credentials(self.ours.cert))

    def test_plaintext(self):
        self.refuses_connections(None)

    def test_certificate_of_another_authority(self):
        self.refuses_connections(credentials(self.ours.cert, self.theirs.issue("client")))

    def test_expired_certificate(self):
        self.refuses_connections(credentials(self.ours.cert, self.ours.issue("expired", days=-1)))

    def test_a_client_refuses_an_impostor(self):
        self.refuses_connections(credentials(self.theirs.cert, self.identity))

    def refuses_calls(self, metadata, admin_metadata=None):
        """Every method of either port answers UNAUTHENTICATED."""
        with others_served(self, self.server):
            for port, service in SERVICES.items():
                target = self.server.target if port == "generation" else self.server.admin_target
                channel = self.server.connect(target, self.credentials)
                sent = metadata if port == "generation" or admin_metadata is None else admin_metadata
                for method in service.methods:
                    self.assertEqual(call(channel, method, b"", metadata=sent), grpc.StatusCode.UNAUTHENTICATED,
                                     method.full_name)

    def test_no_token(self):
        self.refuses_calls(())

    def test_wrong_tokens(self):
        for header in ["Bearer wrong", "Bearer ", "Bearer", f"Bearer {API_TOKEN[:-1]}", f"Bearer {API_TOKEN}x",
                       f"Basic {API_TOKEN}", API_TOKEN, f"Bearer # clients", "Bearer \t"]:
            self.refuses_calls([("authorization", header.strip())])

    def test_the_schemes_case_is_of_no_account(self):
        channel = self.server.connect(self.server.target, self.credentials)
        method = SERVICES["generation"].methods_by_name["GetModelInfo"]
        for scheme in ["bearer", "BEARER"]:
            self.assertEqual(call(channel, method, b"", metadata=[("authorization", f"{scheme} {API_TOKEN}")]),
                             grpc.StatusCode.OK)

    def test_tokens_are_of_one_port(self):
        self.refuses_calls([("authorization", f"Bearer {ADMIN_TOKEN}")], [("authorization", f"Bearer {API_TOKEN}")])

    def test_each_line_of_the_file_is_a_token(self):
        channel = self.server.connect(self.server.target, self.credentials, "another-client")
        method = SERVICES["generation"].methods_by_name["GetModelInfo"]
        self.assertEqual(call(channel, method, b""), grpc.StatusCode.OK)

    def test_probes_need_no_token(self):
        self.assertEqual(self.server.health(""), "SERVING")
        for target in [self.server.target, self.server.admin_target]:
            self.assertEqual(self.server.health("", target, self.credentials), "SERVING")

    def test_tokens_are_read_again(self):
        method = SERVICES["generation"].methods_by_name["GetModelInfo"]
        channel = self.server.connect(self.server.target, self.credentials, "fresh-token")
        self.assertEqual(call(channel, method, b""), grpc.StatusCode.UNAUTHENTICATED)
        self.write("api-tokens", f"{API_TOKEN}\nanother-client\nfresh-token\n")
        self.eventually(lambda: call(channel, method, b"") == grpc.StatusCode.OK)
        self.write("api-tokens", f"{API_TOKEN}\nanother-client\n")
        self.eventually(lambda: call(channel, method, b"") == grpc.StatusCode.UNAUTHENTICATED)
        self.write("api-tokens", "# nobody: taken for a mistake\n")
        self.eventually(lambda: self.server.complete([1], max_tokens=1) and
                        any("keeping the tokens" in line for line in self.server.stderr_lines))
        self.server.complete([1], max_tokens=1)
        self.write("api-tokens", f"{API_TOKEN}\nanother-client\n")

    def serial(self):
        """Of the certificate that the client port shows now."""
        context = ssl.create_default_context(cafile=self.ours.cert)
        context.load_cert_chain(*self.identity)
        host, port = self.server.target.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=20) as plain:
            with context.wrap_socket(plain, server_hostname=host) as secured:
                return secured.getpeercert()["serialNumber"]

    def test_certificates_are_read_again(self):
        before = self.serial()
        running = self.server.generation.Generate(request([1], max_tokens=200, ignore_eos=True))
        next(running)
        cert, key = self.ours.issue("renewed")
        os.rename(key, self.key)
        os.rename(cert, self.cert)

        def renewed():
            try:
                return self.serial() != before
            except (ssl.SSLError, ConnectionError):
                return False  # between the two files
        self.eventually(renewed)
        self.assertEqual(list(running)[-1].complete.completion_tokens, 200)

        def code(identity):
            with contextlib.closing(grpc.secure_channel(self.server.target,
                                                        credentials(self.ours.cert, identity))) as channel:
                return call(channel, SERVICES["generation"].methods_by_name["GetModelInfo"], b"",
                            metadata=[("authorization", f"Bearer {API_TOKEN}")])
        other = self.theirs.issue("later")
        self.assertEqual(code(other), grpc.StatusCode.UNAVAILABLE)
        shutil.copyfile(self.theirs.cert, self.client_ca + ".new")
        os.rename(self.client_ca + ".new", self.client_ca)
        self.eventually(lambda: code(other) == grpc.StatusCode.OK)
        self.assertEqual(code(self.identity), grpc.StatusCode.UNAVAILABLE)
        shutil.copyfile(self.ours.cert, self.client_ca + ".new")
        os.rename(self.client_ca + ".new", self.client_ca)
        self.eventually(lambda: code(self.identity) == grpc.StatusCode.OK)

    def test_half_a_handshake(self):
        host, port = self.server.target.rsplit(":", 1)
        with others_served(self, self.server):
            sockets = [socket.create_connection((host, int(port))) for _ in range(100)]
            for number, connection in enumerate(sockets):
                connection.sendall(b"\x16\x03\x01\x02\x00\x01"[:number % 7])  # of a ClientHello
            self.assertTrue(all(closed_by_peer(connection, 20) for connection in sockets))
            for connection in sockets:
                connection.close()


class BadFilesTest(Folder):
    """A server that cannot be as safe as it is told to be does not start, and says which file is why."""

    def fails(self, words, *flags):
        with self.assertRaises(RuntimeError) as raised:
            Server(*flags)
        for word in words:
            self.assertIn(word, str(raised.exception))

    def test_files_that_cannot_be_used(self):
        authority = Authority(self.folder, "authority")
        cert, key = authority.issue("server")
        _, other_key = authority.issue("other")
        empty = self.write("empty", "# no token\n")
        self.fails(["/no/such.pem"], "--tls-cert", "/no/such.pem", "--tls-key", key)
        self.fails([other_key], "--tls-cert", cert, "--tls-key", other_key)
        self.fails([cert], "--tls-cert", cert)
        self.fails([empty], "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", empty)
        self.fails([authority.cert], "--tls-client-ca", authority.cert)
        self.fails([empty, "token"], "--api-token-file", empty)
        self.fails(["/no/tokens"], "--admin-token-file", "/no/tokens")


class LimitsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-message-bytes", "65536", "--max-prompt-tokens", "100", "--max-stop-strings", "2",
                            "--max-stop-string-bytes", "8", "--max-logprobs", "3", "--max-logit-biases", "4",
                            "--max-concurrent-streams", "7", "--max-header-bytes", "8192",
                            "--min-ping-interval", "1s", "--handshake-timeout", "2s",
                            "--max-context-tokens", "256")  # what is cut short in test_malformed_messages may run to it

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0, cls.server.stderr_lines

    def refused(self, code, word, prompt=(1, 2, 3), metadata=(), **fields):
        stub = generation_pb2_grpc.GenerationServiceStub(self.server.connect(self.server.target))
        with self.assertRaises(grpc.RpcError) as raised:
            list(stub.Generate(request(prompt, **fields), timeout=20, metadata=metadata))
        self.assertEqual(raised.exception.code(), code, raised.exception.details())
        self.assertIn(word, raised.exception.details())

    def test_limits_of_a_request(self):
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        with others_served(self, self.server):
            self.refused(invalid, "prompt", prompt=[1] * 101)
            self.refused(invalid, "sampling.stop", stop=["a", "b", "c"])
            self.refused(invalid, "sampling.stop[0]", stop=["a" * 9])
            self.refused(invalid, "sampling.logprobs", logprobs=4)
            self.refused(invalid, "sampling.prompt_logprobs", prompt_logprobs=4)
            self.refused(invalid, "sampling.logit_bias", logit_bias={token: 1.0 for token in range(5)})
            self.server.complete([1] * 100, stop=["a" * 8, "b"], logprobs=3, max_tokens=2,
                                 logit_bias={token: 1.0 for token in range(4)})

    def test_oversized_message(self):
        with others_served(self, self.server):
            for size in [65536, 1 << 20, 16 << 20]:
                self.refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "message", prompt="a" * size)

    def test_oversized_headers(self):
        with others_served(self, self.server):
            for size in [9 << 10, 1 << 20]:
                self.refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "metadata", metadata=[("x-padding", "a" * size)])

    def test_what_a_connection_may_do_is_announced(self):
        with http2.Connection(self.server.target) as connection:
            settings = connection.settings()
            self.assertEqual(settings[3], 7)  # SETTINGS_MAX_CONCURRENT_STREAMS
            self.assertEqual(settings[6], 8 << 10)  # SETTINGS_MAX_HEADER_LIST_SIZE

    def test_connections_that_never_say_hello(self):
        with others_served(self, self.server):
            for target in [self.server.target, self.server.admin_target, self.server.health_target]:
                host, port = target.rsplit(":", 1)
                sockets = [socket.create_connection((host, int(port))) for _ in range(60)]
                for number, connection in enumerate(sockets):
                    connection.sendall(http2.PREFACE[:number % (len(http2.PREFACE) + 1)])
                self.assertTrue(all(closed_by_peer(connection, 20) for connection in sockets))
                for connection in sockets:
                    connection.close()

    def test_ping_flood(self):
        with others_served(self, self.server):
            with http2.Connection(self.server.target) as connection:
                with contextlib.suppress(ConnectionError):
                    for number in range(100):
                        connection.ping(number)
                goodbye = connection.wait_for(http2.GOAWAY)
                self.assertEqual(int.from_bytes(goodbye[4:8], "big"), http2.ENHANCE_YOUR_CALM)
                self.assertTrue(closed_by_peer(connection.socket, 20))

    def test_pings_at_the_agreed_pace_are_answered(self):
        with http2.Connection(self.server.target) as connection:
            for number in range(6):
                connection.ping(number)
                self.assertEqual(int.from_bytes(connection.wait_for(http2.PING, http2.ACK), "big"), number)
                time.sleep(1.1)  # the pace, not a wait for anything

    def bodies(self, rng, valid):
        """What is not a message: noise, and a valid message cut, bent and nested."""
        yield b"\xff\xff\xff"
        yield b"\x0a\xff\xff\xff\xff\x0f"  # a length of 4 GiB
        yield b"\x12\x04\xff\xfe\xfd\xfc"  # not UTF-8
        nested = b""
        for _ in range(200):
            nested = b"\x2a" + bytes([min(len(nested), 127)]) + nested[:127]
        yield nested
        for _ in range(20):
            yield rng.randbytes(rng.randrange(1, 300))
        for _ in range(20):
            bent = bytearray(valid)
            for _ in range(rng.randrange(1, 4)):
                bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
            yield bytes(bent[:rng.randrange(1, len(bent) + 1)])

    def test_malformed_messages(self):
        rng = random.Random(4)
        message = request("She was", placement="all-gdn", stop=["x"], max_tokens=3, request_id="fuzz", logprobs=2)
        tokens = request([1, 2, 3], placement=["gdn"] * 6, max_tokens=3, logit_bias={3: 1.0})
        fine = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS,
                grpc.StatusCode.RESOURCE_EXHAUSTED}
        with others_served(self, self.server):
            for port, service in SERVICES.items():
                channel = self.server.connect(self.server.target if port == "generation" else self.server.admin_target)
                for method in service.methods:
                    self.assertEqual(call(channel, method, b"\xff\xff\xff"), grpc.StatusCode.INVALID_ARGUMENT,
                                     method.full_name)
                    if method.name in ["SetDefaultPlacement", "DefinePreset", "DeletePreset"]:
                        continue  # what parses would change the server under the honest client
                    for valid in [message, tokens]:
                        for body in self.bodies(rng, valid.SerializeToString()):
                            self.assertIn(call(channel, method, body), fine, f"{method.full_name}: {body!r}")

    def test_unknown_methods(self):
        for target in [self.server.target, self.server.admin_target]:
            channel = self.server.connect(target)
            for path in ["/switchyard.v1.GenerationService/Nothing", "/switchyard.v1.AdminService/Nothing", "/a/b"]:
                with self.assertRaises(grpc.RpcError) as raised:
                    channel.unary_unary(path)(b"", timeout=20)
                self.assertEqual(raised.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_noise_instead_of_frames(self):
        rng = random.Random(5)
        with others_served(self, self.server):
            for target in [self.server.target, self.server.admin_target, self.server.health_target]:
                for number in range(30):
                    host, port = target.rsplit(":", 1)
                    with socket.create_connection((host, int(port)), timeout=20) as connection:
                        with contextlib.suppress(ConnectionError):
                            if number % 2:
                                connection.sendall(http2.PREFACE + http2.frame(http2.SETTINGS))
                            connection.sendall(rng.randbytes(rng.randrange(1, 4000)))
                            connection.shutdown(socket.SHUT_WR)
                            self.assertTrue(closed_by_peer(connection, 20))


if __name__ == "__main__":
    testing.main()
