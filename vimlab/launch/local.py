"""`vimlab launch local`: N processes of one run on this machine, kept together, started again when they are lost."""

import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence

from vimlab import exits
from vimlab.launch.outcome import End, Outcome, judge_all, supervise
from vimlab.launch.record import LaunchFolder, Shown, now
from vimlab.launch.shell import Shell, say

POLL = 0.05
ENDING = 10.0  # Seconds between SIGTERM and SIGKILL for processes whose peer was lost: they have nothing left to agree on.
OURS = ("VIMLAB_COORDINATOR", "VIMLAB_NUM_PROCESSES", "VIMLAB_PROCESS_ID")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How to start.

    Attributes:
      processes: how many.
      devices_per_process: simulated CPU devices of each; None leaves the devices to JAX.
      restarts: new starts after processes were lost or asked to be started again.
      retries: new starts after a failure.
      grace: seconds that processes get to save and end once they were asked to, before they are killed.
    """

    processes: int
    devices_per_process: int | None = None
    restarts: int = 10
    retries: int = 0
    grace: float = 120.0

    def environment(self, index: int, port: int) -> dict[str, str]:
        """The variables that process `index` gets on top of this process's own."""
        env = {"PYTHONUNBUFFERED": "1"}
        if self.processes > 1:
            env |= dict(zip(OURS, (f"127.0.0.1:{port}", str(self.processes), str(index)), strict=True))
        if self.devices_per_process:
            env |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(self.devices_per_process)}
        return env


def launch(argv: Sequence[str], folder: LaunchFolder, plan: Plan, *, dry: bool = False) -> int:
    """Runs `argv` in N processes until the run has finished, cannot go on, or a SIGTERM or SIGINT has ended it.

    Worker i's output goes to `folder.log(i)`, after what is there; worker 0's is shown too.

    Returns:
      0 finished, 75 the same command goes on, else what failed.

    Raises:
      ConfigError: a launch on this workdir is running.
    """
    if dry:
        Start(argv, folder, plan, port=free_port()).show()
        return exits.FINISHED
    with folder.hold() as lock, _Signals() as signals:
        return supervise(lambda number: Start(argv, folder, plan, free_port(), number).run(lock, signals), say, restarts=plan.restarts,
                         retries=plan.retries, stopped=lambda: bool(signals.received))


@dataclasses.dataclass
class Start:
    """One start of all processes."""

    argv: Sequence[str]
    folder: LaunchFolder
    plan: Plan
    port: int
    number: int = 1

    def show(self) -> None:
        """Prints the command of every process."""
        for i in range(self.plan.processes):
            Shell(dry=True).show(["env", *(f"{k}={v}" for k, v in self.plan.environment(i, self.port).items()), *self.argv])

    def run(self, lock: int, signals: "_Signals") -> End:
        """Starts the processes, waits for the last of them, and tells how they ended."""
        self.show()
        logs = [self.folder.log(i) for i in range(self.plan.processes)]
        begins = [self._title(log) for log in logs]
        shown = Shown(logs[0], begins[0])
        workers: list[subprocess.Popen] = []
        first: list[int | None] = []  # The exit codes that were there when the first process ended otherwise than well.
        deadline = None
        try:
            for i, log in enumerate(logs):
                workers.append(self._begin(i, log, lock))
            self._record([w.pid for w in workers])
            while None in (states := [w.poll() for w in workers]):
                shown.step()
                for number in signals.take():
                    for worker in workers:
                        _send(worker, number)
                    deadline = deadline or time.monotonic() + self.plan.grace
                ended = [code for code in states if code is not None]
                if not first and any(ended):
                    first = states
                    deadline = deadline or time.monotonic() + self._patience(ended, workers)
                if deadline and time.monotonic() > deadline:
                    for worker in workers:
                        _send(worker, signal.SIGKILL)
                time.sleep(POLL)
        finally:
            for worker in workers:  # Whatever ended this loop, no process outlives it.
                _send(worker, signal.SIGKILL)
                worker.wait()
        shown.step()
        codes = [w.returncode for w in workers]
        end = self._end(first or codes, logs, begins)
        self._record([w.pid for w in workers], codes, end)
        return end

    def _title(self, log: pathlib.Path) -> int:
        """Notes in a log that a start follows. Returns where its own output begins."""
        with open(log, "ab") as file:
            file.write(f"==== start {self.number} at {now()}: {' '.join(self.argv)}\n".encode())
        return log.stat().st_size

    def _begin(self, index: int, log: pathlib.Path, lock: int) -> subprocess.Popen:
        env = {k: v for k, v in os.environ.items() if k not in OURS} | self.plan.environment(index, self.port)
        with open(log, "ab") as file:
            # A session of its own: Ctrl-C in the terminal reaches the processes through the launcher alone, once.
            return subprocess.Popen(self.argv, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                                    pass_fds=(lock,))

    def _patience(self, ended: Sequence[int], workers: Sequence[subprocess.Popen]) -> float:
        """Seconds that the other processes have from here; those of a process that could not say why it ended are asked to end."""
        code = judge_all(ended)[1]
        if code == exits.RESTART:  # All have saved together and are about to end.
            return self.plan.grace
        if code < 0:
            for worker in workers:
                _send(worker, signal.SIGTERM)
        return min(ENDING, self.plan.grace)

    def _end(self, first: Sequence[int | None], logs: Sequence[pathlib.Path], begins: Sequence[int]) -> End:
        """What the first exit codes, None of processes that went on, say; the codes of those ended for their sake say nothing."""
        outcome, code = judge_all([code for code in first if code is not None])
        index = first.index(code)
        if outcome is Outcome.USER_ERROR:
            return End(outcome, code, last_error(logs[index], begins[index]) or f"worker {index} was given what it cannot do; see {logs[index]}")
        if outcome is Outcome.FINISHED:
            return End(outcome, code, "finished")
        return End(outcome, code, f"worker {index} {describe(code)}; its log is {logs[index]}")

    def _record(self, pids: Sequence[int], codes: Sequence[int] | None = None, end: End | None = None) -> None:
        workers = [{"pid": pid, "code": None if codes is None else codes[i]} for i, pid in enumerate(pids)]
        self.folder.write({
            "kind": "local", "launcher": os.getpid(), "host": socket.gethostname(), "command": list(self.argv), "start": self.number, "time": now(),
            "workers": workers, "outcome": end.outcome.value if end else None, "why": end.why if end else None,
        })  # fmt: skip


def describe(code: int) -> str:
    """What an exit code says, for people."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return {exits.FINISHED: "finished", exits.RESTART: "saved its state and stopped (exit code 75)"}.get(code, f"ended with exit code {code}")


def last_error(log: pathlib.Path, begin: int = 0) -> str | None:
    """The last sentence that a vimlab command gave for a mistake, in what was written to the log after byte `begin`."""
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    return next((line.partition("error: ")[2] for line in reversed(lines) if line.startswith("vimlab: error: ")), None)


def free_port() -> int:
    """A port of this machine's that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _send(worker: subprocess.Popen, number: int) -> None:
    if worker.poll() is None:
        worker.send_signal(number)


class _Signals:
    """Collects SIGTERM and SIGINT between `with` and its end, for the loop to hand on."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._taken = 0

    def __enter__(self) -> "_Signals":
        self._old: Mapping[int, object] = {s: signal.signal(s, lambda number, _: self.received.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def take(self) -> list[int]:
        """Those that came since the last call."""
        new, self._taken = self.received[self._taken :], len(self.received)
        return new
