"""`switchyard bench`: every benchmark that a CPU can run, on the bundled model, and the JSON that it leaves."""

import json
import os
import subprocess
import unittest

import testing

SWITCHYARD = "cli/switchyard"
MODEL = "tests/testdata/apriel2-tiny"


def bench(name, *flags, code=0):
    """Runs a benchmark; what it printed, and the JSON that it wrote."""
    path = os.path.join(os.environ["TEST_TMPDIR"], f"{name}.json")
    if os.path.exists(path):
        os.remove(path)
    done = subprocess.run([SWITCHYARD, "bench", name, *flags, "--json", path], timeout=200, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != code:
        raise AssertionError(f"exit code {done.returncode}: {done.stdout}\n{done.stderr}")
    if code != 0:
        return done.stderr, None
    with open(path, encoding="utf-8") as file:
        return done.stdout, json.load(file)


def on_cpu(name, *flags, **more):
    return bench(name, "--model", MODEL, "--device=cpu", "--threads=1", *flags, **more)


class DecodeTest(unittest.TestCase):
    FLAGS = ("--shapes=1x40,3x70", "--steps=4", "--warm-steps=1", "--chunk=32")

    def test_every_placement_and_shape_is_measured(self):
        out, report = on_cpu("decode", "--placement=all-attention,all-gdn,attention+gdn+kda+sliding_window+gdn+gdn",
                             *self.FLAGS)
        self.assertEqual(report["benchmark"], "decode")
        self.assertEqual(report["device"], "cpu")
        self.assertEqual([(r["placement"], r["batch"], r["context"]) for r in report["results"]],
                         [(p, b, c) for p in ("all-attention", "all-gdn", "attention+gdn+kda+sliding_window+gdn+gdn")
                          for b, c in ((1, 40), (3, 70))])
        for ceiling in ("read_gbps", "copy_gbps", "gemm_tflops"):
            self.assertGreater(report["ceilings"][ceiling], 0)
        for row in report["results"]:
            self.assertLessEqual(row["p10_ms"], row["median_ms"])
            self.assertLessEqual(row["median_ms"], row["p90_ms"])
            self.assertGreater(row["p10_ms"], 0)
            self.assertEqual(row["graph_share"], 0)  # a CPU has none
            self.assertLessEqual(row["device_idle_share"], 1)
            self.assertAlmostEqual(row["ratio_to_floor"], row["median_ms"] / row["floor_ms"], places=6)
            self.assertIn(f'{row["batch"]:6d} {row["context"]:8d}', out)
        attention, gdn = report["results"][0], report["results"][2]
        self.assertEqual(attention["state_bytes"], 0)
        self.assertEqual(gdn["kv_bytes"], 0)
        # 6 layers, keys and values of 2 KV heads of 64 in fp32, 40 positions.
        with open(MODEL + "/config.json", encoding="utf-8") as file:
            mixer = json.load(file)["decoder"]["block"]["mixer"]["mixers"]["attention"]
        self.assertEqual(attention["kv_bytes"], 6 * 40 * 2 * mixer["head_groups"] * mixer["head_size"] * 4)

    def test_two_ranks(self):
        _, report = on_cpu("decode", "--tensor-parallel-size=2", *self.FLAGS)
        self.assertEqual(report["world_size"], 2)
        self.assertEqual(len(report["results"]), 2)

    def test_what_does_not_fit_the_model_is_an_error(self):
        for placement, word in (("all-mambo", "all-mambo"), ("1/2/3/4", "6 in all"), ("gdn+gdn", "6 mixers")):
            stderr, _ = on_cpu("decode", "--placement=" + placement, code=1)
            self.assertIn(word, stderr)
        stderr, _ = on_cpu("decode", "--shapes=2by3", code=1)
        self.assertIn("2by3", stderr)
        stderr, _ = on_cpu("decode", "--mixers=gdn", code=1)
        self.assertIn("--random-init", stderr)


class PrefillTest(unittest.TestCase):
    def test_lengths_and_chunks(self):
        _, report = on_cpu("prefill", "--placement=all-kda", "--lengths=64,48", "--chunks=64,16", "--repeats=1")
        self.assertEqual([(r["tokens"], r["chunk"]) for r in report["results"]],
                         [(64, 64), (64, 16), (48, 64), (48, 16)])
        for row in report["results"]:
            self.assertAlmostEqual(row["share_of_gemm"], row["tflops_per_rank"] / report["ceilings"]["gemm_tflops"],
                                   places=6)
        # The same work, in one step or in four.
        self.assertEqual(report["results"][0]["flops_per_rank"], report["results"][1]["flops_per_rank"])


class CollectiveTest(unittest.TestCase):
    def test_latency_by_size(self):
        _, report = bench("collective", "--device=cpu", "--threads=1", "--tensor-parallel-size=2",
                          "--sizes=10000,80000", "--repeats=3")
        self.assertEqual([(r["algorithm"], r["bytes"]) for r in report["results"]],
                         [("default", 10000), ("default", 80000)])
        for row in report["results"]:
            self.assertGreater(row["median_us"], 0)


class ServingTest(unittest.TestCase):
    def test_throughput_and_gaps(self):
        _, report = bench("serving", MODEL, "--device=cpu", "--world-sizes=1", "--concurrency=1,4",
                          "--prompt-tokens=8", "--max-tokens=24", "--placement=all-gdn")
        self.assertEqual([(r["world_size"], r["sequences"]) for r in report], [(1, 1), (1, 4)])
        for row in report:
            self.assertGreater(row["tokens_per_second"], 0)
            self.assertLessEqual(row["ttft_ms"]["p50"], row["ttft_ms"]["p99"])
            self.assertLessEqual(row["token_gap_ms"]["p50"], row["token_gap_ms"]["max"])

    def test_switching_under_load(self):
        _, report = bench("serving", MODEL, "--device=cpu", "--concurrency=4", "--prompt-tokens=8",
                          "--max-tokens=200", "--switch-between=all-gdn,all-attention", "--switch-every=20ms")
        row = report[0]
        self.assertGreater(row["switches"], 0)
        self.assertGreater(row["without_switches"]["longest_gap_ms"], 0)
        self.assertGreater(row["token_gap_ms"]["max"], 0)


class KernelsTest(unittest.TestCase):
    def test_without_a_gpu_it_says_so(self):
        stderr, _ = bench("kernels", "--device=1000", code=1)
        self.assertRegex(stderr, "cuda:1000|no CUDA")


if __name__ == "__main__":
    testing.main()
