"""Writes kubernetes-VERSION.json: the strict JSON schemas of the kinds that deploy/kubernetes uses, without their prose.

usage: pip install kubernetes-validate, then: make_schemas.py VERSION...     (1.29 1.31 ...)

That package carries the schemas of every Kubernetes release, generated from its OpenAPI description (Apache License 2.0).
What is written here is what the kinds below reach, so that validation needs no package and no network.
"""

import json
import pathlib
import sys

import kubernetes_validate

KINDS = {
    "v1/ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "v1/Namespace": "io.k8s.api.core.v1.Namespace",
    "v1/PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
    "v1/Service": "io.k8s.api.core.v1.Service",
    "v1/ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
    "apps/v1/Deployment": "io.k8s.api.apps.v1.Deployment",
    "apps/v1/StatefulSet": "io.k8s.api.apps.v1.StatefulSet",
    "autoscaling/v2/HorizontalPodAutoscaler": "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    "networking.k8s.io/v1/NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "policy/v1/PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
}
PREFIX = "/api/_definitions.json#/$defs/"


def trim(schema, found):
    """Drops descriptions and vendor extensions, makes references local and adds what they name to `found`."""
    if isinstance(schema, list):
        return [trim(item, found) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {}
    for key, value in schema.items():
        if key == "description" and isinstance(value, str) or key.startswith("x-kubernetes-"):
            continue
        if key == "$ref":
            name = value.rpartition("#/$defs/")[2]
            found.append(name)
            out[key] = "#/$defs/" + name
        elif key == "properties":
            out[key] = {name: trim(item, found) for name, item in value.items()}
        else:
            out[key] = trim(value, found)
    return out


def main():
    root = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    for version in sys.argv[1:]:
        folder = root / f"v{version}.0-local-strict"
        definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]
        todo = list(KINDS.values())
        # Custom resources hold pods too.
        todo.append("io.k8s.api.core.v1.PodTemplateSpec")
        defs = {}
        while todo:
            name = todo.pop()
            if name not in defs:
                defs[name] = trim(definitions[name], todo)
        kinds = {kind: {"$ref": f"#/$defs/{name}"} for kind, name in KINDS.items()}
        for kind, name in KINDS.items():
            assert defs[name].get("additionalProperties") is False, f"{version}: {kind} is not strict"
        out = pathlib.Path(__file__).parent / f"kubernetes-{version}.json"
        out.write_text(json.dumps({"kinds": kinds, "$defs": defs}, sort_keys=True, separators=(",", ":")) + "\n")
        print(out.name, out.stat().st_size)


main()
