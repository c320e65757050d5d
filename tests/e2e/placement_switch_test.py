"""Switching the default placement under load, with each policy for the sequences in flight."""

import threading
import unittest

import grpc
from switchyard.v1 import admin_pb2 as admin
from switchyard.v1 import generation_pb2 as generation

import testing
from server import LAYERS, MIXERS, Completion, Server, request

PROMPTS = ["It was", "She had never been", "Mr. Darcy", "The evening", "A letter from", "My dear"]
LENGTH = 300


def switch(server, placement, policy):
    message = admin.SetDefaultPlacementRequest(in_flight=policy)
    if isinstance(placement, str):
        message.placement.preset = placement
    else:
        message.placement.mixers.names.extend(placement)
    return server.admin.SetDefaultPlacement(message, timeout=60)


class PlacementSwitchTest(unittest.TestCase):
    def setUp(self):
        self.server = Server(world_size=2)
        self.addCleanup(self.server.stop)

    def stream_across_a_switch(self, policy, new, extra=None):
        """Starts the prompts on the default, switches once all have begun, and returns (completions, response)."""
        streams = [self.server.generation.Generate(request(p, max_tokens=LENGTH, ignore_eos=True)) for p in PROMPTS]
        if extra is not None:
            streams.append(self.server.generation.Generate(extra))
        completions = [Completion() for _ in streams]
        for stream, completion in zip(streams, completions):
            completion.add(next(stream))

        def drain(stream, completion):
            for event in stream:
                completion.add(event)
        threads = [threading.Thread(target=drain, args=pair) for pair in zip(streams, completions)]
        for thread in threads:
            thread.start()
        response = switch(self.server, new, policy)
        for thread in threads:
            thread.join()
        return completions, response

    def alone(self, prompt, mixer, **fields):
        return self.server.complete(prompt, placement=[mixer] * LAYERS, ignore_eos=True, **fields)

    def test_finish_keeps_every_running_stream_as_it_would_be_alone(self):
        solo = [self.alone(p, "attention", max_tokens=LENGTH).ids for p in PROMPTS]
        completions, response = self.stream_across_a_switch(admin.IN_FLIGHT_FINISH, ["gdn"] * LAYERS)
        self.assertEqual(response.epoch, 2)
        self.assertEqual([c.ids for c in completions], solo)
        for completion in completions:
            self.assertEqual(list(completion.complete.placement.names), ["attention"] * LAYERS)
        after = self.server.complete(PROMPTS[0], max_tokens=20, ignore_eos=True)
        self.assertEqual(after.ids, self.alone(PROMPTS[0], "gdn", max_tokens=20).ids)
        self.assertEqual(after.complete.epoch, 2)

    def test_recompute_continues_as_a_fresh_run_of_the_tokens_so_far(self):
        extra = request(PROMPTS[0], placement=["kda"] * LAYERS, max_tokens=LENGTH, ignore_eos=True)
        completions, response = self.stream_across_a_switch(admin.IN_FLIGHT_RECOMPUTE, ["gdn"] * LAYERS, extra)
        named = completions.pop()
        self.assertEqual(named.ids, self.alone(PROMPTS[0], "kda", max_tokens=LENGTH).ids)  # it named its placement
        self.assertGreater(response.recomputed_sequences, 0)
        recomputed = 0
        for prompt, completion in zip(PROMPTS, completions):
            self.assertEqual(len(completion.ids), LENGTH)
            if list(completion.complete.placement.names) == ["attention"] * LAYERS:
                continue  # it had ended before the switch
            recomputed += 1
            self.assertEqual(list(completion.complete.placement.names), ["gdn"] * LAYERS)
            old = self.alone(prompt, "attention", max_tokens=LENGTH).ids
            same = next((i for i, (a, b) in enumerate(zip(old, completion.ids)) if a != b), LENGTH)
            # Tokens from the switch on are a fresh run's; those before are the old placement's. The switch came at or
            # before the first difference: some split of the stream must fit both.
            fits = []
            prompt_ids = list(self.server.generation.Tokenize(generation.TokenizeRequest(text=prompt)).token_ids)
            for at in range(same, 0, -1):
                fresh = self.alone(prompt_ids + completion.ids[:at], "gdn", max_tokens=LENGTH - at).ids
                if fresh == completion.ids[at:]:
                    fits.append(at)
                    break
            self.assertTrue(fits, prompt)
        self.assertEqual(recomputed, response.recomputed_sequences)

    def test_drain_waits_for_the_running_streams(self):
        solo = [self.alone(p, "attention", max_tokens=LENGTH).ids for p in PROMPTS]
        completions, response = self.stream_across_a_switch(admin.IN_FLIGHT_DRAIN, ["kda"] * LAYERS)
        self.assertEqual([c.ids for c in completions], solo)
        self.assertEqual(list(response.placement.names), ["kda"] * LAYERS)

    def test_presets_can_be_defined_used_listed_and_deleted(self):
        mixed = [MIXERS[i % 4] for i in range(LAYERS)]
        preset = admin.Preset(name="mixed")
        preset.placement.names.extend(mixed)
        self.server.admin.DefinePreset(admin.DefinePresetRequest(preset=preset))
        presets = {p.name: list(p.placement.names)
                   for p in self.server.admin.ListPresets(admin.ListPresetsRequest()).presets}
        self.assertEqual(presets["mixed"], mixed)
        done = self.server.complete("It was", placement="mixed", max_tokens=3)
        self.assertEqual(list(done.complete.placement.names), mixed)
        self.assertEqual(list(switch(self.server, "mixed", admin.IN_FLIGHT_FINISH).placement.names), mixed)
        got = self.server.admin.GetDefaultPlacement(admin.GetDefaultPlacementRequest())
        self.assertEqual((got.preset, list(got.placement.names)), ("mixed", mixed))
        self.server.admin.DeletePreset(admin.DeletePresetRequest(name="mixed"))
        with self.assertRaises(grpc.RpcError) as raised:
            self.server.complete("It was", placement="mixed", max_tokens=3)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_mixers_of_every_layer_are_listed(self):
        layers = self.server.admin.ListMixers(admin.ListMixersRequest()).layers
        self.assertEqual([layer.layer for layer in layers], list(range(LAYERS)))
        for layer in layers:
            self.assertEqual({o.name: (o.type, o.window_size) for o in layer.options},
                             {"attention": ("attention", 0), "sliding_window": ("attention", 64),
                              "gdn": ("gdn", 0), "kda": ("kda", 0)})
            self.assertEqual(layer.main_mixer_name, "attention")


if __name__ == "__main__":
    testing.main()
