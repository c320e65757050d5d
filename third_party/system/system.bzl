"""@system: Debian's libraries as cc_library targets, found with pkg-config.

Headers live in /usr/include and need no include path; a target only carries link options.
With SWITCHYARD_STATIC=1 (--config=bundle) archives are linked where Debian has them. A library that is missing makes its target fail at load time with the package to install.
"""

# target -> (pkg-config names, or explicit link options; Debian package)
_PKG_CONFIG = {
    "grpc": (["grpc++"], "libgrpc++-dev"),
    "protobuf": (["protobuf"], "libprotobuf-dev"),
    "pcre2": (["libpcre2-8"], "libpcre2-dev"),
    "ssl": (["libssl", "libcrypto"], "libssl-dev"),
    "absl": ([
        "absl_base",
        "absl_strings",
        "absl_str_format",
        "absl_status",
        "absl_statusor",
        "absl_synchronization",
        "absl_time",
        "absl_flat_hash_map",
        "absl_flat_hash_set",
        "absl_inlined_vector",
        "absl_span",
        "absl_hash",
        "absl_flags",
        "absl_flags_parse",
        "absl_flags_usage",
        "absl_random_random",
        "absl_cleanup",
        "absl_any_invocable",
        "absl_symbolize",
        "absl_failure_signal_handler",
    ], "libabsl-dev"),
}

_LINK_FLAGS = {
    "dnnl": (["-ldnnl", "-lgomp"], "/usr/include/oneapi/dnnl/dnnl.hpp", "libdnnl-dev"),
    "gloo": (["-lgloo"], "/usr/include/gloo/allreduce.h", "libgloo-dev"),
    "gtest": (["-lgtest", "-lgmock", "-lpthread"], "/usr/include/gmock/gmock.h", "libgmock-dev libgtest-dev"),
    "gtest_main": (["-lgtest_main", "-lgtest", "-lgmock", "-lpthread"], "/usr/include/gmock/gmock.h", "libgmock-dev libgtest-dev"),
    "benchmark": (["-lbenchmark", "-lpthread"], "/usr/include/benchmark/benchmark.h", "libbenchmark-dev"),
    "json": ([], "/usr/include/nlohmann/json.hpp", "nlohmann-json3-dev"),
    "prometheus": (["-lprometheus-cpp-core"], "/usr/include/prometheus/registry.h", "prometheus-cpp-dev"),
    "httplib": (["-lcpp-httplib"], "/usr/include/httplib.h", "libcpp-httplib-dev"),
    "spdlog": (["-lspdlog", "-lfmt"], "/usr/include/spdlog/spdlog.h", "libspdlog-dev"),
    "grpc_reflection": (["-lgrpc++_reflection"], "/usr/include/grpcpp/ext/proto_server_reflection_plugin.h", "libgrpc++-dev"),
}

_TOOLS = {
    "protoc": "protobuf-compiler",
    "grpc_cpp_plugin": "protobuf-compiler-grpc",
    "grpc_python_plugin": "protobuf-compiler-grpc",
}

# Of _LINK_FLAGS, those whose Debian packages have an archive beside the shared library.
_STATIC_TOO = ["gtest", "gtest_main", "benchmark", "grpc_reflection"]

# Of glibc: shared always.
_GLIBC = ["-ldl", "-lpthread", "-lrt", "-lm"]

def _static(flags):
    """-lX becomes the archive libX.a; order does not matter inside a group."""
    libraries = [
        "-l:lib%s.a" % f[2:] if f.startswith("-l") and f not in _GLIBC else f
        for f in flags
        if not f.startswith("-Wl,")
    ]
    return ["-Wl,--start-group"] + libraries + ["-Wl,--end-group"]

def _impl(ctx):
    pkg_config = ctx.which("pkg-config")
    if not pkg_config:
        fail("pkg-config is missing: apt-get install pkg-config")
    static = ctx.os.environ.get("SWITCHYARD_STATIC", "0") != "0"
    build = ['package(default_visibility = ["//visibility:public"])\n']
    for name, (modules, package) in _PKG_CONFIG.items():
        result = ctx.execute([pkg_config] + (["--static"] if static else []) + ["--libs"] + modules)
        if result.return_code != 0:
            fail("%s is missing: apt-get install %s\n%s" % (name, package, result.stderr))
        flags = [f for f in result.stdout.strip().split(" ") if f]
        if static:
            flags = _static(flags)
        build.append('cc_library(name = "%s", linkopts = %r)\n' % (name, flags))
    for name, (flags, header, package) in _LINK_FLAGS.items():
        if static and name in _STATIC_TOO:
            flags = _static(flags)
        if not ctx.path(header).exists:
            fail("%s is missing (%s): apt-get install %s" % (name, header, package))
        build.append('cc_library(name = "%s", linkopts = %r)\n' % (name, flags))
    for name, package in _TOOLS.items():
        path = ctx.which(name)
        if not path:
            fail("%s is missing: apt-get install %s" % (name, package))
        ctx.symlink(path, name)
    build.append("exports_files(%r)\n" % list(_TOOLS.keys()))
    ctx.file("BUILD.bazel", "\n".join(build))

system_libraries = repository_rule(
    implementation = _impl,
    local = True,
    configure = True,
    environ = ["SWITCHYARD_STATIC"],
)
