"""Weights that are not numbers: requests that meet them end with an error that says so, all others go on, and nothing
that was computed from them is used again."""

import json
import os
import shutil
import struct
import subprocess
import tempfile
import unittest
import urllib.request

import grpc

import testing
from server import BINARY, LAYERS, MIXERS, TESTDATA, TINY, Server, request

BLOCK = 16
BAD = 777  # the token whose embedding is not a number
WORD = [5, 6, 7, 8, 9]
MIXED = ["attention", "gdn", "sliding_window", "kda", "gdn", "attention"]
PLACEMENTS = [[mixer] * LAYERS for mixer in MIXERS] + [MIXED]


def copy_with_nan(folder, tensor, row):
    """A copy of the tiny checkpoint, NaN in one row of a matrix, or in one element of a vector, of bf16."""
    os.makedirs(folder)
    for name in os.listdir(TINY):
        shutil.copy(f"{TINY}/{name}", folder)
    with open(f"{folder}/model.safetensors.index.json", encoding="utf-8") as index:
        path = f"{folder}/{json.load(index)['weight_map'][tensor]}"
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        entry = json.loads(file.read(header_bytes))[tensor]
        assert entry["dtype"] == "BF16", entry
        width = entry["shape"][1] if len(entry["shape"]) == 2 else 1
        file.seek(8 + header_bytes + entry["data_offsets"][0] + row * width * 2)
        file.write(struct.pack("<H", 0x7FC0) * width)
    return folder


class NotFiniteTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.bad_token = copy_with_nan(f"{cls.folder.name}/bad-token", "model.embed_tokens.weight", BAD)
        cls.bad_norm = copy_with_nan(f"{cls.folder.name}/bad-norm", "model.norm.weight", 3)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def fails(self, server, token, placement, prompt, **fields):
        """The request ends with the error, for its token number `token`; returns the ids that came before."""
        ids = []
        with self.assertRaises(grpc.RpcError) as raised:
            for event in server.generation.Generate(request(prompt, placement=placement, **fields), timeout=60):
                ids += event.chunk.token_ids
        self.assertEqual(raised.exception.code(), grpc.StatusCode.INTERNAL)
        self.assertIn(f"the model's logits for token {token} of this request are not finite numbers (placement "
                      f"{','.join(placement)}): the checkpoint's weights, or its dtype, are likely at fault",
                      raised.exception.details())
        self.assertEqual(len(ids), token - 1)
        return ids

    def check(self, *flags, world_size=1):
        with Server(model=TINY, world_size=world_size) as good, \
                Server("--max-num-batched-tokens", "64", "--poison-freed-cache", *flags, model=self.bad_token,
                       world_size=world_size) as server:
            alone = good.complete(WORD, placement=MIXED, max_tokens=400, ignore_eos=True).ids
            self.assertNotIn(BAD, alone)
            neighbour = server.generation.Generate(
                request(WORD, placement=MIXED, max_tokens=400, ignore_eos=True), timeout=120)
            ids = list(next(neighbour).chunk.token_ids)
            for placement in PLACEMENTS:
                # In the prompt, in a chunk of it or the last one; whatever else is asked for.
                prompt = [10 + i % 90 for i in range(6 * BLOCK)]
                self.fails(server, 1, placement, prompt[:20] + [BAD] + prompt[21:])
                self.fails(server, 1, placement, prompt[:-1] + [BAD], temperature=1.0, seed=3, top_p=0.9, logprobs=5,
                           repetition_penalty=1.3, frequency_penalty=0.5)
                self.fails(server, 1, placement, [BAD], temperature=0.7, seed=1, prompt_logprobs=3, logprobs=20)
                # In the answer.
                one = self.fails(server, 2, placement, prompt, logit_bias={BAD: 100.0}, max_tokens=20, logprobs=1)
                self.assertEqual(one, [BAD])
                # What they have in common with others is computed anew, or was followed by a good token.
                done = server.complete(prompt, placement=placement, max_tokens=8, ignore_eos=True)
                self.assertEqual(done.ids, good.complete(prompt, placement=placement, max_tokens=8, ignore_eos=True).ids)
            for event in neighbour:
                ids += event.chunk.token_ids
            self.assertEqual(ids, alone)
            load = server.wait_until_idle()
            self.assertEqual((load.num_blocks_held, load.num_slots_held, load.cache_used_bytes), (0, 0, 0))
            with urllib.request.urlopen(f"http://{server.metrics_target}/metrics", timeout=10) as response:
                lines = response.read().decode().splitlines()
            errors = [float(line.split()[-1]) for line in lines
                      if line.startswith("switchyard_request_success_total") and 'finished_reason="error"' in line]
            self.assertEqual(sum(errors), 4 * len(PLACEMENTS))
            self.assertEqual(server.stop(), 0)

    def test_overlapped_loop(self):
        self.check()

    def test_simple_loop(self):
        self.check("--async-scheduling=false")

    def test_two_ranks(self):
        self.check(world_size=2)

    def test_nothing_of_it_is_reused(self):
        prompt = [10 + i % 90 for i in range(10 * BLOCK)]
        bad = prompt[:3 * BLOCK] + [BAD] + prompt[3 * BLOCK + 1:]
        with Server("--max-num-batched-tokens", "32", model=self.bad_token) as server:
            for placement in PLACEMENTS:
                hits = server.load().prefix_hit_tokens
                for _ in range(2):
                    self.fails(server, 1, placement, bad)
                    load = server.wait_until_idle()
                    self.assertEqual((load.cache_reusable_bytes, load.prefix_hit_tokens), (0, hits), placement)
            for placement in PLACEMENTS:
                first = server.complete(prompt, placement=placement, max_tokens=8, ignore_eos=True)
                again = server.complete(prompt + first.ids, placement=placement, max_tokens=8, ignore_eos=True)
                self.assertEqual(first.complete.cached_tokens, 0)
                self.assertGreater(again.complete.cached_tokens, 9 * BLOCK)

    def test_a_model_that_knows_nothing(self):
        """The server stays, and says so each time; align reports it rather than a difference."""
        with Server(model=self.bad_norm) as server:
            for _ in range(3):
                self.fails(server, 1, ["attention"] * LAYERS, WORD, max_tokens=5)
            self.assertEqual(server.health(""), "SERVING")
            self.assertEqual(server.stop(), 0)
        done = subprocess.run([BINARY, "align", self.bad_norm, f"{TESTDATA}/golden_generate.json", "--device", "cpu"],
                              capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("are not finite numbers", done.stderr)
        self.assertNotIn("within the limits", done.stdout)


if __name__ == "__main__":
    testing.main()
