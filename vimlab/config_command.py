"""`vimlab config show|diff`: what a config resolves to, and how two differ."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from vimlab import config as configs
from vimlab import paths


def main(argv: Sequence[str]) -> int:
    """The `config` command."""
    argv, overrides = configs.split_overrides(argv)
    parser = argparse.ArgumentParser(prog="vimlab config", description="A CONFIG is a config file (path.py:arg), a workdir, or a config.json.")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print the resolved config, defaults included")
    show.add_argument("config")
    show.add_argument("--json", action="store_true", help="as JSON in place of dotted keys")
    diff = commands.add_parser("diff", help="print the keys whose values differ; exit code 1 if any does")
    diff.add_argument("old")
    diff.add_argument("new", help="overrides (--config.a.b=v) apply to this one")
    args = parser.parse_args(argv)
    if args.command == "show":
        tree = _read(args.config, overrides)
        print(json.dumps(tree, indent=1) if args.json else "\n".join(f"{k} = {v!r}" for k, v in configs.flatten(tree).items()))
        return 0
    differences = configs.diff(_read(args.old), _read(args.new, overrides))
    for key, (old, new) in differences.items():
        print(f"{key}: {old!r} → {new!r}")
    return 1 if differences else 0


def _read(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    from vimlab import run as runs

    path = paths.place(spec)
    paths.check(path, "the config")
    if path.is_dir():
        path = path / "config.json"
    config = json.loads(path.read_text()) if path.suffix == ".json" and path.is_file() else configs.load(spec)
    return runs.to_dict(runs.resolve(config, overrides))
