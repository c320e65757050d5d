"""Reusing what the cache has of a prompt changes no bit of any answer, whatever the placement, and is counted right."""

import random
import unittest

from switchyard.v1 import admin_pb2 as admin
from switchyard.v1 import generation_pb2 as generation

import testing
from server import LAYERS, MIXERS, TESTDATA, TINY, Server, request

BLOCK = 16
RANDOM = random.Random(4)
MIXED = [[MIXERS[(i + k) % len(MIXERS)] for i in range(LAYERS)] for k in range(2)]
PLACEMENTS = [[mixer] * LAYERS for mixer in MIXERS] + MIXED
FLAGS = ["--poison-freed-cache", "--max-num-batched-tokens", "64"]


def draw(length):
    return [RANDOM.randrange(8, 2048) for _ in range(length)]


def answer(server, prompt, **fields):
    """(what must be the same with and without reuse, cached tokens)"""
    fields.setdefault("max_tokens", 12)
    done = server.complete(prompt, ignore_eos=True, logprobs=2, **fields)
    same = (done.ids, [(t.logprob, [(top.token_id, top.logprob) for top in t.top]) for t in done.logprobs])
    return same, done.complete.cached_tokens


class PrefixReuseTest(unittest.TestCase):
    def check_placements(self, placements, model, *flags, world_size=1):
        """A system prompt for three, and a further turn: the same with and without reuse."""
        with Server(*FLAGS, *flags, model=model, world_size=world_size) as reusing, \
                Server(*FLAGS, "--prefix-caching=false", model=model, world_size=world_size) as plain:
            for placement in placements:
                has_state = set(placement) != {"attention"}
                system = draw(5 * BLOCK + 5)
                cached = []
                for user in range(3):
                    prompt = system + draw(20 + user)
                    got, found = answer(reusing, prompt, placement=placement)
                    want, nothing = answer(plain, prompt, placement=placement)
                    self.assertEqual(got, want, (placement, user))
                    self.assertEqual(nothing, 0)
                    cached.append(found)
                # With state, the second leaves a snapshot where it branches off, and the third begins with it.
                self.assertEqual(cached, [0, 0 if has_state else 5 * BLOCK, 5 * BLOCK], placement)
                turn = prompt + got[0] + draw(9)
                got, found = answer(reusing, turn, placement=placement)
                self.assertEqual(got, answer(plain, turn, placement=placement)[0], placement)
                # All of it but the last token, which was never computed; full blocks alone if they are all there is.
                known = len(prompt) + 12 - 1
                self.assertEqual(found, known if has_state else known // BLOCK * BLOCK, placement)
                # The same prompt again: one token at least is computed.
                again, found = answer(reusing, prompt, placement=placement)
                self.assertEqual(again, answer(plain, prompt, placement=placement)[0], placement)
                self.assertGreater(found, 0)
                self.assertLess(found, len(prompt))
            load = reusing.wait_until_idle()
            self.assertEqual((load.num_blocks_held, load.num_slots_held, load.cache_used_bytes), (0, 0, 0))
            self.assertGreater(load.cache_reusable_bytes, 0)
            self.assertGreater(load.prefix_hit_tokens, 0)
            load = plain.wait_until_idle()
            self.assertEqual((load.cache_reusable_bytes, load.prefix_queried_tokens), (0, 0))

    def test_every_mixer_and_mixed_placements(self):
        self.check_placements(PLACEMENTS, TINY)

    def test_two_ranks(self):
        self.check_placements(PLACEMENTS[1:3] + MIXED[:1], TINY, world_size=2)

    def test_simple_loop(self):
        self.check_placements(MIXED[:1], TINY, "--async-scheduling=false")

    def test_all_five_kinds_of_mixer(self):
        model = f"{TESTDATA}/zoo-stochastic5"
        with Server(model=model) as server:
            layers = server.admin.ListMixers(admin.ListMixersRequest()).layers
        names = [[option.name for option in layer.options] for layer in layers]
        placements = [[choices[(i + k) % len(choices)] for i, choices in enumerate(names)] for k in range(len(names[0]))]
        self.run_zoo(model, placements + [[name] * len(names) for name in names[0]])

    def run_zoo(self, model, placements):
        with Server(*FLAGS, model=model) as reusing, Server(*FLAGS, "--prefix-caching=false", model=model) as plain:
            for placement in placements:
                system = [RANDOM.randrange(8, 100) for _ in range(2 * BLOCK + 3)]
                cached = 0
                for user in range(3):
                    prompt = system + [20 + user] * 7
                    got, cached = answer(reusing, prompt, placement=placement, max_tokens=8)
                    self.assertEqual(got, answer(plain, prompt, placement=placement, max_tokens=8)[0], placement)
                self.assertEqual(cached, 2 * BLOCK, placement)

    def test_endings(self):
        """After a stop string, a stop token or a cancellation, what is kept is what was really computed."""
        with Server(*FLAGS) as reusing, Server(*FLAGS, "--prefix-caching=false") as plain:
            for placement in PLACEMENTS:
                prompt = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
                whole = plain.complete(prompt, placement=placement, max_tokens=40, ignore_eos=True)
                ids = plain.generation.Tokenize(generation.TokenizeRequest(text=prompt)).token_ids
                for cut in (11, 19, 30):
                    first = request(prompt, placement=placement, max_tokens=40, ignore_eos=True, stop=[
                        whole.text[cut:cut + 6]])
                    for _ in reusing.generation.Generate(first):
                        pass
                    reusing.complete(prompt, placement=placement, max_tokens=40, ignore_eos=True,
                                     stop_token_ids=[whole.ids[cut]])
                    stream = reusing.generation.Generate(
                        request(prompt, placement=placement, max_tokens=40, ignore_eos=True))
                    next(stream)
                    stream.cancel()
                    for length in (cut - 2, cut, cut + 1, cut + 2):
                        turn = list(ids) + list(whole.ids[:length]) + draw(5)
                        got, found = answer(reusing, turn, placement=placement)
                        self.assertEqual(got, answer(plain, turn, placement=placement)[0], (placement, length))
                        self.assertLess(found, len(turn))
                self.assertGreater(found, 0, placement)

    def test_sampling_knows_the_tokens_that_were_not_computed(self):
        """Penalties count the whole prompt, and draws are numbered as without reuse."""
        ways = [
            {"temperature": 0, "repetition_penalty": 1.7},
            {"temperature": 1.0, "seed": 3, "presence_penalty": 1.5, "frequency_penalty": 0.7, "top_p": 0.9},
            {"temperature": 1.3, "seed": 5, "min_tokens": 9, "stop_token_ids": list(range(0, 2048, 5))},
            {"temperature": 0, "logit_bias": {9: 4.0}, "max_tokens": 1},
        ]
        with Server(*FLAGS) as reusing, Server(*FLAGS, "--prefix-caching=false") as plain:
            for placement in PLACEMENTS:
                words = draw(12)
                system = [RANDOM.choice(words) for _ in range(4 * BLOCK)]
                for _ in range(2):
                    answer(reusing, system + draw(6), placement=placement)
                for number, fields in enumerate(ways):
                    # A few tokens are left to compute; or one, since all before it are cached.
                    for prompt, least in ((system + draw(number + 1), 4 * BLOCK), (system + [words[0]], 4 * BLOCK)):
                        want = answer(plain, prompt, placement=placement, **fields)[0]
                        for _ in range(2):
                            got, found = answer(reusing, prompt, placement=placement, **fields)
                            self.assertEqual(got, want, (placement, fields))
                            self.assertGreaterEqual(found, least)
                            self.assertLess(found, len(prompt))
                one = draw(1)
                self.assertEqual([answer(reusing, one, placement=placement) for _ in range(2)],
                                 [answer(plain, one, placement=placement)] * 2)

    def test_placement_switch(self):
        """A stream that goes on under another placement finds what is kept under that one, and nothing else."""
        with Server(*FLAGS) as server:
            prompt = draw(70)
            alone = [server.complete(prompt, placement=[m] * LAYERS, max_tokens=150, ignore_eos=True).ids
                     for m in ("attention", "gdn")]
            stream = server.generation.Generate(request(prompt, max_tokens=150, ignore_eos=True))
            ids = list(next(stream).chunk.token_ids)
            message = admin.SetDefaultPlacementRequest(in_flight=admin.IN_FLIGHT_RECOMPUTE)
            message.placement.mixers.names.extend(["gdn"] * LAYERS)
            server.admin.SetDefaultPlacement(message, timeout=60)
            for event in stream:
                if event.HasField("chunk"):
                    ids += event.chunk.token_ids
            same = next((i for i, (a, b) in enumerate(zip(alone[0], ids)) if a != b), len(ids))
            fits = same == len(ids)
            for at in range(same, -1, -1):
                if fits:
                    break
                fresh = server.complete(prompt + ids[:at], placement=["gdn"] * LAYERS, max_tokens=150 - at,
                                        ignore_eos=True).ids
                fits = fresh == ids[at:]
            self.assertTrue(fits)

    def test_prompt_logprobs_compute_the_prompt(self):
        with Server(*FLAGS) as server:
            prompt = draw(60)
            results = [server.complete(prompt, max_tokens=2, prompt_logprobs=0).complete for _ in range(2)]
            self.assertEqual([r.cached_tokens for r in results], [0, 0])
            self.assertEqual([t.logprob for t in results[0].prompt_logprobs],
                             [t.logprob for t in results[1].prompt_logprobs])
            self.assertEqual(len(results[1].prompt_logprobs), len(prompt))

    def test_a_crowd_with_shared_prefixes_in_a_small_cache(self):
        rng = random.Random(7)
        systems = [draw(length) for length in (33, 64, 100)]
        requests = []
        for number in range(40):
            prompt = rng.choice(systems) + [rng.randrange(8, 2048) for _ in range(rng.choice([1, 9, 40]))]
            fields = {"placement": rng.choice(PLACEMENTS), "max_tokens": rng.randrange(1, 90), "ignore_eos": True}
            if number < 8:  # at once, and soon too long for all of them
                fields.update(placement=PLACEMENTS[0], max_tokens=100)
            if number % 2:
                fields.update(temperature=1.0, seed=number, top_k=40)
            requests.append((prompt, fields))
        small = ["--cache-bytes", "1536KiB", "--max-num-seqs", "24", "--max-waiting-seqs", "100"]
        with Server(*FLAGS, "--prefix-caching=false") as plain:
            alone = [plain.complete(prompt, **fields).ids for prompt, fields in requests]
        with Server(*FLAGS, *small) as server:
            streams = [server.generation.Generate(request(prompt, **fields), timeout=300) for prompt, fields in requests]
            together = []
            for stream in streams:
                together.append([])
                for event in stream:
                    together[-1] += event.chunk.token_ids
            self.assertEqual(together, alone)
            load = server.wait_until_idle()
            self.assertGreater(load.num_preemptions, 0, "the cache was not small enough")
            self.assertGreater(load.prefix_hit_tokens, 0)
            self.assertEqual((load.num_blocks_held, load.num_slots_held, load.cache_used_bytes), (0, 0, 0))


if __name__ == "__main__":
    testing.main()
