"""deploy/Dockerfile and .dockerignore, as far as they can be checked without a container engine."""

import fnmatch
import pathlib
import re
import subprocess
import unittest

import manifests
import testing

BINARY = "cli/switchyard"
SOURCES = "tests/deploy/binary_sources"  # labels of what the binary is built from
# Of the CUDA toolkit, which has a repository of its own.
CUDA_PACKAGES = {"libcudart": "cuda-cudart-13-0", "libcublas": "libcublas-13-0", "libcublasLt": "libcublas-13-0",
                 "libnccl": "libnccl2"}


class Stage:
    def __init__(self, base, name):
        self.base, self.name, self.steps = base, name, []  # steps: (instruction, rest)


def stages():
    text = pathlib.Path("deploy/Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ")
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(base, name)
        else:
            stage.steps.append((instruction, rest.strip()))
    return found


def steps(name):
    """Of a stage and the stages that it builds upon."""
    stage = stages()[name]
    return (steps(stage.base) if stage.base in stages() else []) + stage.steps


def installed(name):
    """Packages that a stage has beyond its base image."""
    packages = set()
    for instruction, rest in steps(name):
        for arguments in re.findall(r"apt-get install([^&]*)", rest if instruction == "RUN" else ""):
            packages.update(word for word in arguments.split() if not word.startswith("-"))
    return packages


def ignored(path):
    """Whether .dockerignore keeps a path out of the build: the last pattern that matches it, or a folder of it, decides."""
    out = False
    for line in pathlib.Path(".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keep = pattern.startswith("!")
        pattern = pattern.lstrip("!")
        parts = pathlib.PurePath(path).parts
        prefixes = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
        if pattern.startswith("**/"):
            matches = any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
        elif "/" in pattern:
            matches = pattern in prefixes
        else:
            matches = fnmatch.fnmatch(parts[0], pattern)
        if matches:
            out = not keep
    return out


class DockerfileTest(unittest.TestCase):
    def test_the_targets_are_those_of_the_manifests(self):
        images = {c["image"] for o in manifests.overlays() for _, t in manifests.pod_templates(manifests.load(o))
                  for c in t["spec"]["containers"]}
        self.assertEqual(images, {f"switchyard:{target}" for target in ("cpu-demo", "cuda")})
        self.assertLessEqual({"cpu", "cpu-demo", "cuda"}, set(stages()))

    def test_final_images_are_small_unprivileged_and_labelled(self):
        for target in ("cpu", "cpu-demo", "cuda"):
            all_steps = steps(target)
            self.assertEqual([rest for instruction, rest in all_steps if instruction == "USER"][-1], "65532:65532", target)
            self.assertIn(("ENTRYPOINT", '["switchyard"]'), all_steps, target)
            labels = " ".join(rest for instruction, rest in all_steps if instruction == "LABEL")
            for label in ("title", "description", "licenses", "version", "revision"):
                self.assertIn(f"org.opencontainers.image.{label}=", labels, target)
            tools = [p for p in installed(target) if re.search(r"-dev\b|^g\+\+|bazel|gcc|nvcc|python", p)]
            self.assertEqual(tools, [], target)
            copied = [rest for instruction, rest in all_steps if instruction == "COPY"]
            self.assertFalse([c for c in copied if c.startswith(". ")], f"{target}: sources in the final image")

    def test_the_user_is_the_manifests(self):
        for overlay in manifests.overlays():
            for name, template in manifests.pod_templates(manifests.load(overlay)):
                self.assertEqual(template["spec"]["securityContext"]["runAsUser"], 65532, f"{overlay} {name}")

    def test_ports_are_exposed(self):
        exposed = {int(port) for instruction, rest in steps("cpu") if instruction == "EXPOSE" for port in rest.split()}
        for _, template in manifests.pod_templates(manifests.load("cpu-demo")):
            for container in template["spec"]["containers"]:
                self.assertLessEqual({port["containerPort"] for port in container["ports"]}, exposed)

    def test_what_is_copied_is_there(self):
        for name, stage in stages().items():
            for instruction, rest in stage.steps:
                if instruction != "COPY":
                    continue
                words = rest.split()
                if words[0].startswith("--from="):
                    self.assertIn(words[0][len("--from="):], stages(), name)
                    continue
                for source in words[:-1]:
                    if source != ".":
                        self.assertTrue(pathlib.Path(source).exists(), f"{name}: COPY {source}")
                        self.assertFalse(ignored(source), f"{name}: .dockerignore keeps {source} out")

    def test_commands_of_hooks_and_shells_are_in_the_base_image(self):
        # Debian's slim image has its essential packages.
        for overlay in manifests.overlays():
            for _, template in manifests.pod_templates(manifests.load(overlay)):
                for container in template["spec"]["containers"]:
                    for word in (container["lifecycle"]["preStop"]["exec"]["command"][0], container["command"][0]):
                        self.assertIn(word, ("switchyard", "bash", "sleep"))


class ContextTest(unittest.TestCase):
    def sources(self):
        for line in pathlib.Path(SOURCES).read_text(encoding="utf-8").splitlines():
            if line.startswith("//"):
                yield line[2:].replace(":", "/").lstrip("/")

    def test_the_build_sees_all_its_sources(self):
        paths = list(self.sources())
        self.assertGreater(len(paths), 100)
        missing = [path for path in paths if ignored(path)]
        self.assertEqual(missing, [])
        for path in ("WORKSPACE", "BUILD.bazel", ".bazelrc", ".bazelignore", "third_party/rules_cc/cc/defs.bzl",
                     "third_party/coverage/WORKSPACE", "cli/BUILD.bazel"):
            self.assertFalse(ignored(path), path)

    def test_the_rest_stays_out(self):
        for path in (".git/config", "bazel-bin/cli/switchyard", "tests/testdata/zoo-pattern/model.safetensors", "docs/operations.md",
                     "tests/e2e/server.py", "deploy/kubernetes/base/workers.yaml", "cli/__pycache__/x.pyc", "secret.pem"):
            self.assertTrue(ignored(path), path)


class LibrariesTest(unittest.TestCase):
    """The binary of this machine against the packages of the final images, which are of the same Debian."""

    @classmethod
    def setUpClass(cls):
        out = subprocess.run(["ldd", BINARY], capture_output=True, text=True, check=True).stdout
        pairs = [line.strip().partition(" => ") for line in out.splitlines()]
        cls.libraries = {name: path.partition(" ")[0] for name, arrow, path in pairs if arrow}
        # Of merged /usr, packages name either spelling.
        spellings = {}  # path as a package may name it -> library
        for name, path in cls.libraries.items():
            for real in {path, str(pathlib.Path(path).resolve())}:
                for spelling in (real, real.removeprefix("/usr"), "/usr" + real):
                    spellings[spelling] = name
        done = subprocess.run(["dpkg", "-S", *spellings], capture_output=True, text=True, check=False)
        cls.packages = {}  # library -> package
        for line in done.stdout.splitlines():
            package, _, path = line.partition(": ")
            cls.packages[spellings[path]] = package.partition(":")[0]
        done = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Pre-Depends}, ${Depends}\n"],
                              capture_output=True, text=True, check=True)
        cls.depends = {}  # package -> packages, the first of alternatives
        for line in done.stdout.splitlines():
            package, _, rest = line.partition(" ")
            cls.depends[package] = {re.split(r"[\s:(|]", part.strip())[0] for part in rest.split(",") if part.strip()}

    def closure(self, packages):
        """With what they depend on."""
        found, todo = set(), list(packages)
        while todo:
            package = todo.pop()
            if package not in found:
                found.add(package)
                todo += self.depends.get(package, ())
        return found

    def test_every_library_comes_with_the_image(self):
        self.assertGreater(len(self.libraries), 20)
        present = self.closure(installed("cpu"))
        for name, path in self.libraries.items():
            stem = name.partition(".so")[0]
            if stem in CUDA_PACKAGES:
                self.assertIn(CUDA_PACKAGES[stem], installed("cuda"), name)
            else:
                self.assertIn(self.packages.get(name), present, f"{name} ({path}) is in no package of the image")

    def test_no_package_is_there_for_nothing(self):
        self.assertLessEqual(installed("cpu"), set(self.packages.values()))


if __name__ == "__main__":
    testing.main()
