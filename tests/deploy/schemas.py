"""Validates objects against the JSON schemas of a Kubernetes version, strictly: unknown fields are errors."""

import json
import pathlib

import jsonschema

FOLDER = pathlib.Path("tests/deploy/schemas")


def versions():
    return sorted((path.stem.partition("-")[2] for path in FOLDER.glob("kubernetes-*.json")),
                  key=lambda v: [int(part) for part in v.split(".")])


class Schemas:
    def __init__(self, version):
        with open(FOLDER / f"kubernetes-{version}.json", encoding="utf-8") as file:
            self._document = json.load(file)
        with open(FOLDER / "custom.json", encoding="utf-8") as file:
            custom = json.load(file)
        # Custom resources hold pod templates: their schemas refer to this version's.
        self._document["kinds"].update(custom["kinds"])
        self._document["$defs"].update(custom["$defs"])

    def errors(self, item):
        """Lines that say where and what; empty if the object is valid."""
        kind = f"{item.get('apiVersion')}/{item.get('kind')}"
        if kind not in self._document["kinds"]:
            return [f"no schema for {kind}"]
        schema = {**self._document["kinds"][kind], "$defs": self._document["$defs"]}
        validator = jsonschema.Draft202012Validator(schema)
        return [f"{kind} {item.get('metadata', {}).get('name')}: {'.'.join(map(str, error.absolute_path))}: {error.message}"
                for error in validator.iter_errors(item)]
