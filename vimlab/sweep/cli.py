"""`vimlab sweep`: run trials, see how far they are, compare them."""

import argparse
import importlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from vimlab import config as configs
from vimlab import exits, paths
from vimlab.config import ConfigError
from vimlab.evals import EvalsConfig
from vimlab.sweep import experiment as experiments
from vimlab.sweep.runner import Runner, launched
from vimlab.sweep.store import Sweep, chosen
from vimlab.sweep.trials import Trial, make_trials

LAUNCHERS = ("local", "slurm", "gke", "tpu-vm")
# `vimlab sweep WORD …`: (module, what it does).
WORDS = {
    "run": ("vimlab.sweep.cli", "run, or go on with, the trials of an experiment or of a config and --over key=values"),
    "status": ("vimlab.sweep.views", "show how far each trial is"),
    "table": ("vimlab.sweep.views", "print the figures, mean and spread over seeds, and differences from the baseline"),
    "plot": ("vimlab.sweep.views", "write a page with tables and curves"),
    "best": ("vimlab.sweep.views", "name the best trial"),
}


def main(argv: Sequence[str]) -> int:
    """The `sweep` command."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: vimlab sweep WORD …\n\n" + "\n".join(f"  {word:6}  {text}" for word, (_, text) in WORDS.items()))
        print("\n`vimlab sweep WORD --help` says more.")
        return exits.FINISHED if argv else exits.USER_ERROR
    if argv[0] not in WORDS:
        raise ConfigError(f"there is no `vimlab sweep {argv[0]}`{configs.suggest(argv[0], WORDS)} (there are {', '.join(WORDS)})")
    return getattr(importlib.import_module(WORDS[argv[0]][0]), argv[0])(argv[1:])


def run(argv: Sequence[str]) -> int:
    """`vimlab sweep run`. Returns 0 where all chosen trials are done or submitted, 1 where one failed, else 75: the same command goes on."""
    argv, overrides = configs.split_overrides(argv)
    args = _run_parser().parse_args(argv)
    folder = args.trials or args.workdir / "trials"
    _check(args, folder)

    experiment = experiments.read(args.target, args.over, args.base_arg)
    trials, same = make_trials(experiment.base, experiment.sweep(), overrides)
    evals = experiment.evals if args.evals is None else args.evals
    evals = ",".join(EvalsConfig().named([name for name in evals.split(",") if name]))  # An unknown name is an error now.
    sweep = Sweep(args.workdir, folder, args.target, tuple(args.over), tuple(args.base_arg), experiment.base, evals, tuple(trials))
    wanted = chosen(trials, args.only, args.index)
    print(f"{len(trials)} trials" + (f" ({same} more are the same as others)" if same else "") + (f", of which {len(wanted)} here" * (wanted != trials)))
    program, launch = shlex.split(args.program), [] if args.launcher == "local" else [args.launcher, *shlex.split(args.launcher_args)]
    if args.dry_run or (launch and "--run" not in launch):
        return _show(sweep, wanted, launch, [] if args.dry_run else program)
    sweep.write()
    runner = Runner(sweep, program, launch, args.retry_failed)
    states = list(runner.run(wanted, args.parallel).values())
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    if "failed" in states:
        return exits.FAILED
    return exits.FINISHED if set(states) <= {"done", "submitted"} else exits.RESTART


def _show(sweep: Sweep, trials: Sequence[Trial], launch: Sequence[str], program: Sequence[str]) -> int:
    """Prints the commands of trials; with a program, has it say what each launch would do. Returns the first exit code that is not 0, else 0."""
    codes = [exits.FINISHED]
    for trial in trials:
        for stage in ("train", "eval") if sweep.evals else ("train",):
            command = launched(sweep, trial, stage, launch)
            print(shlex.join(["vimlab", *command]), flush=True)
            if program:
                codes.append(subprocess.run([*program, *command]).returncode)
    return next(filter(None, codes), exits.FINISHED)


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vimlab sweep run", description="Run the trials of a sweep. The same command goes on with what is "
                                     "unfinished and leaves what is done. --config.key=value is set in every trial.")
    parser.add_argument("target", help="an experiment file, or a config file as for `vimlab train`")
    parser.add_argument("--workdir", required=True, type=paths.place, help="folder of the sweep; trials have folders of their own below it")
    parser.add_argument("--trials", type=paths.place, metavar="FOLDER", help="folder of the trials' own workdirs (WORKDIR/trials); for launchers a "
                        "place that their machines see")
    parser.add_argument("--over", action="append", default=[], metavar="KEY=VALUES", help="sweep a config's key over comma-separated values; "
                        "several make a grid")
    parser.add_argument("--base-arg", action="append", default=[], metavar="NAME=VALUE", help="an argument for the config, as in data=PATH")
    parser.add_argument("--evals", help="evaluators that `vimlab eval` runs after each training, comma-separated")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("--only", metavar="PATTERN", help="the trials whose names match, as in 'dim=8*'")
    parser.add_argument("--index", metavar="I/N", help="every N-th trial from the I-th on, from 0: for several machines on one --workdir")
    parser.add_argument("--parallel", type=int, default=1, metavar="K", help="trials at a time")
    parser.add_argument("--retry-failed", action="store_true", help="also run what failed before")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local", help="local runs trials here; the others hand each to `vimlab launch`")
    parser.add_argument("--launcher-args", default="", metavar="WORDS", help="further words for `vimlab launch`, as in "
                        "--launcher-args='--nodes 1 --run'; without --run among them nothing is started, and each launch is only shown")
    parser.add_argument("--program", default=f"{shlex.quote(sys.executable)} -m vimlab", help="what `vimlab` is called as (%(default)s)")
    return parser


def _check(args: argparse.Namespace, folder: paths.Path) -> None:
    """Raises ConfigError for options that cannot be."""
    if args.parallel < 1:
        raise ConfigError(f"--parallel is {args.parallel}, but must be at least 1")
    if args.launcher_args and args.launcher == "local":
        raise ConfigError("--launcher-args has no meaning for --launcher local, which runs plain processes")
    if not args.program.strip() or shutil.which(shlex.split(args.program)[0]) is None:
        raise ConfigError(f"--program {args.program!r} does not begin with a program that is found here; give what `vimlab` is called as")
    paths.refuse_bucket(args.workdir, "--workdir", "runners lock trials there; keep it on this machine and put the trials there with --trials")
    paths.check(args.workdir)
    paths.check(folder, "--trials")
