"""`vimlab eval`: a checkpoint's figures, each with its protocol, and the report of the run; and a table of further words."""

import argparse
import dataclasses
import importlib
import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import logging

from vimlab import config as configs
from vimlab import run as runs
from vimlab.checkpoint import Checkpointer
from vimlab.config import ConfigError
from vimlab.evals import EVALUATORS, evaluate, suited
from vimlab.evals.report import write_report
from vimlab.parallel.mesh import MeshConfig
from vimlab.run import Run

# `vimlab eval WORD …`: (module, what it does). Modules are imported when they run.
WORDS = {
    "compare": ("vimlab.eval_compare", "put results side by side, and in what their protocols differ"),
    "prompts": ("vimlab.eval_prompts", "draw a file of prompts: a gallery, or the folders that GenEval and DPG-Bench judge"),
}


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
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--evals", default="", help=f"comma-separated, from: {', '.join(EVALUATORS)}; those that suit the "
                        "model and the data if not given")
    parser.add_argument("--step", default=None, type=int, help="the newest good checkpoint if not given")
    parser.add_argument("--batch-size", default=None, type=int, help="images at a time; changes no figure beyond rounding")
    args = parser.parse_args(argv)

    config = runs.resolve(runs.to_dict(runs.read_config(args.workdir)), overrides)
    evaluators = config.evals.named([n for n in args.evals.split(",") if n])
    # A checkpoint of any mesh is evaluated on all devices of this machine.
    run = Run(dataclasses.replace(config, mesh=MeshConfig()).within(args.workdir), training=False)
    with jax.set_mesh(run.mesh), Checkpointer(args.workdir / "checkpoints") as checkpoints:
        state, _ = runs.restore_weights(checkpoints, run.task, run.shardings, args.step)
        logging.info("evaluating step %d on %d images", state.step, len(run.eval_source or ()))
        subject = run.subject(state, state.step, args.batch_size)
        figures = evaluate(evaluators or config.evals.named(suited(subject)), subject, args.workdir)
    if jax.process_index() == 0:
        width = max(map(len, figures))
        print("\n".join(f"{name:{width}}  {value:.6g}" for name, value in figures.items()))
        print(f"report: {write_report(args.workdir)}")
    return 0


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["eval", *sys.argv[1:]])
