"""`vimlab weights list | verify | add FILE`: which public weight files vimlab can use, which are here, and whether they are whole."""

import argparse
from collections.abc import Sequence

from vimlab import weights


def main(argv: Sequence[str]) -> int:
    """The `weights` command; 1 where `verify` found a damaged file. Raises WeightsError."""
    parser = argparse.ArgumentParser(
        prog="vimlab weights",
        description=f"Weight files are yours to fetch; nothing is downloaded. They lie in {weights.folder()} "
        f"(the environment variable {weights.VARIABLE} names another folder).",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what is known: where it is published, its licence, and whether it is here")
    commands.add_parser("verify", help="hash the files that are here again; exit code 1 if one is damaged")
    add = commands.add_parser("add", help="check a file and copy it into the weights folder")
    add.add_argument("file", nargs="+", help="a fetched file, whatever its name")
    args = parser.parse_args(argv)
    if args.command == "verify":
        return _verify()
    if args.command == "add":
        for file in args.file:
            found = weights.add(file)
            print(f"added {found.known.id} ({found.known.what}): {found.path}")
        return 0
    print(_table())
    return 0


def _table() -> str:
    rows = [("id", "here", "licence", "what", "used for")]
    rows += [(k.id, "yes" if weights.held(k) else "no", k.licence, k.what, k.use) for k in weights.KNOWN.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    places = [f"{k.id}: {k.page}\n  → {weights.folder() / k.files[0]}" for k in weights.KNOWN.values()]
    return "\n".join([*lines, "", "Where each is published, and where to put it (or run `vimlab weights add FILE`):", *places])


def _verify() -> int:
    damaged = 0
    present = [(known, path) for known in weights.KNOWN.values() if (path := weights.held(known))]
    for known, path in present:
        try:
            print(f"{known.id}: whole, sha256 {weights.identify(path).sha256}")
        except weights.WeightsError as error:
            damaged += 1
            print(f"{known.id}: {error}")
    if not present:
        print(f"{weights.folder()} holds none of the known files; `vimlab weights list` says where they are published")
    return int(damaged > 0)
