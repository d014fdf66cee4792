"""The trace of a launch: a folder of logs, a lock that lives as long as its processes, and a record of what was started."""

import codecs
import contextlib
import fcntl
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from vimlab.config import ConfigError
from vimlab.paths import is_bucket, write_whole

GLOO = "[Gloo] Rank "


def workdir_of(command: Sequence[str]) -> str:
    """The `--workdir` of a vimlab command. Raises ConfigError where it names none."""
    for i, item in enumerate(command):
        if item == "--workdir" and i + 1 < len(command):
            return command[i + 1]
        if item.startswith("--workdir="):
            return item.removeprefix("--workdir=")
    raise ConfigError("the command after `--` names no --workdir, under which the logs of its processes go; add --workdir FOLDER to it")


def slug(workdir: str, limit: int) -> str:
    """A name for other systems' objects from a workdir's last part: lower case, digits and dashes, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", workdir.rstrip("/").rpartition("/")[2].lower()).strip("-")
    return (name if name[:1].isalpha() else f"run-{name}")[:limit].strip("-")


class LaunchFolder:
    """Where a launch on this workdir leaves its trace: WORKDIR/logs, or a folder of this machine's where the workdir is a bucket.

    Args:
      workdir: of the run.

    Attributes:
      workdir: as given.
      path: the folder.
    """

    def __init__(self, workdir: str) -> None:
        self.workdir = workdir
        if is_bucket(workdir):
            state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
            self.path = pathlib.Path(state) / "vimlab" / re.sub(r":/+", "/", workdir)
        else:
            self.path = pathlib.Path(workdir).absolute() / "logs"

    def log(self, worker: int | str) -> pathlib.Path:
        """A worker's log."""
        return self.path / f"worker_{worker}.log"

    def logs(self) -> list[pathlib.Path]:
        """All workers' logs, in the order of their numbers."""
        return sorted(self.path.glob("worker_*.log"), key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", p.name)])

    def read(self) -> dict[str, Any]:
        """The record of the last launch. Raises ConfigError where there was none."""
        try:
            return json.loads((self.path / "launch.json").read_text())
        except FileNotFoundError:
            raise ConfigError(f"nothing was launched on {self.workdir} from this machine: there is no {self.path}/launch.json") from None

    def write(self, record: dict[str, Any]) -> None:
        """Replaces the record."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "launch.json", (json.dumps(record, indent=1) + "\n").encode())

    def is_held(self) -> bool:
        """Whether a launcher, or a process that it started, is alive."""
        try:
            with open(self.path / "launch.lock", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @contextlib.contextmanager
    def hold(self) -> Iterator[int]:
        """Holds the lock and yields its descriptor; processes that inherit it hold the lock too, should this one be killed.

        Raises:
          ConfigError: another launch holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "launch.lock", "ab") as file:
            try:
                _lock(file)
            except BlockingIOError:
                raise ConfigError(f"a launch on {self.workdir} is running already; look with `vimlab launch status --workdir {self.workdir}`, "
                                  f"or end it with `vimlab launch stop --workdir {self.workdir}`") from None
            yield file.fileno()


class Shown:
    """Shows what is added to a log, but for what the collectives of CPUs say of every group of devices.

    Args:
      log: a file that is there.
      begin: the byte to begin at.
    """

    def __init__(self, log: pathlib.Path, begin: int) -> None:
        self._log, self._at = log, begin
        self._held = ""  # The beginning of a line that may be left out.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # A letter may be cut by the end of a look.

    def step(self) -> None:
        """Shows what was added since the last call."""
        with open(self._log, "rb") as file:
            file.seek(self._at)
            data = file.read()
        self._at += len(data)
        text = self._held + self._decoder.decode(data)
        last = text[text.rfind("\n") + 1 :]
        self._held = last if last and (last.startswith(GLOO) or GLOO.startswith(last)) else ""
        sys.stdout.write(re.sub(rf"(?m)^{re.escape(GLOO)}.*\n", "", text.removesuffix(self._held)))
        sys.stdout.flush()


def _lock(file: IO) -> None:
    """Takes the lock; `is_held` takes it for a moment too, so the first refusal is not the last word."""
    for wait in (0.05, 0.05, 0):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            time.sleep(wait)


def now() -> str:
    """This moment, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
