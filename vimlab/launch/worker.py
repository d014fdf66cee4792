"""What a launcher starts on each host: the command, with its output shown and kept in a log under the workdir.

`python -m vimlab.launch.worker [--alone NAME] -- train --config … --workdir W`. It hands SIGTERM and SIGINT on, and ends with
the command's exit code.
"""

import argparse
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence

from vimlab import paths
from vimlab.launch.record import now, workdir_of
from vimlab.paths import is_bucket

COPY_SECONDS = 60.0
PATIENCE = 120.0  # Seconds that an earlier process on this host gets to save and end.


def main(argv: Sequence[str]) -> int:
    """Runs a vimlab command as one worker. Returns its exit code; 128 + the signal's number where a signal ended it."""
    split = list(argv).index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="python -m vimlab.launch.worker", description="Run one worker's command; its output goes to a log too.")
    parser.add_argument("--alone", metavar="NAME", help="end the worker of this name that is still running on this host first")
    args = parser.parse_args(argv[:split])
    command = list(argv[split + 1 :])
    workdir = workdir_of(command)
    code = run([sys.executable, "-m", "vimlab", *command], workdir, worker_name(os.environ), args.alone)
    return code if code >= 0 else 128 - code


def worker_name(env: Mapping[str, str]) -> str:
    """What tells this worker from the others: its number where the environment knows it, else the host's name."""
    for key in ("VIMLAB_WORKER", "VIMLAB_PROCESS_ID", "SLURM_PROCID"):
        if env.get(key):
            return env[key]
    return socket.gethostname().partition(".")[0]


def run(argv: Sequence[str], workdir: str, name: str, alone: str | None = None) -> int:
    """Runs a program with its output shown and logged. Returns its exit code, negative for a signal."""
    if alone:
        take_over(alone)
    with Log(workdir, name) as log:
        if alone:
            link = _state(alone).with_suffix(".log")
            link.unlink(missing_ok=True)
            link.symlink_to(log.path)
        log.write(f"==== start at {now()} on {socket.gethostname()}: {' '.join(argv)}\n".encode(), show=False)
        env = os.environ | {"PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if alone:
            _state(alone).with_suffix(".pid").write_text(f"{os.getpid()} {child.pid}")
        old = {s: signal.signal(s, lambda number, _: child.send_signal(number)) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            while data := child.stdout.read1(1 << 16):
                log.write(data)
            return child.wait()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class Log:
    """A worker's log, WORKDIR/logs/worker_NAME.log, shown as it grows; one in a bucket is a local file that is copied there every minute."""

    def __init__(self, workdir: str, name: str) -> None:
        self._target = paths.place(workdir) / "logs" / f"worker_{name}.log"
        self._remote = is_bucket(workdir)
        self._folder = tempfile.TemporaryDirectory(prefix="vimlab-log-") if self._remote else None
        self.path = pathlib.Path(self._folder.name if self._folder else self._target.parent) / self._target.name
        self._terminal, self._copied, self._ended = True, 0, threading.Event()

    def __enter__(self) -> "Log":
        if self._remote:
            if self._target.exists():
                self.path.write_bytes(self._target.read_bytes())  # What earlier starts have said stays.
            self._copier = threading.Thread(target=self._copy_on, daemon=True)
            self._copier.start()
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._ended.set()
        if self._remote:
            self._copier.join()
            self._copy()
            self._folder.cleanup()

    def write(self, data: bytes, *, show: bool = True) -> None:
        """Adds to the log, and to this process's output while somebody reads it."""
        self._file.write(data)
        if show and self._terminal:
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            except BrokenPipeError:  # The connection that started this worker is gone; the work goes on.
                self._terminal = False
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _copy_on(self) -> None:
        while not self._ended.wait(COPY_SECONDS):
            try:
                self._copy()
            except OSError as error:  # The log is not worth the run; the last copy, at the end, raises.
                print(f"vimlab launch: the log could not be copied to {self._target}: {error}", file=sys.stderr)

    def _copy(self) -> None:
        data = self.path.read_bytes()
        if len(data) > self._copied:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._target.write_bytes(data)
            self._copied = len(data)


def take_over(name: str) -> None:
    """Ends the worker that runs under this name on this host, if there is one, and writes this process's number in its place.

    A connection can break while its command goes on; the next start must not meet that command's devices and files.
    """
    file = _state(name).with_suffix(".pid")
    file.parent.mkdir(parents=True, exist_ok=True)
    pids = [int(pid) for pid in file.read_text().split()] if file.exists() else []
    if pids and _is_worker(pids[0]):
        os.kill(pids[0], signal.SIGTERM)
        begin = time.monotonic()
        while _is_worker(pids[0]):
            if time.monotonic() - begin > PATIENCE:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
    file.write_text(str(os.getpid()))


def _state(name: str) -> pathlib.Path:
    return pathlib.Path.home() / ".vimlab" / re.sub(r"[^A-Za-z0-9_-]", "_", name)


def _is_worker(pid: int) -> bool:
    """Whether that process is a worker, and not another one that got its number since."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" and b"vimlab.launch.worker" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    from vimlab.cli import run_command

    sys.exit(run_command(main, sys.argv[1:]))
