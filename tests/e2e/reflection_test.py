"""A client that knows nothing of our protos learns the API by server reflection and generates text with it."""

import unittest

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
import reflection_pb2

import testing
from server import Server


class ReflectionTest(unittest.TestCase):
    def setUp(self):
        self.server = Server()
        self.channel = grpc.insecure_channel(self.server.target)
        self.addCleanup(self.server.stop)
        self.addCleanup(self.channel.close)

    def ask(self, **query):
        call = self.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
        return next(call(iter([reflection_pb2.ServerReflectionRequest(**query)])))

    def test_generate_with_reflected_types_only(self):
        services = {s.name for s in self.ask(list_services="").list_services_response.service}
        self.assertIn("switchyard.v1.GenerationService", services)
        self.assertIn("grpc.health.v1.Health", services)

        pool = descriptor_pool.DescriptorPool()
        answer = self.ask(file_containing_symbol="switchyard.v1.GenerationService")
        for serialized in reversed(answer.file_descriptor_response.file_descriptor_proto):
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(serialized))
        method = pool.FindServiceByName("switchyard.v1.GenerationService").FindMethodByName("Generate")
        factory = message_factory.MessageFactory(pool)
        request_type = factory.GetPrototype(method.input_type)
        response_type = factory.GetPrototype(method.output_type)

        message = request_type(text="She was")
        message.sampling.temperature = 0
        message.sampling.max_tokens = 12
        stream = self.channel.unary_stream(f"/{method.containing_service.full_name}/{method.name}",
                                           request_serializer=request_type.SerializeToString,
                                           response_deserializer=response_type.FromString)
        events = list(stream(message, timeout=60))
        text = "".join(event.chunk.text for event in events)
        self.assertGreater(sum(c.isalpha() for c in text), 15, text)
        self.assertEqual(events[-1].complete.completion_tokens, 12)


if __name__ == "__main__":
    testing.main()
