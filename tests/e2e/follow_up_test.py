"""A conversation: a follow-up turn whose prompt extends the first gives what one long prompt gives, for every mixer."""

import unittest

import testing
from server import LAYERS, MIXERS, Server

FIRST = [1] + list(range(300, 370))
SECOND = list(range(900, 960))


class FollowUpTest(unittest.TestCase):
    def test_prefill_decode_prefill_equals_one_long_prefill(self):
        with Server("--max-num-batched-tokens", "48", world_size=2) as server:
            for mixer in MIXERS:
                placement = [mixer] * LAYERS
                turn = server.complete(FIRST, placement=placement, max_tokens=20, ignore_eos=True)
                extended = FIRST + turn.ids + SECOND
                follow_up = server.complete(extended, placement=placement, max_tokens=20, ignore_eos=True,
                                            prompt_logprobs=0)
                with Server(world_size=1) as fresh:
                    whole = fresh.complete(extended, placement=placement, max_tokens=20, ignore_eos=True,
                                           prompt_logprobs=0)
                self.assertEqual(follow_up.ids, whole.ids, mixer)
                for a, b in zip(follow_up.complete.prompt_logprobs, whole.complete.prompt_logprobs):
                    self.assertAlmostEqual(a.logprob, b.logprob, delta=1e-3)


if __name__ == "__main__":
    testing.main()
