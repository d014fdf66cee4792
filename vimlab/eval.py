"""`vimlab eval`: a checkpoint's figures, each with its protocol, and the report of the run; and a table of further words."""

import argparse
import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Iterator, Sequence

import jax
from absl import logging

from vimlab import config as configs
from vimlab import paths
from vimlab import run as runs
from vimlab.checkpoint import Checkpointer, CheckpointError
from vimlab.config import ConfigError
from vimlab.evals import EVALUATORS, evaluate, suited
from vimlab.evals.report import write_report
from vimlab.parallel import exchange, multihost
from vimlab.parallel.mesh import MeshConfig
from vimlab.run import Run

# `vimlab eval WORD …`: (module, what it does). Modules are imported when they run.
WORDS = {
    "compare": ("vimlab.eval_compare", "put results side by side, and in what their protocols differ"),
    "prompts": ("vimlab.eval_prompts", "draw a file of prompts: a gallery, or the folders that GenEval and DPG-Bench judge"),
}

BEST = {"tokenizer": "reconstruction/psnr", "generator": "-likelihood/bits_per_token"}
WATCH_SECONDS = 10.0


def main(argv: Sequence[str]) -> int:
    """The `eval` command."""
    if argv and not argv[0].startswith("-"):
        if argv[0] not in WORDS:
            raise ConfigError(f"there is no `vimlab eval {argv[0]}`{configs.suggest(argv[0], WORDS)} (there are {', '.join(WORDS)}, or flags)")
        return importlib.import_module(WORDS[argv[0]][0]).main(argv[1:])
    argv, overrides = configs.split_overrides(argv)
    parser = argparse.ArgumentParser(prog="vimlab eval", description="Evaluate a checkpoint of a run. Keys of the run's config can be set with "
                                     "--config.data.eval=… and --config.evals.…=…",
                                     epilog=" ".join(f"`vimlab eval {word} …` is to {text}." for word, (_, text) in WORDS.items()))
    parser.add_argument("--workdir", required=True, type=paths.place, help="of the run, here or in a bucket")
    parser.add_argument("--evals", default="", help=f"comma-separated, from: {', '.join(EVALUATORS)}; those that suit the "
                        "model and the data if not given")
    parser.add_argument("--step", default="newest", help="a checkpoint's step, newest (the newest good one), best (by the figure of --best), or all")
    parser.add_argument("--best", default="", metavar="FIGURE", help="EVALUATOR/FIGURE that --step best goes by, -EVALUATOR/FIGURE where less "
                        f"is better (for tokenizers {BEST['tokenizer']}, for generators {BEST['generator']})")
    parser.add_argument("--watch", action="store_true", help="evaluate each checkpoint as it appears, until that of the last step")
    multihost.add_flags(parser)
    args = parser.parse_args(argv)
    with multihost.joined(args):
        return _evaluate_steps(args, overrides)


def _evaluate_steps(args: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> int:
    config = runs.resolve(runs.to_dict(runs.read_config(args.workdir)), overrides)
    names = [n for n in args.evals.split(",") if n]
    config.evals.named(names)  # An unknown name is an error before any data is opened.
    exchange.compare("evaluation", {"workdir": str(args.workdir), "evals": names, "step": args.step, "config": runs.to_dict(config)})
    # A checkpoint of any mesh is evaluated on all devices of this machine.
    config = dataclasses.replace(config, mesh=MeshConfig()).within(args.workdir)
    run = Run(config, training=False, trained_on=runs.trained_on(args.workdir))
    with jax.set_mesh(run.mesh), Checkpointer(args.workdir / "checkpoints") as checkpoints:
        for step in _steps(args, run, checkpoints):
            _evaluate(run, checkpoints, step, names, args)
    return 0


def _evaluate(run: Run, checkpoints: Checkpointer, step: int | None, names: Sequence[str], args: argparse.Namespace) -> None:
    state, meta = runs.restore_weights(checkpoints, run.task, run.shardings, step)
    runs.check_identity(run.task, meta, args.workdir)
    logging.info("evaluating step %d on %d images", state.step, len(run.eval_source or ()))
    subject = run.subject(state, state.step)
    figures = evaluate(run.config.evals.named(names or suited(subject)), subject, args.workdir)
    if jax.process_index() == 0:
        width = max(map(len, figures))
        print("\n".join(f"{name:{width}}  {value:.6g}" for name, value in figures.items()))
        print(f"report: {write_report(args.workdir)}", flush=True)


def _steps(args: argparse.Namespace, run: Run, checkpoints: Checkpointer) -> Iterator[int | None]:
    """The checkpoints that are asked for, by step; None is the newest good one. Raises ConfigError."""
    if args.watch:
        if args.step != "newest":
            raise ConfigError(f"--watch evaluates every new checkpoint, so --step {args.step} has no place beside it; leave one of them out")
        yield from _appearing(args, run, checkpoints)
    elif args.step == "newest":
        yield None
    elif args.step == "all":
        steps = exchange.first(checkpoints.steps)
        if not steps:
            raise CheckpointError(f"{checkpoints.directory} holds no finished checkpoint yet")
        yield from steps
    elif args.step == "best":
        yield exchange.first(lambda: _best(args.workdir, args.best or BEST[run.config.NAME], checkpoints.steps()))
    elif args.step.isdigit():
        yield int(args.step)
    else:
        raise ConfigError(f"--step is {args.step!r}, but must be a step, newest, best or all")


def _appearing(args: argparse.Namespace, run: Run, checkpoints: Checkpointer) -> Iterator[int]:
    """Checkpoints as they are committed, the newest where several appeared meanwhile; ends after the last step's."""
    last = None
    while last is None or last < run.total_steps:
        newest = exchange.first(checkpoints.latest)
        if newest is not None and newest != last:
            last = newest
            yield newest
        else:
            time.sleep(WATCH_SECONDS)


def _best(workdir: paths.Path, figure: str, steps: Sequence[int]) -> int:
    """The step whose figure, as it was measured before, is highest, or lowest after a minus sign, among checkpoints still there."""
    evaluator, _, name = figure.removeprefix("-").partition("/")
    found = {}
    for step in steps:
        path = workdir / "evals" / f"{evaluator}_{step:08d}.json"
        value = json.loads(path.read_text())["metrics"].get(name) if path.exists() else None
        if value is not None:
            found[step] = -value if figure.startswith("-") else value
    if not found:
        raise ConfigError(f"--step best goes by {figure}, but of the checkpoints at {list(steps)} none has it yet; name another figure with "
                          "--best, or evaluate with --step all first")
    return max(found, key=found.get)


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["eval", *sys.argv[1:]])
