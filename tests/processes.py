"""Real processes for tests: several of the `vimlab` command as one run, each with simulated devices, with or without a plot."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
from quick import flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Python runs this file at the start of each process: it writes down which records each step was given, may signal itself, or find its
# data amiss. A launcher's own process is left as it is.
SPY = """
import json, os, signal, sys

def plant():
    from vimlab import train
    from vimlab.config import UserError

    plot, watch = json.loads(os.environ["PLOTS"])[int(os.environ.get("VIMLAB_PROCESS_ID", 0))], train.NonfiniteGuard.watch

    def spy(self, step, metrics, batch):
        rows = {int(s.index[0].start or 0): s.data.tolist() for s in batch["index"].addressable_shards}
        with open(plot["records"], "a") as file:
            print(json.dumps([step, rows]), file=file)
        if step == plot.get("step"):
            os.kill(os.getpid(), getattr(signal, plot["signal"]))
        watch(self, step, metrics, batch)

    def broken(*_):
        raise UserError(plot["error"])

    train.NonfiniteGuard.watch = spy
    train.Run = broken if "error" in plot else train.Run

if "launch" not in sys.orig_argv:
    plant()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """`count` processes of one command, each with `devices` simulated ones; logs and records in `folder`.

    Args:
      arguments: of `vimlab`; a list for each process where they differ.
      plots: by process, {"step": 5, "signal": "SIGKILL"}, what befalls it after which step, or {"error": …}, what is wrong with its data.
      absent: processes that never come.
      launch: whether `vimlab launch local` starts them, once; their workdir is then the last argument.
    """

    def __init__(self, folder: pathlib.Path, arguments: list, *, count: int = 2, devices: int = 4, plots: dict[int, dict] | None = None,
                 absent: tuple[int, ...] = (), launch: bool = False):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sitecustomize.py").write_text(SPY)
        self.folder, self.children, self.launched, port = folder, [], pathlib.Path(arguments[-1]) / "logs" if launch else None, free_port()
        told = json.dumps([{"records": str(folder / f"records{i}")} | (plots or {}).get(i, {}) for i in range(count)])
        common = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PJRT_NPROC": "64", "XLA_FLAGS": flags(),
                               "PLOTS": told, "PYTHONPATH": str(folder)}  # fmt: skip
        self._count = count
        if launch:
            how = ["launch", "local", "-n", count, "--devices-per-process", devices, "--restarts", 0, "--"]
            self._start(folder / "launcher", [*how, *arguments], common)
        for i in [] if launch else sorted(set(range(count)) - set(absent)):
            own = arguments[i] if isinstance(arguments[0], list) else arguments
            place = {"VIMLAB_COORDINATOR": f"127.0.0.1:{port}", "VIMLAB_NUM_PROCESSES": str(count), "VIMLAB_PROCESS_ID": str(i)}
            self._start(folder / f"log{i}", own, common | (place if count > 1 else {}))

    def _start(self, log: pathlib.Path, arguments: list, environment: dict[str, str]) -> None:
        command = [sys.executable, "-m", "vimlab", *map(str, arguments)]
        with log.open("w") as file:
            self.children.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file))

    def wait(self, seconds: float = 480) -> list[int]:
        """The exit codes of all, the launcher's of those that it started; none outlives this call."""
        end = time.monotonic() + seconds
        try:
            return [child.wait(max(end - time.monotonic(), 0.1)) for child in self.children]
        finally:
            for child in self.children:
                if self.launched and child.poll() is None:
                    child.terminate()  # It ends what it started.
                    child.wait(30)
                child.kill()
                child.wait()

    def log(self, index: int) -> str:
        return (self.launched / f"worker_{index}.log" if self.launched else self.folder / f"log{index}").read_text()

    def last(self, index: int) -> str:
        """The last line of a process's log that is its own."""
        return [line for line in self.log(index).strip().splitlines() if line.startswith("vimlab: ")][-1]

    @property
    def logs(self) -> str:
        files = [*self.folder.glob("log?"), *self.folder.glob("launcher"), *(self.launched.glob("worker_*.log") if self.launched else [])]
        return "\n\n".join(file.read_text()[-3000:] for file in sorted(files))

    def records(self) -> dict[int, list[int]]:
        """By step, the index of each row's record, whichever process held it."""
        rows: dict[int, dict[int, list[int]]] = {}
        for i in range(self._count):
            for line in (self.folder / f"records{i}").read_text().splitlines():
                step, found = json.loads(line)
                rows.setdefault(step, {}).update({int(k): v for k, v in found.items()})
        return {step: np.concatenate([parts[k] for k in sorted(parts)]).astype(int).tolist() for step, parts in rows.items()}
