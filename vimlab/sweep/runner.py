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
from vimlab.launch.outcome import Outcome, judge
from vimlab.metrics import clock
from vimlab.sweep.store import Sweep
from vimlab.sweep.trials import Trial

SUBMITS = ("slurm", "gke")
JOB_NAME = 18  # Letters of a trial's name in that of its job, which `vimlab launch` keeps to 28.
ATTEMPTS = 3  # A trial that is lost this often in one call is left for the next.


@dataclasses.dataclass
class Runner:
    """Runs trials of a sweep on this machine, or hands them to `vimlab launch`.

    Attributes:
      sweep: theirs.
      program: the words that `vimlab` stands for.
      launch: words after `vimlab launch`, which trials are handed to; none runs them here. Of its kinds those of SUBMITS come back at once, and
        the run's own files tell of its end; others come back with the run's exit code.
      retry_failed: also run what failed before, and submit again what is not done.
    """

    sweep: Sweep
    program: Sequence[str]
    launch: Sequence[str] = ()
    retry_failed: bool = False

    def __post_init__(self) -> None:
        # The lock may be held already where a second signal comes while the first is handled.
        self._stop, self._lock, self._running = threading.Event(), threading.RLock(), set()

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
        except BaseException:
            self._stop.set()  # The other trials are not begun.
            raise
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        return {trial.name: self.sweep.state(trial)[0] for trial in trials}

    def _interrupt(self, number: int, _) -> None:
        again = self._stop.is_set() and number == signal.SIGINT
        if not again:
            logging.warning("%s: the running trials save and stop; the same command goes on", signal.Signals(number).name)
        self._stop.set()
        with self._lock:
            for process in self._running:
                _signal(process, signal.SIGKILL if again else signal.SIGTERM)

    def _trial(self, trial: Trial, count: str) -> None:
        if self._stop.is_set():
            return
        with self.sweep.lock(trial) as lock:
            if lock is None:
                print(f"{count} {trial.name}: another runner has it", flush=True)
                return
            record, stage = self.sweep.record(trial), self.sweep.due(trial)
            if stage is None:
                print(f"{count} {trial.name}: done before", flush=True)
            elif record.get("state") == "failed" and not self.retry_failed:
                print(f"{count} {trial.name}: failed before ({record['message']}); --retry-failed tries again", flush=True)
            elif record.get("state") == "submitted" and record["stage"] == stage and not self.retry_failed:
                print(f"{count} {trial.name}: submitted before; look with `vimlab launch status --workdir {self.sweep.workdir(trial)}`", flush=True)
            else:
                self._stages(trial, count, lock.fileno())

    def _stages(self, trial: Trial, count: str, lock: int) -> None:
        submits = bool(self.launch) and self.launch[0] in SUBMITS
        attempts, seconds, before = 0, 0.0, self.sweep.record(trial).get("seconds", 0.0)
        while (stage := self.sweep.due(trial)) and not self._stop.is_set() and attempts < ATTEMPTS:
            command = launched(self.sweep, trial, stage, self.launch)
            print(f"{count} {trial.name}: {shlex.join(['vimlab', *command])}", flush=True)
            started = time.monotonic()
            code, said = self._call(trial, command, lock)
            seconds += time.monotonic() - started
            if submits and (code == exits.FINISHED or self.sweep.record(trial).get("state") == "submitted"):
                self.sweep.note(trial, state="submitted", stage=stage, message="")
                print(f"{count} {trial.name}: {said or 'submitted'}", flush=True)
                return
            if code == exits.FINISHED:
                finished = [*self.sweep.record(trial).get("finished", ()), stage]
                self.sweep.note(trial, state="", message="", finished=finished, seconds=seconds + before)
            elif judge(code) is Outcome.PREEMPTED or self._stop.is_set():
                attempts += 1
                self.sweep.note(trial, state="unfinished", message=f"stopped with code {code}; its state is saved, and the same command goes on")
            else:
                why = said or f"ended with code {code}; see {self.sweep.log(trial)}"
                self.sweep.note(trial, state="failed", message=why)
                print(f"{count} {trial.name}: failed: {why}", flush=True)
                return
        print(f"{count} {trial.name}: {self.sweep.record(trial).get('state') or 'done'} after {clock(seconds)}", flush=True)

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


def launched(sweep: Sweep, trial: Trial, stage: str, launch: Sequence[str]) -> list[str]:
    """The arguments of `vimlab` for a stage, handed to `vimlab launch` where there are words for that.

    Jobs are named by their workdirs, cut short; trials would share names, so each gets one that ends in its config's hash.
    """
    command = sweep.command(trial, stage)
    if not launch:
        return command
    kind, *words = launch
    named = any(word.split("=")[0] == "--name" for word in words)
    plain = re.sub(r"[^a-z0-9]+", "-", trial.name.lower()).strip("-")
    name = f"{plain if plain[0].isalpha() else f't{plain}'}"[:JOB_NAME].strip("-") + f"-{trial.digest[:6]}" + "-e" * (stage == "eval")
    return ["launch", kind, *words, *([] if named else ["--name", name]), "--", *command]


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
