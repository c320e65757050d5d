"""python_test: a unittest file run by the system's Python, with the built server and the stubs generated from our protos.

Debian's python3-grpcio is the client library: nothing of ours is on that side of the wire.
"""

def python_test(name, src, data = [], size = "medium", args = [], tags = []):
    native.sh_test(
        name = name,
        size = size,
        srcs = ["run_python.sh"],
        args = ["tests/e2e/" + src] + args,
        tags = tags,
        data = [
            src,
            "server.py",
            "testing.py",
            ":python_stubs",
            "//cli:switchyard",
            "//tests/testdata:all",
        ] + data,
    )
