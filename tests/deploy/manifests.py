"""The manifests of deploy/kubernetes as kustomize renders them, and their parts.

tests/deploy/rendered/ keeps the rendering of every overlay, so that reading it needs no kustomize. A digest of everything
below deploy/kubernetes in its first line tells whether it is current; tests/deploy/render writes it anew.
"""

import copy
import functools
import hashlib
import pathlib
import re

import yaml

ROOT = pathlib.Path("deploy/kubernetes")
RENDERED = pathlib.Path("tests/deploy/rendered")


def overlays():
    return sorted(path.parent.name for path in ROOT.glob("overlays/*/kustomization.yaml"))


def digest():
    """Of the paths and contents of all inputs."""
    total = hashlib.sha256()
    for path in sorted(p for p in ROOT.rglob("*") if p.is_file()):
        content = path.read_bytes()
        total.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return total.hexdigest()


def header():
    return f"# Written by tests/deploy/render from deploy/kubernetes at {digest()}\n"


@functools.lru_cache(maxsize=None)
def _parsed(overlay):
    with open(RENDERED / f"{overlay}.yaml", encoding="utf-8") as rendered:
        return [item for item in yaml.safe_load_all(rendered) if item]


def load(overlay):
    """The objects of an overlay; the caller's to change."""
    return copy.deepcopy(_parsed(overlay))


def pod_templates(objects):
    """(name, template) of everything that makes pods."""
    for item in objects:
        name = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] in ("Deployment", "StatefulSet"):
            yield name, item["spec"]["template"]
        elif item["kind"] == "LeaderWorkerSet":
            for part in ("leaderTemplate", "workerTemplate"):
                yield f"{name}/{part}", item["spec"]["leaderWorkerTemplate"][part]


def find(objects, kind, name):
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    if len(found) != 1:
        raise LookupError(f"{len(found)} objects {kind}/{name}; there must be one")
    return found[0]


def selects(selector, labels):
    """Whether a label selector's matchLabels (or a service's selector) selects a pod with these labels."""
    wanted = selector.get("matchLabels", {}) if "matchLabels" in selector or not selector else selector
    return all(labels.get(key) == value for key, value in wanted.items())


def expand(text, env):
    """$(NAME) as the kubelet replaces it; $$ is a dollar; unknown names stay as they are."""
    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)",
                  lambda m: "$" if m.group(0) == "$$" else env.get(m.group(1), m.group(0)), text)


def flag(args, name, default=None):
    """The value of --name=value among a container's arguments."""
    for arg in args:
        if arg.startswith(f"--{name}="):
            return arg.partition("=")[2]
    return default


def seconds(duration):
    """30s, 15m, 1h -> seconds."""
    match = re.fullmatch(r"(\d+)(ms|s|m|h)", duration)
    return int(match.group(1)) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[match.group(2)]
