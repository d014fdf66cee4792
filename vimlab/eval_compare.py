"""`vimlab eval compare A B …`: results side by side, and in what their protocols differ."""

import argparse
import json
from collections.abc import Sequence

from vimlab.config import ConfigError
from vimlab.evals import comparison
from vimlab.paths import place, write_whole


def main(argv: Sequence[str]) -> int:
    """The `eval compare` command."""
    parser = argparse.ArgumentParser(prog="vimlab eval compare", description="Compare results of `vimlab eval`. Each place is a workdir (its newest "
                                     "results), WORKDIR@STEP, or one result file WORKDIR/evals/NAME_STEP.json.")
    parser.add_argument("places", nargs="+", metavar="PLACE")
    parser.add_argument("--out", type=place, help="also write a page, FILE.html, or every figure, FILE.json")
    args = parser.parse_args(argv)
    if len(args.places) < 2:
        raise ConfigError("there is nothing to compare with; name two places or more")
    if args.out and args.out.suffix not in (".html", ".json"):
        raise ConfigError(f"--out {args.out} must end in .html or .json")
    columns = [comparison.read(place) for place in args.places]
    tables = comparison.tables(columns)
    print(comparison.as_text(columns, tables))
    if args.out:
        if args.out.suffix == ".html":
            text = comparison.as_page(columns, tables)
        else:
            text = json.dumps([{"title": c.title, "results": c.results} for c in columns], indent=1) + "\n"
        write_whole(args.out, text.encode())
        print(f"written: {args.out}")
    return 0
