"""op_test: one test body for every device.

X_test runs it on the CPU; X_gpu_test, where there is a CUDA toolkit, is the same source on the
first GPU, tagged `gpu`.
"""

load("@local_cuda//:cuda.bzl", "CUDA_ENABLED")

def op_test(name, deps, **kwargs):
    src = name + ".cc"
    deps = deps + [
        ":device_fixture",
        "@system//:gtest_main",
    ]
    native.cc_test(
        name = name,
        srcs = [src],
        deps = deps,
        **kwargs
    )
    if CUDA_ENABLED:
        native.cc_test(
            name = name.replace("_test", "_gpu_test"),
            srcs = [src],
            local_defines = ["SWITCHYARD_TEST_CUDA"],
            tags = ["gpu"],
            visibility = ["//deploy:__pkg__"],
            deps = deps,
            **kwargs
        )
