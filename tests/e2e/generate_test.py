"""What an application sees: streamed text, every sampling parameter, log-probabilities, tokenisation, health."""

import json
import unittest

import grpc
import health_pb2
from switchyard.v1 import generation_pb2 as generation

import testing
from server import LAYERS, MIXERS, TESTDATA, Server, request

PROMPT = "It is a truth universally acknowledged, that a single man"


class GenerateTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(world_size=2)

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0, cls.server.stderr_lines

    def test_text_streams_and_equals_the_detokenised_ids(self):
        done = self.server.complete(PROMPT, max_tokens=40)
        self.assertGreater(done.num_chunks, 1)
        self.assertEqual(len(done.ids), 40)
        self.assertEqual(done.complete.finish_reason, generation.FINISH_REASON_LENGTH)
        self.assertEqual(done.complete.completion_tokens, 40)
        text = self.server.generation.Detokenize(
            generation.DetokenizeRequest(token_ids=done.ids, skip_special_tokens=True)).text
        self.assertEqual(done.text, text)

    def test_text_prompt_equals_its_token_ids(self):
        ids = self.server.generation.Tokenize(generation.TokenizeRequest(text=PROMPT)).token_ids
        self.assertEqual(ids[0], 1)  # BOS
        by_text = self.server.complete(PROMPT, max_tokens=12)
        by_ids = self.server.complete(list(ids), max_tokens=12)
        self.assertEqual(by_text.ids, by_ids.ids)
        self.assertEqual(by_text.complete.prompt_tokens, len(ids))

    def test_every_single_mixer_placement_writes_words(self):
        texts = {m: self.server.complete(PROMPT, placement=[m] * LAYERS, max_tokens=24).text for m in MIXERS}
        for mixer, text in texts.items():
            self.assertGreater(sum(c.isalpha() for c in text), 40, f"{mixer}: {text!r}")
        self.assertEqual(len(set(texts.values())), len(MIXERS))

    def test_complete_names_the_placement_it_ran_on(self):
        placement = ["gdn", "attention", "kda", "sliding_window", "gdn", "attention"]
        done = self.server.complete(PROMPT, placement=placement, max_tokens=2)
        self.assertEqual(list(done.complete.placement.names), placement)

    def test_same_seed_gives_the_same_tokens_and_another_seed_others(self):
        def draw(seed):
            return self.server.complete(PROMPT, max_tokens=24, temperature=1.0, seed=seed).ids
        self.assertEqual(draw(7), draw(7))
        self.assertNotEqual(draw(7), draw(8))

    def test_top_k_one_is_greedy_at_any_temperature(self):
        greedy = self.server.complete(PROMPT, max_tokens=16).ids
        self.assertEqual(self.server.complete(PROMPT, max_tokens=16, temperature=3.0, top_k=1, seed=1).ids, greedy)
        self.assertEqual(self.server.complete(PROMPT, max_tokens=16, temperature=3.0, top_p=1e-6, seed=1).ids, greedy)
        self.assertEqual(self.server.complete(PROMPT, max_tokens=16, temperature=3.0, min_p=1.0, seed=1).ids, greedy)

    def test_stop_string_cuts_the_text_before_it(self):
        text = self.server.complete(PROMPT, max_tokens=40).text
        stop = text[10:16]
        done = self.server.complete(PROMPT, max_tokens=40, stop=[stop])
        self.assertEqual(done.text, text[:text.index(stop)])
        self.assertEqual(done.complete.finish_reason, generation.FINISH_REASON_STOP)

    def test_stop_token_id_ends_and_min_tokens_forbids_it_before(self):
        ids = self.server.complete(PROMPT, max_tokens=20).ids
        stop = ids[5]
        first = ids.index(stop)
        done = self.server.complete(PROMPT, max_tokens=20, stop_token_ids=[stop])
        self.assertEqual(done.complete.finish_reason, generation.FINISH_REASON_STOP)
        self.assertEqual(done.complete.completion_tokens, first + 1)
        later = self.server.complete(PROMPT, max_tokens=20, stop_token_ids=[stop], min_tokens=12)
        self.assertGreaterEqual(later.complete.completion_tokens, 12)
        self.assertNotIn(stop, later.ids[:11])

    def test_eos_ends_unless_ignored(self):
        eos = 2
        done = self.server.complete(PROMPT, max_tokens=8, logit_bias={eos: 100.0})
        self.assertEqual(done.complete.finish_reason, generation.FINISH_REASON_STOP)
        self.assertEqual(done.complete.completion_tokens, 1)
        self.assertEqual(done.text, "")  # a special token leaves no text
        ignored = self.server.complete(PROMPT, max_tokens=8, logit_bias={eos: 100.0}, ignore_eos=True)
        self.assertEqual(ignored.ids, [eos] * 8)
        shown = self.server.complete(PROMPT, max_tokens=3, logit_bias={eos: 100.0}, ignore_eos=True,
                                     skip_special_tokens=False)
        self.assertEqual(shown.text, "</s>" * 3)

    def test_logit_bias_forbids_and_forces(self):
        first = self.server.complete(PROMPT, max_tokens=1).ids[0]
        self.assertNotEqual(self.server.complete(PROMPT, max_tokens=1, logit_bias={first: -100.0}).ids[0], first)
        self.assertEqual(self.server.complete(PROMPT, max_tokens=3, logit_bias={77: 100.0}).ids, [77] * 3)

    def test_penalties_change_a_repeating_continuation(self):
        forced = {77: 30.0}  # repeats one token for ever
        plain = self.server.complete(PROMPT, max_tokens=24, logit_bias=forced).ids
        self.assertEqual(plain, [77] * 24)
        for penalty in ({"frequency_penalty": 2.0}, {"repetition_penalty": 5.0}):
            ids = self.server.complete(PROMPT, max_tokens=24, logit_bias=forced, **penalty).ids
            self.assertIn(77, ids)
            self.assertGreater(len(set(ids)), 1, penalty)

    def test_logprobs_of_generated_tokens(self):
        done = self.server.complete(PROMPT, max_tokens=6, logprobs=3)
        self.assertEqual(len(done.logprobs), 6)
        for token, entry in zip(done.ids, done.logprobs):
            self.assertEqual(len(entry.top), 3)
            self.assertEqual(entry.top[0].token_id, token)  # greedy
            self.assertAlmostEqual(entry.top[0].logprob, entry.logprob, places=5)
            self.assertGreaterEqual(entry.top[0].logprob, entry.top[1].logprob)
        own = self.server.complete(PROMPT, max_tokens=6, logprobs=0)
        self.assertEqual([len(entry.top) for entry in own.logprobs], [0] * 6)
        self.assertEqual(self.server.complete(PROMPT, max_tokens=6).logprobs, [])

    def test_prompt_logprobs_have_an_empty_first_position(self):
        done = self.server.complete(PROMPT, max_tokens=1, prompt_logprobs=2)
        entries = done.complete.prompt_logprobs
        self.assertEqual(len(entries), done.complete.prompt_tokens)
        self.assertEqual(len(entries[0].top), 0)
        self.assertEqual(entries[0].logprob, 0)
        for entry in entries[1:]:
            self.assertEqual(len(entry.top), 2)
            self.assertLess(entry.logprob, 0)

    def test_max_tokens_beyond_the_context_ends_at_the_context(self):
        info = self.server.generation.GetModelInfo(generation.GetModelInfoRequest())
        prompt = [1] + [300] * (info.max_context_tokens - 6)
        done = self.server.complete(prompt, placement=["gdn"] * LAYERS, max_tokens=100, ignore_eos=True)
        self.assertEqual(done.complete.finish_reason, generation.FINISH_REASON_LENGTH)
        self.assertEqual(len(prompt) + len(done.ids), info.max_context_tokens)

    def test_golden_tokenizer_through_the_api(self):
        with open(f"{TESTDATA}/golden_tokenizer.json", encoding="utf-8") as golden:
            cases = json.load(golden)["cases"]
        for case in cases:
            with self.subTest(text=case["text"][:40]):
                tokenize = lambda special: list(self.server.generation.Tokenize(  # noqa: E731
                    generation.TokenizeRequest(text=case["text"], add_special_tokens=special)).token_ids)
                detokenize = lambda skip: self.server.generation.Detokenize(  # noqa: E731
                    generation.DetokenizeRequest(token_ids=case["ids"], skip_special_tokens=skip)).text
                self.assertEqual(tokenize(True), case["ids"])
                self.assertEqual(tokenize(False), case["ids_no_special"])
                self.assertEqual(detokenize(True), case["decoded"])
                self.assertEqual(detokenize(False), case["decoded_with_special"])

    def test_model_info(self):
        info = self.server.generation.GetModelInfo(generation.GetModelInfoRequest())
        self.assertEqual((info.vocab_size, info.num_layers, info.max_context_tokens), (2048, LAYERS, 4096))
        self.assertEqual(list(info.eos_token_ids), [2])
        self.assertTrue(info.has_tokenizer)
        self.assertEqual(list(info.default_placement.names), ["attention"] * LAYERS)

    def test_health_of_the_server_and_of_its_services(self):
        with grpc.insecure_channel(self.server.target) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check",
                                        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                                        response_deserializer=health_pb2.HealthCheckResponse.FromString)
            for service in ["", "switchyard.v1.GenerationService"]:
                status = check(health_pb2.HealthCheckRequest(service=service)).status
                self.assertEqual(status, health_pb2.HealthCheckResponse.SERVING, service)

    def test_request_id_is_kept_or_assigned(self):
        events = list(self.server.generation.Generate(request(PROMPT, request_id="mine", max_tokens=2)))
        self.assertEqual({event.request_id for event in events}, {"mine"})
        events = list(self.server.generation.Generate(request(PROMPT, max_tokens=2)))
        self.assertEqual(len({event.request_id for event in events}), 1)
        self.assertTrue(events[0].request_id)


if __name__ == "__main__":
    testing.main()
