"""A sweep's folder: its trials, what became of each, their logs, and locks that one runner holds.

    W/sweep.json          what the last `vimlab sweep run` asked for: every trial with its name, overrides, config and command
    W/trials/NAME/        the workdir of a trial, or elsewhere where --trials says so
    W/logs/NAME.log       what its commands said
    W/records/NAME.json   how its commands ended; NAME.lock is held while they run
"""

import contextlib
import dataclasses
import fcntl
import fnmatch
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from vimlab import paths
from vimlab.checksums import SEAL
from vimlab.config import ConfigError
from vimlab.paths import write_whole
from vimlab.sweep.experiment import Experiment, Report, read
from vimlab.sweep.trials import Trial

PATIENCE = 0.5  # Seconds that a lock is tried for: whoever only looks at a sweep holds one for a moment.


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep as its folder has it.

    Attributes:
      root: the folder.
      folder: holds the workdirs of the trials.
      target, over, base_args: what `vimlab sweep run` was given.
      base: config file and argument.
      evals: evaluators to run after each training, comma-separated.
      trials: in their order.
    """

    root: pathlib.Path
    folder: paths.Path
    target: str
    over: tuple[str, ...]
    base_args: tuple[str, ...]
    base: str
    evals: str
    trials: tuple[Trial, ...]

    def workdir(self, trial: Trial) -> paths.Path:
        return self.folder / trial.name

    def log(self, trial: Trial) -> pathlib.Path:
        return self.root / "logs" / f"{trial.name}.log"

    def command(self, trial: Trial, stage: str) -> list[str]:
        """The arguments of `vimlab` for a stage, "train" or "eval"."""
        if stage == "train":
            return trial.train(self.base, self.workdir(trial))
        return ["eval", "--workdir", str(self.workdir(trial)), "--evals", self.evals]

    def experiment(self) -> Experiment:
        """The experiment anew from its file."""
        return read(self.target, self.over, self.base_args)

    def report(self) -> Report:
        """The form of the report; defaults for a sweep without a file. Raises ConfigError where the file is gone."""
        return Report() if self.over else self.experiment().report

    def write(self) -> None:
        """Writes sweep.json. Raises ConfigError where the folder holds another sweep, or something else."""
        path = self.root / "sweep.json"
        if path.exists():
            old = load(self.root)
            if (old.target, old.base) != (self.target, self.base):
                raise ConfigError(f"{self.root} holds the sweep of {old.target} over {old.base}, and not that of {self.target} over {self.base}; "
                                  "choose another --workdir")
            if paths.resolved(old.folder) != paths.resolved(self.folder):
                raise ConfigError(f"the trials of {self.root} are in {old.folder}, and not in {self.folder}; give --trials as before")
        elif self.root.is_dir() and any(self.root.iterdir()):
            raise ConfigError(f"--workdir {self.root} is not empty and holds no sweep; choose a new folder")
        trials = [dataclasses.asdict(t) | {"command": ["vimlab", *self.command(t, "train")]} for t in self.trials]
        record = {k: getattr(self, k) for k in ("target", "over", "base_args", "base", "evals")} | {"folder": str(self.folder), "trials": trials}
        write_whole(path, (json.dumps(record, indent=1) + "\n").encode())

    # ---- what became of a trial ----

    def record(self, trial: Trial) -> dict[str, Any]:
        """How the trial's commands ended; empty where none did, or where its config was another then."""
        path = self.root / "records" / f"{trial.name}.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return found if found.get("digest") == trial.digest else {}

    def note(self, trial: Trial, **values: Any) -> dict[str, Any]:
        """Adds to the trial's record."""
        record = self.record(trial) | {"digest": trial.digest} | values
        write_whole(self.root / "records" / f"{trial.name}.json", (json.dumps(record, indent=1) + "\n").encode())
        return record

    def due(self, trial: Trial) -> str | None:
        """The next stage of a trial, "train" or "eval"; None where nothing is left to do.

        A stage is over when its command said so, or when its results are there, whoever made them.
        """
        workdir, finished = self.workdir(trial), self.record(trial).get("finished", ())
        total = total_steps(workdir)
        trained = total is not None and (workdir / "checkpoints" / str(total) / SEAL).exists() and _json(workdir / "config.json") == trial.config
        if "train" not in finished and not trained:
            return "train"
        names = [n for n in self.evals.split(",") if n]
        judged = total is not None and all((workdir / "evals" / f"{name}_{total:08d}.json").exists() for name in names)
        return "eval" if names and "eval" not in finished and not judged else None

    def state(self, trial: Trial) -> tuple[str, str]:
        """("done" | "running" | "failed" | "submitted" | "unfinished" | "waiting", one sentence or nothing)."""
        if self.locked(trial):
            return "running", ""
        if self.due(trial) is None:
            return "done", ""
        record = self.record(trial)
        if record.get("state"):
            return record["state"], record.get("message", "")
        return ("unfinished" if self.workdir(trial).exists() else "waiting"), ""

    @contextlib.contextmanager
    def lock(self, trial: Trial, patience: float = PATIENCE) -> Iterator[IO | None]:
        """The trial's lock, or None where somebody else holds it. Its children hold it too, so a runner's death frees no running trial."""
        path = self.root / "records" / f"{trial.name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        yield None
                        return
                    time.sleep(0.05)
            yield file

    def locked(self, trial: Trial) -> bool:
        """Whether somebody runs the trial now."""
        if not (self.root / "records" / f"{trial.name}.lock").exists():
            return False
        with self.lock(trial, patience=0) as file:
            return file is None


def load(root: pathlib.Path) -> Sweep:
    """Reads a sweep's folder. Raises ConfigError where there is none."""
    path = root / "sweep.json"
    if not path.is_file():
        raise ConfigError(f"{root} holds no sweep.json, so it is not the --workdir of a sweep")
    record = json.loads(path.read_text())
    trials = tuple(Trial(**{k: t[k] for k in ("name", "overrides", "changes", "config")}) for t in record["trials"])
    folder = paths.place(record.get("folder", root / "trials"))
    return Sweep(root, folder, record["target"], tuple(record["over"]), tuple(record["base_args"]), record["base"], record["evals"], trials)


def total_steps(workdir: paths.Path) -> int | None:
    """The steps of the whole run, as it wrote them down when it began."""
    return _json(workdir / "run.json").get("total_steps")


def chosen(trials: Sequence[Trial], only: str | None, index: str | None) -> list[Trial]:
    """The trials whose names match a pattern, of those every n-th from the i-th on. Raises ConfigError."""
    found = [t for t in trials if fnmatch.fnmatchcase(t.name, only or "*")]
    if not found:
        raise ConfigError(f"no trial's name matches {only!r}; they are named like {trials[0].name!r}")
    if index is None:
        return found
    first, _, step = index.partition("/")
    if not (first.isdigit() and step.isdigit() and int(first) < int(step)):
        raise ConfigError(f"--index is {index!r}, but must be i/n with i from 0 to n-1, as in 0/4")
    return found[int(first) :: int(step)]


def _json(path: paths.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}
