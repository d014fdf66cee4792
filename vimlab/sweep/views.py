"""`vimlab sweep status`, `table`, `plot` and `best`: what a sweep's folder tells, while it runs and after."""

import argparse
import json
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence

from vimlab import exits
from vimlab.config import ConfigError
from vimlab.eval import BEST
from vimlab.evals.wording import leaf, value_of
from vimlab.metrics import clock
from vimlab.paths import write_whole
from vimlab.sweep import page, results, tables
from vimlab.sweep.results import Results
from vimlab.sweep.store import Sweep, chosen, load, total_steps
from vimlab.sweep.trials import Trial

WATCH_SECONDS = 2.0
FORMS: dict[str, Callable[[Results], str]] = {
    ".csv": tables.as_csv,
    ".md": tables.markdown,
    ".json": lambda found: json.dumps(results.as_json(found) | {"findings": found.findings()}, indent=1) + "\n",
    ".html": page.as_page,
}


def status(argv: Sequence[str]) -> int:
    """`vimlab sweep status`."""
    parser = _parser("status", "Show how far each trial is.")
    parser.add_argument("--only", metavar="PATTERN", help="the trials whose names match")
    parser.add_argument("--watch", action="store_true", help="show it again every two seconds, until all trials are done or failed")
    args = parser.parse_args(argv)
    while True:
        sweep = load(args.workdir)
        states = [(trial, *sweep.state(trial)) for trial in chosen(sweep.trials, args.only, None)]
        text = _status(sweep, states)
        print("\x1b[H\x1b[2J" + text if args.watch and sys.stdout.isatty() else text, flush=True)
        if not args.watch or all(state in ("done", "failed") for _, state, _ in states):
            return exits.FINISHED
        time.sleep(WATCH_SECONDS)


def _status(sweep: Sweep, states: Sequence[tuple[Trial, str, str]]) -> str:
    rows = []
    for trial, state, message in states:
        workdir = sweep.workdir(trial)
        step, total = results.progress(workdir), total_steps(workdir)
        seconds = sweep.record(trial).get("seconds")
        rows.append([trial.name, state, f"{step or 0}/{total}" if total else "", clock(seconds) if seconds else "", message])
    words = [state for _, state, _ in states]
    counts = ", ".join(f"{words.count(state)} {state}" for state in dict.fromkeys(words))
    return tables.aligned(["trial", "state", "step", "time", ""], rows) + f"\n\n{len(rows)} trials: {counts}"


def table(argv: Sequence[str]) -> int:
    """`vimlab sweep table`."""
    parser = _parser("table", "Print mean and spread over seeds, and seed by seed the difference from the baseline.")
    _choices(parser)
    parser.add_argument("--csv", action="store_true", help="print one row a trial as CSV")
    parser.add_argument("--out", action="append", default=[], type=pathlib.Path, metavar="FILE", help="also write FILE.md, FILE.csv or FILE.json; "
                        "may be given again")
    args = parser.parse_args(argv)
    for out in args.out:
        if out.suffix not in FORMS:
            raise ConfigError(f"--out {out} must end in {', '.join(FORMS)}")
    found = _collect(args)
    print(tables.as_csv(found) if args.csv else tables.markdown(found), end="")
    _write(found, args.out)
    return exits.FINISHED


def plot(argv: Sequence[str]) -> int:
    """`vimlab sweep plot`."""
    parser = _parser("plot", "Write one HTML page with the tables and curves, which needs nothing beside it.")
    _choices(parser)
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.html", help="the page (sweep.html in the sweep's folder)")
    args = parser.parse_args(argv)
    out = args.out or args.workdir / "sweep.html"
    if out.suffix != ".html":
        raise ConfigError(f"--out {out} must end in .html")
    _write(_collect(args), [out])
    return exits.FINISHED


def best(argv: Sequence[str]) -> int:
    """`vimlab sweep best`."""
    parser = _parser("best", "Name what is best by its mean over seeds, its trials, and the command of the best of them.")
    parser.add_argument("--by", default="", metavar="FIGURE", help="EVALUATOR/FIGURE, or -EVALUATOR/FIGURE where less is better")
    args = parser.parse_args(argv)
    sweep = load(args.workdir)
    report = sweep.report()
    figure = args.by or report.best or BEST[sweep.trials[0].config["task"]]
    name, sign = figure.removeprefix("-"), -1 if figure.startswith("-") else 1
    found = results.collect(sweep, report)
    group, statistic = results.best(found, figure)
    unit = value_of(name, statistic.mean)[1]
    print(f"{group.name}: {leaf(name)} {tables.cell(name, statistic)} {unit}".rstrip() + f" over {len(statistic.values)} seed{'s' * (len(statistic.values) > 1)}, "
          f"the {'lowest' if sign < 0 else 'highest'} of {len(found.groups)}")
    seed = max(statistic.values, key=lambda s: sign * statistic.values[s])
    trial = next(o.trial for o in group.outcomes if o.seed == seed and name in o.figures)
    print(f"its best trial: {sweep.workdir(trial)} ({name} {statistic.values[seed]:.6g})")
    print(shlex.join(["vimlab", *sweep.command(trial, "train")]))
    return exits.FINISHED


def _parser(word: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"vimlab sweep {word}", description=description)
    parser.add_argument("workdir", type=pathlib.Path, help="the --workdir of `vimlab sweep run`")
    return parser


def _choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--columns", default="", metavar="FIGURES", help="comma-separated, as EVALUATOR/FIGURE or train/FIGURE; those of the "
                        "experiment's report, or of all evaluators, if not given")
    parser.add_argument("--baseline", default="", metavar="NAME", help="what the others are compared with, by what it changes")


def _collect(args: argparse.Namespace) -> Results:
    sweep = load(args.workdir)
    return results.collect(sweep, sweep.report(), [c for c in args.columns.split(",") if c], args.baseline)


def _write(found: Results, files: Sequence[pathlib.Path]) -> None:
    for file in files:
        write_whole(file, FORMS[file.suffix](found).encode())
        print(f"written: {file}")
