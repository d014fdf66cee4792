"""Runs trials, each as ordinary commands in a process of their own: goes on with what is unfinished, notes failures, and goes on."""

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from absl import logging

from vimlab import exits
from vimlab.metrics import clock
from vimlab.sweep.store import Sweep
from vimlab.sweep.trials import Trial

ATTEMPTS = 3  # A trial that is lost this often in one call is left for the next.


@dataclasses.dataclass
class Runner:
    """Runs trials of a sweep on this machine, or hands them to `vimlab launch`.

    Attributes:
      sweep: theirs.
      program: the words that `vimlab` stands for.
      launch: words after `vimlab launch`, which trials are handed to; none runs them here.
      retry_failed: also run what failed before.
    """

    sweep: Sweep
    program: Sequence[str]
    launch: Sequence[str] = ()
    retry_failed: bool = False

    def __post_init__(self) -> None:
        self._stop, self._lock, self._running = threading.Event(), threading.Lock(), set()

    def run(self, trials: Sequence[Trial], parallel: int = 1) -> dict[str, str]:
        """Brings each trial as far as it gets. Returns the states that they are in then, by name; see `Sweep.state`.

        SIGINT or SIGTERM is passed on, so that the trials save; a second SIGINT ends them at once.
        """
        old = {s: signal.signal(s, self._interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
                waiting = {pool.submit(self._trial, trial, f"[{i}/{len(trials)}]") for i, trial in enumerate(trials, 1)}
                while waiting:  # A wait without end would keep signals from being handled.
                    done, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_COMPLETED)
                    for future in done:
                        future.result()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        return {trial.name: self.sweep.state(trial)[0] for trial in trials}

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the run before its end."""
        return self._stop.is_set()

    def _interrupt(self, number: int, _) -> None:
        again = self._stop.is_set() and number == signal.SIGINT
        if not again:
            logging.warning("%s: the running trials save and stop; the same command goes on", signal.Signals(number).name)
        self._stop.set()
        with self._lock:
            for process in self._running:
                _signal(process, signal.SIGKILL if again else signal.SIGTERM)

    def _trial(self, trial: Trial, count: str) -> None:
        with self.sweep.lock(trial) as lock:
            if lock is None:
                print(f"{count} {trial.name}: another runner has it", flush=True)
                return
            state = self.sweep.record(trial).get("state")
            if self.sweep.due(trial) is None:
                print(f"{count} {trial.name}: done before", flush=True)
            elif state == "failed" and not self.retry_failed:
                print(f"{count} {trial.name}: failed before ({self.sweep.record(trial)['message']}); --retry-failed tries again", flush=True)
            elif state == "submitted":
                print(f"{count} {trial.name}: submitted before", flush=True)
            else:
                self._stages(trial, count, lock.fileno())

    def _stages(self, trial: Trial, count: str, lock: int) -> None:
        attempts, seconds, before = 0, 0.0, self.sweep.record(trial).get("seconds", 0.0)
        while (stage := self.sweep.due(trial)) and not self._stop.is_set() and attempts < ATTEMPTS:
            command = self.sweep.command(trial, stage)
            if self.launch:
                command = ["launch", *self.launch, "--", *command]
            print(f"{count} {trial.name}: {shlex.join(['vimlab', *command])}", flush=True)
            started = time.monotonic()
            code, said = self._call(trial, command, lock)
            seconds += time.monotonic() - started
            if code == exits.FINISHED and self.launch:
                self.sweep.note(trial, state="submitted", message=said)
                print(f"{count} {trial.name}: submitted", flush=True)
                return
            if code == exits.FINISHED:
                finished = [*self.sweep.record(trial).get("finished", ()), stage]
                self.sweep.note(trial, state="", message="", finished=finished, seconds=seconds + before)
            elif goes_on(code) or self._stop.is_set():
                attempts += 1
                self.sweep.note(trial, state="unfinished", message=f"stopped with code {code}; its state is saved, and the same command goes on")
            else:
                self.sweep.note(trial, state="failed", message=said or f"ended with code {code}; see {self.sweep.log(trial)}")
                print(f"{count} {trial.name}: failed: {said}", flush=True)
                return
        print(f"{count} {trial.name}: {self.sweep.record(trial)['state'] or 'done'} after {clock(seconds)}", flush=True)

    def _call(self, trial: Trial, command: Sequence[str], lock: int) -> tuple[int, str]:
        """Runs one command of a trial. Returns its exit code and the sentence that it ended with."""
        path = self.sweep.log(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            log.write(f"\n$ {shlex.join(['vimlab', *command])}\n".encode())
            log.flush()
            begin = log.tell()
            with self._lock:
                if self._stop.is_set():
                    return exits.RESTART, ""
                # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
                process = subprocess.Popen([*self.program, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(lock,),
                                           start_new_session=True)
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        return code, last_sentence(path, begin)


def goes_on(code: int) -> bool:
    """Whether the same command continues what ended with this exit code: its state is saved, or a signal ended it (in shells 128 + signal)."""
    return code == exits.RESTART or code < 0 or 128 < code <= 192


def last_sentence(log: pathlib.Path, begin: int = 0) -> str:
    """The last `vimlab: error: …` of a log from byte `begin` on, without those words; else its last line."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in re.split(r"[\r\n]+", file.read().decode(errors="replace")) if line.strip()]
    errors = [line.partition("vimlab: error: ")[2] for line in lines if "vimlab: error: " in line]
    return errors[-1] if errors else lines[-1] if lines else ""


def _signal(process: subprocess.Popen, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # It ended meanwhile.
