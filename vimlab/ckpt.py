"""`vimlab ckpt ls|show|verify|export`: what is in a run's checkpoints, whether it is whole, and how it leaves."""

import argparse
import json
import sys
import time

from vimlab import config, paths
from vimlab.checkpoint import Checkpointer, CheckpointError
from vimlab.checksums import SEAL, damage, read_seal
from vimlab.export import export


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit status, 1 where `verify` finds damage. Raises CheckpointError."""
    parser = argparse.ArgumentParser(prog="vimlab ckpt", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "ls": "list the checkpoints",
        "show": "print a checkpoint's config, versions and arrays (reads no arrays)",
        "verify": "compare every file with its checksum",
        "export": "write model.safetensors and config.json",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("workdir", type=paths.place, help="a run's folder, or its checkpoints")
        if name in ("show", "export"):
            command.add_argument("--step", type=int, help="which checkpoint; by default the newest")
        if name == "export":
            command.add_argument("out", type=paths.place, help="the folder to write")
            command.add_argument("--kind", choices=("inference", "full"), default="inference")
    args = parser.parse_args(argv)
    paths.check(args.workdir, "WORKDIR")
    if args.command == "export":
        paths.check(args.out, "OUT")
        print(f"wrote {export(args.workdir, args.out, args.kind, args.step)} and config.json beside it")
        return 0
    directory = args.workdir / "checkpoints" if (args.workdir / "checkpoints").is_dir() else args.workdir
    if not directory.is_dir():
        raise CheckpointError(f"{args.workdir} does not exist")
    if args.command == "show":
        return _show(Checkpointer(directory), args.step)
    folders = [p for p in directory.iterdir() if p.is_dir() and p.name.split(".")[0].isdigit()]
    if not folders:
        raise CheckpointError(f"{args.workdir} holds no checkpoints")
    folders.sort(key=lambda p: (int(p.name.split(".")[0]), p.name))
    return _list(folders) if args.command == "ls" else _verify([p for p in folders if p.name.isdigit()])


def _list(folders: list[paths.Path]) -> int:
    rows = [("step", "size", "age", "state", "milestone")]
    for folder in folders:
        facts = read_seal(folder)
        stored = paths.files(folder).values()
        size = sum(s.size for s in stored)
        when = facts["time"] if facts else max((s.time for s in stored), default=time.time()) if paths.is_bucket(folder) else folder.stat().st_mtime
        state = "committed" if facts else "damaged" if (folder / SEAL).exists() else "not committed"
        milestone = "yes" if facts and facts["milestone"] else ""
        rows.append((folder.name, f"{size / 1e6:.1f} MB", _age(time.time() - when), state, milestone))
    _table(rows, right=2)
    return 0


def _verify(folders: list[paths.Path]) -> int:
    damaged = False
    for folder in folders:
        reason = damage(folder)
        committed = (folder / SEAL).exists()
        damaged |= committed and reason is not None
        print(f"{folder.name}: {'good' if reason is None else f'DAMAGED, {reason}' if committed else reason}", flush=True)
    return 1 if damaged else 0


def _show(checkpointer: Checkpointer, step: int | None) -> int:
    steps = checkpointer.steps()
    step = checkpointer.latest() if step is None else step
    if step not in steps:
        raise CheckpointError(f"{checkpointer.directory} has no committed checkpoint {step or ''}; it has {steps or 'none'}")
    print(f"checkpoint {checkpointer.directory / str(step)}")
    for key, value in checkpointer.read_meta(step).items():
        print(f"\n{key}:" if isinstance(value, dict) else f"\n{key}: {_short(value)}")
        for name, item in config.flatten(value).items() if isinstance(value, dict) else ():
            print(f"  {name} = {_short(item)}")
    groups: dict[str, list] = {}
    for name, x in checkpointer.arrays(step).items():
        depth = 2 if name.startswith("params/") else 1
        groups.setdefault("/".join(name.split("/")[:depth]), []).append((name, x))
    for group, arrays in groups.items():
        count = sum(x.size for _, x in arrays)
        size = sum(x.size * x.dtype.itemsize for _, x in arrays)
        print(f"\n{group}: {count:,} values in {len(arrays)} arrays, {size / 1e6:.1f} MB")
        if group.startswith("params/"):
            _table([(f"  {name}", str(list(x.shape)), str(x.dtype), f"{x.size:,}") for name, x in arrays])
    return 0


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}…"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _table(rows: list[tuple[str, ...]], right: int = 0) -> None:
    """Prints columns; the first `right` of them are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(w) if i < right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["ckpt", *sys.argv[1:]])
