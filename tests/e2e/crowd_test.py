"""A crowd of different requests under a cache too small for them: each gets what it would get alone, nothing leaks."""

import random
import threading
import unittest

import testing
from server import LAYERS, MIXERS, Server, request

NUM_REQUESTS = 64


def draw_request(rng, number):
    """A random request: placement, length, sampling. Returns (prompt, fields, tokens to read before cancelling or None)."""
    kind = rng.random()
    if kind < 0.3:
        placement = [rng.choice(MIXERS)] * LAYERS
    else:
        placement = [rng.choice(MIXERS) for _ in range(LAYERS)]
    prompt = [1] + [rng.randrange(8, 2048) for _ in range(rng.choice([0, 3, 15, 16, 17, 60, 150]))]
    fields = {"placement": placement, "max_tokens": rng.randrange(1, 160), "ignore_eos": True}
    if rng.random() < 0.5:
        fields.update(temperature=1.0, seed=number, top_p=0.95, top_k=50, repetition_penalty=1.1)
    cancel_after = rng.randrange(0, 10) if rng.random() < 0.25 else None
    return prompt, fields, cancel_after


class CrowdTest(unittest.TestCase):
    def run_crowd(self, world_size, *flags):
        rng = random.Random(20)
        requests = [draw_request(rng, number) for number in range(NUM_REQUESTS)]
        with Server("--max-num-seqs", "32", "--max-num-batched-tokens", "96", "--max-waiting-seqs", "1000",
                    "--cache-bytes", "2MiB", "--poison-freed-cache", *flags, world_size=world_size) as server:
            alone = [None if cancel is not None else server.complete(prompt, **fields).ids
                     for prompt, fields, cancel in requests]
            preemptions_before = server.load().num_preemptions
            together, errors = [None] * NUM_REQUESTS, []

            def run(number):
                prompt, fields, cancel_after = requests[number]
                try:
                    if cancel_after is None:
                        together[number] = server.complete(prompt, timeout=300, **fields).ids
                        return
                    stream = server.generation.Generate(request(prompt, **fields), timeout=300)
                    for read, _ in enumerate(stream):
                        if read >= cancel_after:
                            break
                    stream.cancel()
                except Exception as error:  # pylint: disable=broad-except
                    errors.append((number, error))

            threads = [threading.Thread(target=run, args=(number,)) for number in range(NUM_REQUESTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(errors, [])
            for number, ids in enumerate(together):
                if requests[number][2] is None:
                    self.assertEqual(ids, alone[number], f"request {number}: {requests[number][1]}")
            load = server.wait_until_idle()
            self.assertGreater(load.num_preemptions, preemptions_before, "the cache was not small enough")
            self.assertEqual((load.num_blocks_held, load.num_slots_held, load.cache_used_bytes), (0, 0, 0))

    def test_one_rank(self):
        self.run_crowd(1)

    def test_two_ranks(self):
        self.run_crowd(2, "--cache-bytes", "1MiB")

    def test_simple_loop(self):
        self.run_crowd(1, "--async-scheduling=false")


if __name__ == "__main__":
    testing.main()
