"""What a run left in its workdir, read back for people: config, environment, curves, events, results, pictures."""

import bisect
import dataclasses
import json
import math
import os
import re
import shlex
from typing import Any

import numpy as np

from vimlab.config import ConfigError
from vimlab.paths import Path, place, resolved


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its files tell it; what it did not write is empty.

    Attributes:
      config: the resolved config.
      info: run.json: command, versions, devices, `total_steps`, …
      series: metric name → (steps f64[P] ascending, finite values f64[P]), from both logs and the result files.
      events: what went wrong, by step: {"step", "event", "message"}, with the last step, "until", of a row of alike ones.
      results: evaluator name → its result files by step, oldest first.
      pictures: picture name → (step, file), oldest first.
    """

    workdir: Path
    config: dict[str, Any]
    info: dict[str, Any]
    series: dict[str, tuple[np.ndarray, np.ndarray]]
    events: list[dict[str, Any]]
    results: dict[str, list[dict[str, Any]]]
    pictures: dict[str, list[tuple[int, Path]]]

    @property
    def name(self) -> str:
        """The config's name and its arguments but for paths, as the command gave them, else the workdir's name."""
        command = self.info.get("command", "")
        words = shlex.split(command) if isinstance(command, str) else [str(w) for w in command]
        match = re.search(r"--config[= ](\S+)", " ".join(words))
        if not match:
            return resolved(self.workdir).name
        file, _, argument = match[1].partition(":")
        # Where things lie is no part of a name.
        chosen = ",".join(word for word in argument.split(",") if "/" not in word)
        name = file.rsplit("/", 1)[-1].removesuffix(".py")
        return f"{name}:{chosen}" if chosen else name

    @property
    def last_step(self) -> int:
        """The newest step that anything was written at."""
        steps = [x[-1] for x, _ in self.series.values()] + [p[-1][0] for p in self.pictures.values()]
        return int(max(steps, default=0))

    @property
    def train_seconds(self) -> float:
        """Time spent in training steps, without evaluations and saves; 0 where it was not logged."""
        steps, milliseconds = self.series.get("train/step_ms", (np.zeros(0), np.zeros(0)))
        return float(np.sum(np.diff(steps, prepend=0) * milliseconds)) / 1000


def read(workdir: str | os.PathLike) -> Run:
    """Reads a workdir. Raises ConfigError where it holds nothing of a run."""
    workdir = place(workdir)
    series: dict[str, dict[float, float]] = {}
    events: list[dict[str, Any]] = []
    for name in ("metrics", "performance"):
        _add_log(workdir / f"{name}.jsonl", series, events)
    _settle_events(series, events)
    results = {
        name: [json.loads(f.read_text()) for _, f in files] for name, files in _by_step(workdir / "evals", "json").items()
    }
    for name, records in results.items():
        _add_results(series, name, records)
    run = Run(
        workdir,
        _json(workdir / "config.json"),
        _json(workdir / "run.json"),
        {k: _arrays(v) for k, v in series.items()},
        events,
        results,
        _by_step(workdir / "pictures", "png") | _asked_for(workdir / "samples"),
    )
    if not (run.config or run.info or run.series or run.events or run.pictures):
        raise ConfigError(
            f"{str(workdir)!r} holds no run (no config.json, metrics.jsonl, pictures or evals); give the --workdir of a run"
        )
    return run


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _add_log(file: Path, series: dict[str, dict[float, float]], events: list[dict[str, Any]]) -> None:
    """Values by name and step (a step logged again after a resume counts as logged last) and the rows with an event."""
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # A run that was killed, or that is writing now, leaves half a line.
        if not isinstance(row, dict) or "step" not in row:
            continue
        if "event" in row:
            events.append(row)
        for name, value in row.items():
            if name != "step" and type(value) in (int, float) and math.isfinite(value):
                series.setdefault(name, {})[row["step"]] = value


def _settle_events(series: dict[str, dict[float, float]], events: list[dict[str, Any]]) -> None:
    """Adds skipped steps and unreadable images, which the logs hold as plain numbers, and drops their all-zero curves.

    Alike events in one logged row after another, such as a collapse that lasts, become one, which tells of the last.
    """
    for step, share in series.get("train/nonfinite_share", {}).items():
        if share:
            events.append(
                {
                    "step": step,
                    "event": "nonfinite",
                    "message": f"{share:.1%} of the steps since the last row were skipped, "
                    "for their loss or gradients were not finite",
                }
            )
    bad = series.get("train/bad_images", {})
    if worst := max(bad.values(), default=0):
        first = min(step for step, count in bad.items() if count)
        events.append(
            {"step": first, "event": "bad images", "message": f"{worst:,.0f} in all could not be read and were left out"}
        )
    for name in ("train/nonfinite_share", "train/bad_images"):
        if not any(series.get(name, {}).values()):
            series.pop(name, None)
    logged = sorted({step for name, values in series.items() if name.startswith("train/") for step in values})
    merged: list[dict[str, Any]] = []
    for event in sorted(events, key=lambda e: e["step"]):
        last = merged[-1] if merged else {"event": None}
        if last["event"] == event["event"] and bisect.bisect(logged, event["step"]) - bisect.bisect(logged, last["until"]) <= 1:
            merged[-1] = event | {"step": last["step"], "until": event["step"]}
        else:
            merged.append(event | {"until": event["step"]})
    events[:] = merged


def _add_results(series: dict[str, dict[float, float]], name: str, records: list[dict[str, Any]]) -> None:
    """Figures of result files that the log does not hold, as of `vimlab eval` on a finished run."""
    for record in records:
        for key, value in record["metrics"].items():
            if value is not None:
                series.setdefault(f"eval/{name}/{key}", {}).setdefault(record["protocol"]["step"], value)


def _arrays(values: dict[float, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = sorted(values)
    return np.array(steps, float), np.array([values[s] for s in steps], float)


def _asked_for(folder: Path) -> dict[str, list[tuple[int, Path]]]:
    """The grid that `vimlab sample` left, under the name "prompts"."""
    record = _json(folder / "samples.json")
    return {"prompts": [(record["request"]["step"], folder / "grid.png")]} if record else {}


def _by_step(folder: Path, extension: str) -> dict[str, list[tuple[int, Path]]]:
    found: dict[str, list[tuple[int, Path]]] = {}
    for file in sorted(folder.glob(f"*.{extension}")):
        if match := re.fullmatch(r"([^.].*)_(\d{8,})", file.stem):
            found.setdefault(match[1], []).append((int(match[2]), file))
    return {name: sorted(files) for name, files in found.items()}
