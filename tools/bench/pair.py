"""Two long-lived child processes that take turns, and the statistics of what they measure. Needs NumPy alone.

A child reads one JSON command a line and answers with one; between turns it waits in a read, so that the other has the
machine to itself. `serve` is the child's half, `Child` the parent's.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

Arrays = dict[str, np.ndarray]


class Work(Protocol):
    """One variant of one cell, inside a child."""

    def first(self, phase: str) -> Arrays:
        """Compiles, runs once from the common weights, and returns outputs to be compared."""

    def run(self, phase: str) -> None:
        """Runs once and waits for the result."""


def serve(make: Callable[[dict, str, Arrays], Work], common: Callable[[dict], Arrays] | None = None) -> None:
    """Answers commands until the input ends; anything printed goes to stderr.

    Args:
      make: (cell, variant, arrays) → Work.
      common: cell → the inputs and weights that both sides start from; one side has it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    works: dict[str, Work] = {}
    for line in sys.stdin:
        command = json.loads(line)
        answer: dict[str, Any] = {}
        if command["do"] == "common":
            np.savez(command["out"], **common(command["cell"]))
        elif command["do"] == "make":
            with np.load(command["arrays"]) as arrays:
                works[command["variant"]] = make(command["cell"], command["variant"], dict(arrays))
        elif command["do"] == "first":
            start = time.perf_counter()
            outputs = works[command["variant"]].first(command["phase"])
            answer = {"seconds": time.perf_counter() - start}
            np.savez(command["out"], **outputs)
        elif command["do"] == "time":
            answer = _timed(works[command["variant"]], command["phase"], command["repeats"])
        elif command["do"] == "drop":
            works.clear()
            answer = {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        print(json.dumps(answer), file=answers, flush=True)


def _timed(work: Work, phase: str, repeats: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {"wall": [], "cpu": []}
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work.run(phase)
        figures["wall"].append(time.perf_counter() - wall)
        figures["cpu"].append(time.process_time() - cpu)
    return figures


class ChildError(RuntimeError):
    """A child that ended; the message holds the end of what it said."""


class Child:
    """A child process that serves.

    Args:
      command: its command line.
      env: variables on top of the parent's.
      core: the core it is pinned to; None leaves it free.
    """

    def __init__(self, command: list[str], env: dict[str, str], core: int | None) -> None:
        self._log = tempfile.TemporaryFile("w+")
        pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | env,
            preexec_fn=pin,
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """Sends one command and waits for its answer. Raises ChildError."""
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._log.seek(0)
            raise ChildError(
                f"{' '.join(self._process.args)} ended while asked to {command['do']}:\n{self._log.read()[-3000:]}"
            )
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def differences(ours: pathlib.Path, theirs: pathlib.Path) -> dict[str, float]:
    """Relative L2 distances of two files of outputs, by group: the part of a name before its first '/'.

    Of whole numbers, such as ids, it is the share that differs.

    Raises:
      ValueError: the files hold different names.
    """
    with np.load(ours) as a, np.load(theirs) as b:
        if set(a) != set(b):
            raise ValueError(f"the sides have different outputs: {sorted(set(a) ^ set(b))}")
        groups: dict[str, list[float]] = {}
        for name in a:
            x, y = a[name].ravel(), b[name].ravel()
            whole = np.issubdtype(x.dtype, np.integer)
            x, y = ((x != y) * 1.0, np.ones(len(y))) if whole else (x.astype(np.float64) - y, y.astype(np.float64))
            total = groups.setdefault(name.split("/")[0], [0.0, 0.0, 1.0 if whole else 0.5])
            total[0] += float(np.square(x).sum())
            total[1] += float(np.square(y).sum())
    return {name: (d / max(n, 1e-300)) ** power for name, (d, n, power) in groups.items()}


def paired_ratio(theirs: np.ndarray, ours: np.ndarray, draws: int = 4000, seed: int = 0) -> tuple[float, float, float]:
    """Median over rounds of theirs / ours, with a 95% interval from resampling rounds. Above 1: ours is faster."""
    ratios = np.asarray(theirs) / np.asarray(ours)
    drawn = np.random.default_rng(seed).choice(ratios, (draws, len(ratios)))
    low, high = np.quantile(np.median(drawn, 1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def machine_time() -> tuple[float, float, float]:
    """Seconds that the machine's cores have been (busy, idle, stolen) since it started."""
    ticks = [int(t) for t in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = (t / os.sysconf("SC_CLK_TCK") for t in ticks)
    return user + nice + system + irq + softirq, idle + iowait, steal


def idle_share(seconds: float = 1.0) -> float:
    """Share of the machine's time that is idle over the next moments."""
    before = machine_time()
    time.sleep(seconds)
    busy, idle, steal = (b - a for a, b in zip(before, machine_time(), strict=True))
    return idle / max(busy + idle + steal, 1e-9)
