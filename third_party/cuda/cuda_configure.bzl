"""@local_cuda: the CUDA toolkit, if there is one.

Writes `cuda.bzl` with CUDA_ENABLED and CUDA_ROOT, and the targets :headers and :libs, which are
empty when no toolkit is found, so that a CPU-only machine builds the same tree.
"""

def _impl(ctx):
    root = ctx.os.environ.get("CUDA_HOME", "/usr/local/cuda")
    enabled = ctx.path(root + "/bin/nvcc").exists and ctx.os.environ.get("SWITCHYARD_CUDA", "1") != "0"
    build = ['package(default_visibility = ["//visibility:public"])\n']
    if enabled:
        ctx.symlink(root + "/include", "include")
        ctx.symlink(root + "/bin/nvcc", "nvcc")
        libdir = root + "/lib64"
        flags = ["-L" + libdir, "-Wl,-rpath," + libdir, "-lcublasLt", "-lcublas", "-lcudart", "-lnccl"]
        build.append('cc_library(name = "headers", hdrs = glob(["include/**"]), includes = ["include"], defines = ["SWITCHYARD_CUDA=1"])\n')
        build.append('cc_library(name = "libs", linkopts = %r, deps = [":headers"])\n' % flags)
    else:
        build.append('cc_library(name = "headers")\n')
        build.append('cc_library(name = "libs")\n')
    ctx.file("BUILD.bazel", "\n".join(build))
    ctx.file("cuda.bzl", "CUDA_ENABLED = %s\nCUDA_ROOT = %r\n" % (enabled, root))

cuda_configure = repository_rule(
    implementation = _impl,
    local = True,
    configure = True,
    environ = ["CUDA_HOME", "SWITCHYARD_CUDA"],
)
