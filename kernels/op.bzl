"""op: one op of kernels/ as one target, out of the files that bear its name.

X.h is the contract, X.cc validates and dispatches, X_cpu*.cc are the CPU implementation. An
X_cuda.cu, where there is one, joins as :X_cuda by being there; it is empty in a build without CUDA.
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
    if native.glob([name + "_cuda.cu"]):
        cuda_library(
            name = name + "_cuda",
            src = name + "_cuda.cu",
            hdrs = native.glob(["*_cuda.h", "cuda_*.h", "*.cuh"]),
            deps = [":contracts"],
        )
        cuda = [":" + name + "_cuda"]
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
