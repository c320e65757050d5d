"""switchyard_proto: C++ messages and gRPC stubs of proto/switchyard/v1/<name>.proto.

Two libraries: `<name>_proto` (messages only, cheap to include) and `<name>_grpc` (service stubs, seconds to
compile: include them in .cc files only).
"""

def switchyard_proto(name, deps = []):
    src = "switchyard/v1/%s.proto" % name
    base = "switchyard/v1/%s" % name
    native.genrule(
        name = name + "_pb_gen",
        srcs = native.glob(["switchyard/v1/*.proto"]),
        outs = [base + ".pb.h", base + ".pb.cc"],
        tools = ["@system//:protoc"],
        cmd = "$(location @system//:protoc) -Iproto --cpp_out=$(RULEDIR) proto/" + src,
    )
    native.genrule(
        name = name + "_grpc_gen",
        srcs = native.glob(["switchyard/v1/*.proto"]),
        outs = [base + ".grpc.pb.h", base + ".grpc.pb.cc"],
        tools = ["@system//:protoc", "@system//:grpc_cpp_plugin"],
        cmd = "$(location @system//:protoc) -Iproto --grpc_out=$(RULEDIR) " +
              "--plugin=protoc-gen-grpc=$(location @system//:grpc_cpp_plugin) proto/" + src,
    )
    native.cc_library(
        name = name + "_proto",
        srcs = [base + ".pb.cc"],
        hdrs = [base + ".pb.h"],
        includes = ["."],
        deps = ["@system//:protobuf"] + [d + "_proto" for d in deps],
    )
    native.cc_library(
        name = name + "_grpc",
        srcs = [base + ".grpc.pb.cc"],
        hdrs = [base + ".grpc.pb.h"],
        includes = ["."],
        deps = [":" + name + "_proto", "@system//:grpc"] + [d + "_grpc" for d in deps],
    )
