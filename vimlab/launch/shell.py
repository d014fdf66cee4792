"""Other programs' commands: each is printed before it runs, and in a dry run only printed."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence

from vimlab.config import UserError


class LaunchError(UserError):
    """Another program refused; the sentence holds its own words."""


class Shell:
    """Prints commands, and runs them unless it is dry.

    Args:
      dry: whether to print only.
      mark: what stands before a printed command; "# $ " where the output is a document whose comments begin with #.
    """

    def __init__(self, dry: bool, mark: str = "$ ") -> None:
        self.dry, self.mark = dry, mark

    def show(self, argv: Sequence[str]) -> None:
        """Prints the command as a shell would take it."""
        print(self.mark + shlex.join(argv), flush=True)

    def note(self, text: str) -> None:
        """Prints a line that is no command."""
        print(text if text.startswith("#") else f"# {text}", flush=True)

    def run(self, argv: Sequence[str]) -> int:
        """Runs the command with this process's terminal. Returns its exit code; 0 in a dry run."""
        self.show(argv)
        return 0 if self.dry else subprocess.run(_found(argv)).returncode

    def check(self, argv: Sequence[str]) -> None:
        """As `run`. Raises LaunchError where the command fails."""
        code = self.run(argv)
        if code:
            raise LaunchError(f"`{shlex.join(argv)}` ended with exit code {code}; its own message is above")

    def read(self, argv: Sequence[str]) -> tuple[int, str, str]:
        """Runs the command. Returns its exit code, output and messages, stripped; (0, "", "") in a dry run."""
        self.show(argv)
        if self.dry:
            return 0, "", ""
        done = subprocess.run(_found(argv), capture_output=True, text=True)
        return done.returncode, done.stdout.strip(), done.stderr.strip()


def _found(argv: Sequence[str]) -> Sequence[str]:
    if not shutil.which(argv[0]):
        raise LaunchError(f"the program {argv[0]!r} is not installed here, or not on PATH; --dry-run prints what it would be given")
    return argv


def say(text: str) -> None:
    """A line of the launcher's own, apart from what the workers print."""
    print(f"vimlab launch: {text}", file=sys.stderr, flush=True)
