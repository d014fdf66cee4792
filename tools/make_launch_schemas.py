"""Reduces the API schemas of JobSet and Kueue, and gcloud's help, to their structure, for the tests of `vimlab launch`.

    python tools/make_launch_schemas.py --jobset CLONE_OF_JOBSET --kueue CLONE_OF_KUEUE

The clones are git repositories of kubernetes-sigs/jobset and kubernetes-sigs/kueue (both Apache-2.0). Names, types, required
fields, enumerations, bounds and patterns are kept, since they are what a manifest is checked against; descriptions, defaults and
everything else written for people are left out. Of gcloud, which must be installed, the names of flags are kept. What is written names
the repository, the commit and the licence, or the version.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import yaml

OUT = pathlib.Path(__file__).resolve().parents[1] / "tests/launch/schemas"
CRDS = {
    "jobset": ("kubernetes-sigs/jobset", "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml", "v1alpha2", ()),
    # A queue's name is a field of Kueue's own workloads; users give it as a label.
    "kueue_queue_name": ("kubernetes-sigs/kueue", "config/components/crd/bases/kueue.x-k8s.io_workloads.yaml", "v1beta2",
                         ("properties", "spec", "properties", "queueName")),
}  # fmt: skip
GCLOUD = ("queued-resources create", "queued-resources describe", "queued-resources delete", "queued-resources ssh", "queued-resources scp",
          "tpu-vm describe", "tpu-vm ssh", "tpu-vm scp")  # fmt: skip
KEPT = ("type", "required", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobset", required=True, type=pathlib.Path)
    parser.add_argument("--kueue", required=True, type=pathlib.Path)
    args = parser.parse_args(argv)
    for name, (repository, path, version, inner) in CRDS.items():
        clone = args.jobset if repository.endswith("jobset") else args.kueue
        git = lambda *command: subprocess.run(["git", "-C", clone, *command], check=True, capture_output=True, text=True).stdout  # noqa: B023
        crd = yaml.safe_load(git("show", f"HEAD:{path}"))
        schema = next(v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == version)
        for key in inner:
            schema = schema[key]
        source = (f"{version} of https://github.com/{repository} at commit {git('rev-parse', 'HEAD').strip()}, {path}; licence Apache-2.0; reduced "
                  "to its structure by tools/make_launch_schemas.py")
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / f"{name}.json").write_text(json.dumps({"$comment": source, **reduced(schema)}, separators=(",", ":")) + "\n")
        print(f"{OUT / name}.json: {(OUT / f'{name}.json').stat().st_size} bytes")
    (OUT / "gcloud_flags.json").write_text(json.dumps(gcloud_flags(), indent=1) + "\n")
    return 0


def gcloud_flags() -> dict[str, Any]:
    """The flags of the gcloud commands that `vimlab launch tpu-vm` uses, by command."""
    ask = lambda *argv: subprocess.run(["gcloud", *argv], check=True, capture_output=True, text=True).stdout
    flags = {"$comment": f"{ask('--version').splitlines()[0]}; names of flags, by tools/make_launch_schemas.py"}
    for command in GCLOUD:
        text = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", ask("help", "compute", "tpus", *command.split()))
        flags[command] = sorted(set(re.findall(r"^\s+(--[a-z-]+)", text, re.MULTILINE)))
    return flags


def reduced(schema: dict[str, Any]) -> dict[str, Any]:
    """The structure of an OpenAPI schema as a JSON schema that refuses fields it does not know."""
    kept = {key: schema[key] for key in KEPT if key in schema}
    if kept.pop("x-kubernetes-int-or-string", False):
        kept["type"] = ["integer", "string"]
    if "properties" in schema:
        kept["properties"] = {name: reduced(value) for name, value in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        kept["items"] = reduced(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = reduced(schema["additionalProperties"])
    elif not kept.pop("x-kubernetes-preserve-unknown-fields", False) and "properties" in schema:
        kept["additionalProperties"] = False
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
