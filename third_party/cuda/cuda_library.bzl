"""cuda_library: one .cu file compiled by nvcc for sm_90a, linked like a cc_library.

Without a toolkit the target exists and is empty, so that its dependants need no conditions.
"""

load("@local_cuda//:cuda.bzl", "CUDA_ENABLED", "CUDA_ROOT")

def _compile_impl(ctx):
    src = ctx.file.src
    out = ctx.actions.declare_file(ctx.label.name + ".o")
    headers = depset(
        ctx.files.hdrs,
        transitive = [d[CcInfo].compilation_context.headers for d in ctx.attr.deps],
    )
    args = ctx.actions.args()
    args.add_all(["-c", src.path, "-o", out.path, "-I.", "-ccbin", "gcc", "-std=c++17", "-O3"])
    args.add_all(["-Xcompiler", "-fPIC", "-lineinfo", "--expt-relaxed-constexpr", "--expt-extended-lambda"])
    args.add_all(["-gencode", "arch=compute_90a,code=sm_90a", "-DSWITCHYARD_CUDA=1"])
    args.add_all(ctx.attr.copts)
    ctx.actions.run(
        executable = CUDA_ROOT + "/bin/nvcc",
        arguments = [args],
        inputs = depset([src], transitive = [headers]),
        outputs = [out],
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin"},
        mnemonic = "Nvcc",
        progress_message = "Compiling %s with nvcc" % src.short_path,
    )
    return [DefaultInfo(files = depset([out]))]

_cuda_object = rule(
    implementation = _compile_impl,
    attrs = {
        "src": attr.label(allow_single_file = [".cu"], mandatory = True),
        "hdrs": attr.label_list(allow_files = True),
        "deps": attr.label_list(providers = [CcInfo]),
        "copts": attr.string_list(),
    },
)

def cuda_library(name, src, hdrs = [], deps = [], copts = [], visibility = None):
    if not CUDA_ENABLED:
        native.cc_library(name = name, hdrs = hdrs, visibility = visibility)
        return
    _cuda_object(name = name + "_object", src = src, hdrs = hdrs, deps = deps, copts = copts)
    native.cc_library(
        name = name,
        srcs = [name + "_object"],
        hdrs = hdrs,
        deps = deps + ["@local_cuda//:libs"],
        visibility = visibility,
        alwayslink = True,
    )
