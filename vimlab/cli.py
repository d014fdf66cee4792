"""The `vimlab` command: one table of subcommands, each a module with `main(argv) -> exit code`."""

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from vimlab import exits

# name: (module, what it does). Modules are imported when they run.
COMMANDS = {
    "train": ("vimlab.train", "train, or continue, the run of a workdir"),
    "tokenize": ("vimlab.tokenize", "store a data set's tokens for the second stage to train on"),
    "sample": ("vimlab.sample", "draw images from a trained generator"),
    "eval": ("vimlab.eval", "evaluate a checkpoint and write the report"),
    "sweep": ("vimlab.sweep.cli", "run many trials of a config, and compare them"),
    "config": ("vimlab.config_command", "show a config, or the difference of two"),
    "data": ("vimlab.data.commands", "import, check or preview a data set, train a vocabulary"),
    "plan": ("vimlab.plan.command", "whether a run fits chips that are not here, and how long it takes"),
    "weights": ("vimlab.weights_command", "which public weight files evaluations can use, and whether yours are whole"),
    "ckpt": ("vimlab.ckpt", "list, show, verify or export checkpoints"),
    "launch": ("vimlab.launch.cli", "start a command on many processes, here or on a pod, and look after it"),
    "doctor": ("vimlab.doctor", "check this machine: versions, devices, disk, codecs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Returns its exit code; 2 for a mistake in what was asked."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print("usage: vimlab COMMAND …\n\n" + "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()))
        print("\n`vimlab COMMAND --help` says more.")
        return exits.FINISHED if argv else exits.USER_ERROR
    if argv[0] == "--version":
        import vimlab

        print(f"vimlab {vimlab.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        from vimlab.config import suggest

        print(f"vimlab: error: there is no command {argv[0]!r}{suggest(argv[0], COMMANDS)} (there are {', '.join(COMMANDS)})", file=sys.stderr)
        return exits.USER_ERROR
    return run_command(lambda rest: importlib.import_module(COMMANDS[argv[0]][0]).main(rest), argv[1:])


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Runs a command's `main`; a mistake of the user's becomes one sentence on stderr, and exit code 2."""
    from absl import logging

    from vimlab.config import UserError

    _set_up_log()
    try:
        return command(argv)
    except (UserError, FloatingPointError) as error:
        logging.flush()
        print(f"vimlab: error: {' '.join(str(error).split())}", file=sys.stderr)
        return exits.USER_ERROR
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        # Whoever read what we print, such as `head`, has seen enough; the interpreter would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILED


def _set_up_log() -> None:
    """Our own notes and everybody's warnings, on stderr; libraries' notes on their inner life stay out."""
    import logging as standard

    from absl import flags, logging

    flags.FLAGS.mark_as_parsed()  # Arguments are argparse's; absl warns until its own have been parsed.
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(standard.Formatter("%(levelname)s %(message)s"))
    ours = os.path.dirname(__file__)
    handler.addFilter(lambda record: record.levelno >= standard.WARNING or record.pathname.startswith(ours))


def entry(argv: Sequence[str] | None = None) -> None:
    """The console script, and `python -m vimlab`. argv: the subcommand and its arguments; the process's own if not given."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _prefer_huge_pages(argv)
    sys.exit(main(argv))


def _prefer_huge_pages(argv: Sequence[str]) -> None:
    """Starts the process anew with huge pages for large allocations, which glibc reads only at start.

    XLA on CPUs allocates its temporaries afresh every step, and with 4 KB pages the faults cost a tenth of the time.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, "-m", "vimlab", *argv])
