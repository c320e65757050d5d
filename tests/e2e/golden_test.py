"""Every golden case through the gRPC API: free-running decode and teacher-forced prefill, judged by `switchyard align`.

usage: golden_test.py --world-size=N --max-num-batched-tokens=N
"""

import argparse
import subprocess
import unittest

import testing
from server import BINARY, TESTDATA, TINY, Server

ARGUMENTS = argparse.ArgumentParser()
ARGUMENTS.add_argument("--world-size", type=int, default=1)
ARGUMENTS.add_argument("--max-num-batched-tokens", type=int, default=2048)
OPTIONS = ARGUMENTS.parse_args()


class GoldenTest(unittest.TestCase):
    def align(self, model, *goldens):
        flags = ["--max-num-batched-tokens", str(OPTIONS.max_num_batched_tokens), "--poison-freed-cache"]
        with Server(*flags, model=model, world_size=OPTIONS.world_size) as server:
            for golden in goldens:
                done = subprocess.run(
                    [BINARY, "align", model, f"{TESTDATA}/{golden}", "--target", server.target, "--min-margin", "1e-3",
                     "--max-logprob-difference", "1e-3", "--concurrency", "16"],
                    capture_output=True, text=True, timeout=900)
                print(done.stdout, done.stderr, flush=True)
                self.assertEqual(done.returncode, 0, f"{golden}: {done.stderr or done.stdout[-2000:]}")
            load = server.wait_until_idle()
            self.assertEqual((load.num_blocks_held, load.num_slots_held), (0, 0))

    def test_trained_supernet_under_every_placement(self):
        self.align(TINY, "golden_generate.json")

    def test_statistics_over_six_placements(self):
        self.align(TINY, "golden_stats.json")

    def test_five_mixers_with_random_weights(self):
        self.align(f"{TESTDATA}/zoo-stochastic5", "golden_zoo-stochastic5.json")

    @unittest.skipIf(OPTIONS.world_size > 2, "its 6 attention heads do not divide by 4")
    def test_pattern_decoder_with_biases(self):
        self.align(f"{TESTDATA}/zoo-pattern", "golden_zoo-pattern.json")


if __name__ == "__main__":
    testing.main()
