"""Real processes for tests: several of the `vimlab` command as one run, each with simulated devices, with or without a plot."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # To compile, which is most of what these runs do.
# The real command, but it writes down which records each step was given, may signal itself, or find its data amiss.
SPY = """
import json, os, pathlib, signal, sys
from vimlab import train
from vimlab.cli import main
from vimlab.config import UserError

plot, watch = json.loads(sys.argv[1]), train.NonfiniteGuard.watch

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
sys.exit(main(sys.argv[2:]))
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
    """

    def __init__(self, folder: pathlib.Path, arguments: list, *, count: int = 2, devices: int = 4, plots: dict[int, dict] | None = None,
                 absent: tuple[int, ...] = ()):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.children, port = folder, [], free_port()
        for i in sorted(set(range(count)) - set(absent)):
            own = arguments[i] if isinstance(arguments[0], list) else arguments
            plot = json.dumps({"records": str(folder / f"records{i}")} | (plots or {}).get(i, {}))
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PJRT_NPROC": "64", "XLA_FLAGS": QUICK}
            if count > 1:
                environment |= {"VIMLAB_COORDINATOR": f"127.0.0.1:{port}", "VIMLAB_NUM_PROCESSES": str(count), "VIMLAB_PROCESS_ID": str(i)}
            with (folder / f"log{i}").open("w") as log:
                command = [sys.executable, "-c", SPY, plot, *map(str, own)]
                self.children.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))

    def wait(self, seconds: float = 480) -> list[int]:
        """The exit codes of all; none outlives this call."""
        end = time.monotonic() + seconds
        try:
            return [child.wait(max(end - time.monotonic(), 0.1)) for child in self.children]
        finally:
            for child in self.children:
                child.kill()
                child.wait()

    def log(self, index: int) -> str:
        return (self.folder / f"log{index}").read_text()

    def last(self, index: int) -> str:
        """The last line of a process's log that is its own."""
        return [line for line in self.log(index).strip().splitlines() if line.startswith("vimlab: ")][-1]

    @property
    def logs(self) -> str:
        return "\n\n".join(file.read_text()[-3000:] for file in sorted(self.folder.glob("log?")))

    def records(self) -> dict[int, list[int]]:
        """By step, the index of each row's record, whichever process held it."""
        rows: dict[int, dict[int, list[int]]] = {}
        for i in range(len(self.children)):
            for line in (self.folder / f"records{i}").read_text().splitlines():
                step, found = json.loads(line)
                rows.setdefault(step, {}).update({int(k): v for k, v in found.items()})
        return {step: np.concatenate([parts[k] for k in sorted(parts)]).astype(int).tolist() for step, parts in rows.items()}
