"""op: one op of kernels/ as one target, out of the files that bear its name.

X.h is the contract, X.cc validates and dispatches, X_cpu*.cc are the CPU implementation. An
X_cuda.cu and X_*_cuda.cu, where there are any, join by being there, each as a target of its own;
they are empty in a build without CUDA.
"""

load("//third_party/cuda:cuda_library.bzl", "cuda_library")

# Contraction into FMA is the only liberty with results: reductions keep the order written in the
# source, so that bits depend on nothing but the operands, and NaN stays NaN. The last two flags only
# let comparisons become selects, without which loops do not vectorise.
CPU_COPTS = [
    "-O3",
    "-march=x86-64-v3",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]

def op(name, deps = []):
    cuda = []
    for src in native.glob([name + "_cuda.cu", name + "_*_cuda.cu"]):
        cuda_library(
            name = src[:-len(".cu")],
            src = src,
            hdrs = native.glob(["*_cuda.h", "cuda_*.h"]),
            deps = [":contracts"],
        )
        cuda.append(":" + src[:-len(".cu")])
    native.cc_library(
        name = name,
        srcs = native.glob([name + ".cc", name + "_cpu*.cc", name + "_cpu*.h"]),
        hdrs = [name + ".h"],
        copts = CPU_COPTS,
        linkopts = ["-lgomp"],
        deps = [
            ":contracts",
            ":cpu_support",
            ":cuda_fallback",
            ":op_support",
        ] + cuda + deps,
    )
