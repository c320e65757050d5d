"""Bad input gets the right status, which names the field, and nobody else notices; bad starts get one clear line."""

import os
import re
import shutil
import socket
import struct
import json
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

import grpc
from switchyard.v1 import admin_pb2 as admin
from switchyard.v1 import generation_pb2 as generation

import testing
from server import BINARY, LAYERS, TESTDATA, TINY, Server, request


class BadRequestTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-waiting-seqs", "4", "--max-num-seqs", "4")

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0, cls.server.stderr_lines

    def refused(self, code, words, prompt=(1, 2, 3), **fields):
        """Expects a refusal, and that a request beside it does not notice."""
        with self.assertRaises(grpc.RpcError) as raised:
            list(self.server.generation.Generate(request(prompt, **fields), timeout=30))
        error = raised.exception
        self.assertEqual(error.code(), code, error.details())
        for word in [words] if isinstance(words, str) else words:
            self.assertIn(word, error.details())

    def test_bad_fields_are_named_while_a_stream_goes_on(self):
        alone = self.server.complete("She was", max_tokens=60).ids
        beside = {}
        thread = threading.Thread(target=lambda: beside.update(ids=self.server.complete("She was", max_tokens=60).ids))
        thread.start()
        invalid = grpc.StatusCode.INVALID_ARGUMENT
        self.refused(invalid, "prompt", prompt=[])
        self.refused(invalid, ["4096", "5000"], prompt=[1] * 5000)
        self.refused(invalid, ["token_ids", "2048"], prompt=[1, 2048])
        self.refused(invalid, "sampling.temperature", temperature=-0.5)
        self.refused(invalid, "sampling.temperature", temperature=float("nan"))
        self.refused(invalid, "sampling.top_p", top_p=1.5)
        self.refused(invalid, "sampling.top_p", top_p=0.0)
        self.refused(invalid, "sampling.min_p", min_p=-0.1)
        self.refused(invalid, "sampling.repetition_penalty", repetition_penalty=0.0)
        self.refused(invalid, "sampling.frequency_penalty", frequency_penalty=9.0)
        self.refused(invalid, "sampling.min_tokens", min_tokens=9, max_tokens=3)
        self.refused(invalid, "sampling.logprobs", logprobs=1000)
        self.refused(invalid, "sampling.stop", stop=[""])
        self.refused(invalid, "sampling.stop_token_ids", stop_token_ids=[99999])
        self.refused(invalid, "sampling.logit_bias", logit_bias={99999: 1.0})
        self.refused(grpc.StatusCode.NOT_FOUND, "nonsense", placement="nonsense")
        self.refused(grpc.StatusCode.FAILED_PRECONDITION, ["5", "6"], placement=["gdn"] * 5)
        self.refused(grpc.StatusCode.FAILED_PRECONDITION, ["layer 3", "mambo"],
                     placement=["gdn"] * 3 + ["mambo"] + ["gdn"] * 2)
        self.refused(invalid, "4294967295", min_tokens=2**32 - 1, max_tokens=3)
        # However long the names are, the message arrives.
        self.refused(grpc.StatusCode.FAILED_PRECONDITION, ["layer 0", "xxx...", "kda"], placement=["x" * 100000] * 6)
        thread.join()
        self.assertEqual(beside["ids"], alone)

    def test_no_prompt_at_all(self):
        with self.assertRaises(grpc.RpcError) as raised:
            list(self.server.generation.Generate(generation.GenerateRequest()))
        self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("prompt", raised.exception.details())

    def test_long_prompts_hold_up_nobody(self):
        # About a second of work each, for a tokenizer; all are given up as soon as the short calls are answered.
        text = "".join(chr(97 + i * i * 31 % 26 if i % 7 else 97 + i // 7 % 26) for i in range(4_000_000))
        begin = time.monotonic()
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, ["prompt", "4096"], prompt=text)
        one_long = time.monotonic() - begin
        calls = [self.server.generation.Generate(request(text)) for _ in range(8)]
        calls += [self.server.generation.Tokenize.future(generation.TokenizeRequest(text=text)) for _ in range(4)]
        worst = 0
        for _ in range(10):
            begin = time.monotonic()
            self.server.complete("She was", max_tokens=1)
            worst = max(worst, time.monotonic() - begin)
        for call in calls:
            call.cancel()
        self.assertLess(worst, one_long, "a short call waited for long ones")
        self.assertEqual(self.server.complete("She was", max_tokens=1).complete.completion_tokens, 1)

    def test_full_queue_says_when_to_retry(self):
        streams = [self.server.generation.Generate(request([1], max_tokens=3000, ignore_eos=True,
                                                           placement=["gdn"] * LAYERS)) for _ in range(40)]
        outcomes = []
        for stream in streams:
            try:
                outcomes.append(next(stream))
            except grpc.RpcError as error:
                outcomes.append(error)
                break
        refused = next(s for s in reversed(streams) if s.code() is not None) if any(
            isinstance(o, grpc.RpcError) for o in outcomes) else None
        self.assertIsNotNone(refused, "40 requests fitted into 4 running and 4 waiting")
        self.assertEqual(refused.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        details = dict(refused.trailing_metadata())
        self.assertIn(b"google.rpc.RetryInfo", details["grpc-status-details-bin"])
        for stream in streams:
            stream.cancel()
        load = self.server.wait_until_idle()
        self.assertEqual((load.num_blocks_held, load.num_slots_held), (0, 0))

    def test_refusals_are_counted_wherever_they_happen(self):
        def counted():
            with urllib.request.urlopen(f"http://{self.server.metrics_target}/metrics", timeout=10) as page:
                return dict(re.findall(r'switchyard_requests_refused_total\{.*code="(\w+)".*\} (\d+)', page.read().decode()))
        before = counted()
        self.refused(grpc.StatusCode.INVALID_ARGUMENT, "sampling.top_p", top_p=1.5)
        self.refused(grpc.StatusCode.NOT_FOUND, "nonsense", placement="nonsense")
        after = counted()
        for code in ("INVALID_ARGUMENT", "NOT_FOUND"):
            self.assertEqual(int(after[code]), int(before.get(code, 0)) + 1, code)

    def test_a_prompt_that_the_cache_can_never_hold(self):
        with Server("--cache-bytes", "600KiB") as small:
            with self.assertRaises(grpc.RpcError) as raised:
                list(small.generation.Generate(request([1] * 300, max_tokens=1), timeout=30))
            self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT, "a retry would not help")
            self.assertIn("prompt: its 300 tokens take", raised.exception.details())
            self.assertEqual(len(small.complete([1] * 300, placement="all-gdn", max_tokens=2).ids), 2)

    def test_an_unknown_preset_among_many(self):
        names = [f"{'p' * 120}{number}" for number in range(200)]
        for name in names:
            preset = admin.DefinePresetRequest(preset=admin.Preset(name=name))
            preset.preset.placement.names.extend(["gdn"] * LAYERS)
            self.server.admin.DefinePreset(preset)
        self.refused(grpc.StatusCode.NOT_FOUND, ["nonsense", "all-gdn", "more"], placement="nonsense")
        for name in names:
            self.server.admin.DeletePreset(admin.DeletePresetRequest(name=name))

    def test_text_that_is_not_utf8_leaves_the_log_in_order(self):
        call = self.server.connect(self.server.target).unary_stream("/switchyard.v1.GenerationService/Generate")
        with self.assertRaises(grpc.RpcError) as raised:
            list(call(b"\x12\x02\xc3\x28", timeout=30))
        self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.server.complete("She was", max_tokens=1)
        foreign = [line for line in self.server.stderr_lines if not line.startswith("20")]
        self.assertEqual(foreign, [], "lines that are not the log's")

    def test_a_method_of_the_other_port_or_of_none_is_named(self):
        for target, method, serves in [
                (self.server.target, "/switchyard.v1.AdminService/GetServerInfo", "GenerationService"),
                (self.server.admin_target, "/switchyard.v1.GenerationService/Generate", "AdminService"),
                (self.server.target, "/switchyard.v1.GenerationService/Nothing", "GenerationService")]:
            with self.assertRaises(grpc.RpcError) as raised:
                self.server.connect(target).unary_unary(method)(b"", timeout=30)
            self.assertEqual(raised.exception.code(), grpc.StatusCode.UNIMPLEMENTED)
            self.assertIn(f"no method {method} here: this port serves switchyard.v1.{serves}", raised.exception.details())

    def test_admin_errors(self):
        def code(call, message):
            with self.assertRaises(grpc.RpcError) as raised:
                call(message)
            return raised.exception.code()
        bad = admin.SetDefaultPlacementRequest()
        bad.placement.preset = "unknown"
        self.assertEqual(code(self.server.admin.SetDefaultPlacement, bad), grpc.StatusCode.NOT_FOUND)
        bad.placement.mixers.names.extend(["gdn"])
        self.assertEqual(code(self.server.admin.SetDefaultPlacement, bad), grpc.StatusCode.FAILED_PRECONDITION)
        self.assertEqual(code(self.server.admin.SetDefaultPlacement, admin.SetDefaultPlacementRequest()),
                         grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(code(self.server.admin.DeletePreset, admin.DeletePresetRequest(name="unknown")),
                         grpc.StatusCode.NOT_FOUND)
        preset = admin.DefinePresetRequest(preset=admin.Preset(name="p"))
        preset.preset.placement.names.extend(["gdn"] * 5 + ["nope"])
        self.assertEqual(code(self.server.admin.DefinePreset, preset), grpc.StatusCode.FAILED_PRECONDITION)


class BadStartTest(unittest.TestCase):
    """One clear line on stderr that names what is wrong, and a non-zero exit."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def copy_of_tiny(self):
        copy = os.path.join(self.folder, "model")
        shutil.copytree(TINY, copy, copy_function=lambda a, b: shutil.copyfile(os.path.realpath(a), b))
        return copy

    def fails(self, words, *arguments, command="serve"):
        done = subprocess.run([BINARY, command, *arguments], capture_output=True, text=True, timeout=90)
        self.assertNotEqual(done.returncode, 0, done)
        self.assertGreater(done.returncode, 0, "ended by a signal")
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        self.assertTrue(errors, "nothing on stderr")
        for word in words:
            self.assertTrue(any(word in line for line in errors), f"{word!r} is not in {done.stderr}")
        return done

    def serve(self, model, *more):
        return ("--model", model, "--device", "cpu", "--port", "0", "--admin-port", "0", "--metrics-port", "0",
                "--health-port", "0", *more)

    def edit_config(self, model, edit):
        path = os.path.join(model, "config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        edit(config)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)

    def test_missing_directory(self):
        self.fails(["/no/such/model"], *self.serve("/no/such/model"))

    def test_no_model_given(self):
        self.fails(["--model"], "--port", "0")

    def test_unknown_flag(self):
        self.fails(["--modle"], "--modle", TINY)

    def test_config_lacks_a_field(self):
        model = self.copy_of_tiny()
        self.edit_config(model, lambda config: config.pop("hidden_size"))
        self.fails(["config.json", "hidden_size"], *self.serve(model))

    def test_config_names_an_unknown_mixer(self):
        model = self.copy_of_tiny()
        self.edit_config(model, lambda config: config["decoder"]["block"]["mixer"]["mixers"]["gdn"].update(type="rwkv"))
        self.fails(["config.json", "rwkv", "gdn"], *self.serve(model))

    def test_weights_that_do_not_fit_into_memory(self):
        model = self.copy_of_tiny()

        def widen(config):
            config["hidden_size"] = config["decoder"]["block"]["mlp"]["intermediate_size"] = 1 << 22
        self.edit_config(model, widen)  # a petabyte
        self.fails(["the weights of a rank take", "are free"], *self.serve(model))

    def test_truncated_weights(self):
        model = self.copy_of_tiny()
        shard = os.path.join(model, "model-00001-of-00002.safetensors")
        os.truncate(shard, os.path.getsize(shard) - 1000)
        self.fails(["model-00001-of-00002.safetensors"], *self.serve(model))

    def test_header_longer_than_the_file(self):
        model = self.copy_of_tiny()
        shard = os.path.join(model, "model-00002-of-00002.safetensors")
        with open(shard, "r+b") as file:
            file.write(struct.pack("<Q", 1 << 40))
        self.fails(["model-00002-of-00002.safetensors"], *self.serve(model))

    def test_worker_that_is_another_server(self):
        with Server() as other:
            self.fails([other.target, "no worker"], "--model", TINY, "--workers", other.target, "--port", "0", "--admin-port",
                       "0", "--metrics-port", "0", "--health-port", "0", command="coordinator")

    def test_world_size_that_does_not_divide_the_heads(self):
        self.fails(["head", "3"], *self.serve(TINY, "--tensor-parallel-size", "3"))

    def test_worker_that_is_not_there(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{unused.getsockname()[1]}"
            self.fails([address], "--model", TINY, "--workers", address, "--port", "0", "--admin-port", "0",
                       "--metrics-port", "0", "--health-port", "0", "--connect-timeout", "2s", command="coordinator")

    def test_worker_addresses_without_a_port(self):
        self.fails(["--workers", "elsewhere", "HOST:PORT"], "--model", TINY, "--workers", "127.0.0.1:1,elsewhere",
                   command="coordinator")

    def test_taken_ports_are_named_before_anything_is_loaded(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            for flag in ("--port", "--admin-port", "--metrics-port", "--health-port"):
                done = self.fails([f"{flag}={port}", "in use"], *self.serve(TINY, flag, port))
                self.assertNotIn("joins a group", done.stderr)
            self.fails([port], "--port", port, command="worker")

    def test_bad_certificates_and_tokens_are_named_before_anything_is_loaded(self):
        for flags in (("--tls-cert", "/no/cert", "--tls-key", "/no/key"), ("--api-token-file", "/no/tokens"),
                      ("--admin-token-file", "/no/tokens")):
            done = self.fails([flags[1]], *self.serve(TINY, *flags))
            self.assertNotIn("joins a group", done.stderr)

    def test_no_time_at_all(self):
        self.fails(["--step-timeout", "at least 1ms"], *self.serve(TINY, "--step-timeout", "0"))

    def test_blocks_that_no_kernel_can_page(self):
        self.fails(["--block-size", "power of two", "48"], *self.serve(TINY, "--block-size", "48"))

    def test_cache_too_small_for_anything(self):
        self.fails(["cache of 1 bytes", "256"], *self.serve(TINY, "--cache-bytes", "1"))

    def test_golden_file_of_another_model(self):
        self.fails(["last_logits", "another model"], TINY, f"{TESTDATA}/golden_zoo-pattern.json", "--device", "cpu",
                   command="align")

    def test_a_full_disk_is_an_error(self):
        for command in (["--help"], ["--version"], ["inspect", TINY]):
            with open("/dev/full", "wb") as full:
                done = subprocess.run([BINARY, *command], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
            self.assertEqual(done.returncode, 1, command)
            self.assertIn("cannot write to stdout", done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1)

    def test_unknown_placement_at_start(self):
        self.fails(["quick"], *self.serve(TINY, "--placement", "quick"))

    def test_bad_presets_file(self):
        presets = os.path.join(self.folder, "presets.json")
        with open(presets, "w", encoding="utf-8") as file:
            json.dump({"presets": {"fast": ["gdn"] * 4}}, file)
        self.fails(["presets.json", "fast"], *self.serve(TINY, "--presets", presets))

    def test_cuda_where_there_is_none(self):
        if os.path.exists("/dev/nvidia0"):
            return
        self.fails(["cuda"], *self.serve(TINY, "--device", "cuda"))


if __name__ == "__main__":
    testing.main()
