"""Metrics of a run: averages as (sum, weight), the JSONL and TensorBoard logs, speed, utilisation, the progress line.

`metrics.jsonl` holds only what is a function of config and data, so that an interrupted and a straight run write the
same file; whatever the clock says goes to `performance.jsonl`.
"""

import dataclasses
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import jax
from absl import logging

from vimlab import paths
from vimlab.config import Duration

UPLOAD_SECONDS = 30  # Between two uploads of a log in a bucket, beside those at checkpoints.
# Peak dense bf16 FLOP/s per chip, as the vendors state them (never the "sparse" figure).
PEAK_FLOPS = {
    "TPU v3": 123e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12,
    "TPU v6 lite": 918e12, "TPU v6e": 918e12, "NVIDIA A100": 312e12, "NVIDIA H100": 989.4e12, "NVIDIA H200": 989.4e12,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is logged, and when.

    Attributes:
      every: a row of averages over the steps since the last.
      tensorboard: also write event files.
      usage_alarm: warn when a smaller share of the codebook is in use; 0 never does.
      profile_at: step at which a profile of `profile_steps` steps is taken into the workdir.
    """

    every: Duration = Duration(50)
    tensorboard: bool = True
    usage_alarm: float = 0.05
    profile_at: int | None = None
    profile_steps: int = 5


class Averages:
    """Sums and weights of metrics over some steps; device scalars are fetched only when a figure is wanted."""

    def __init__(self, saved: Mapping[str, list[float]] | None = None) -> None:
        self._sums = {k: (float(s), float(w)) for k, (s, w) in (saved or {}).items()}
        self._pending: list[Mapping[str, tuple[Any, Any]]] = []

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds one step's {name: (sum, weight)}."""
        self._pending.append(metrics)

    def sums(self) -> dict[str, list[float]]:
        """{name: [sum, weight]} in f64, to be saved and given to a new instance."""
        for metrics in jax.device_get(self._pending):
            for name, (s, w) in metrics.items():
                old = self._sums.get(name, (0.0, 0.0))
                self._sums[name] = (old[0] + float(s), old[1] + float(w))
        self._pending = []
        return {k: list(v) for k, v in self._sums.items()}

    def take(self) -> dict[str, float]:
        """The averages, and a fresh start. Metrics without weight are left out."""
        means = {k: s / w for k, (s, w) in self.sums().items() if w > 0}
        self._sums = {}
        return means


class Writer:
    """Appends rows to the workdir's logs; on processes other than the first it writes nothing.

    In a bucket nothing can grow: there the logs are written anew as wholes, at `flush`, `close` and every half minute.

    Args:
      workdir: the run's.
      resume_step: rows of later steps are cut off, for the run is about to write them again.
      tensorboard: also write event files.
    """

    def __init__(self, workdir: paths.Path, *, resume_step: int = 0, tensorboard: bool = True) -> None:
        self._files, self._board, self._events = {}, None, None
        if jax.process_index() != 0:
            return
        paths.make_folder(workdir)
        for name in ("metrics", "performance"):
            path = workdir / f"{name}.jsonl"
            self._files[name] = _Log(path, _kept(path, resume_step)) if paths.is_bucket(path) else _appended(path, resume_step)
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = paths.Staging(workdir / "tensorboard")
            self._board = SummaryWriter(str(self._events.path), purge_step=resume_step + 1 if resume_step else None)

    def write(self, step: int, values: Mapping[str, Any], *, performance: bool = False) -> None:
        """Appends one row; numbers also go to TensorBoard."""
        if not self._files:
            return
        file = self._files["performance" if performance else "metrics"]
        file.write(json.dumps({"step": step} | {k: _round(v) for k, v in values.items()}) + "\n")
        file.flush()
        if self._board:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Returns when every row so far is where a resumed run will look for it."""
        for file in self._files.values():
            if isinstance(file, _Log):
                file.upload()
        if self._board:
            self._board.flush()
            self._events.publish()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._board:
            self._board.close()
            self._events.publish()


class _Log:
    """A log in a bucket as a file to append to; `rows` are those of it that stay."""

    def __init__(self, path: paths.Path, rows: list[str]) -> None:
        self._path, self._rows, self._uploaded, self._time = path, rows, -1, time.monotonic()

    def write(self, row: str) -> None:
        self._rows.append(row)

    def flush(self) -> None:
        if time.monotonic() - self._time > UPLOAD_SECONDS:
            self.upload()

    def upload(self) -> None:
        if self._uploaded != len(self._rows):
            paths.write_whole(self._path, "".join(self._rows).encode())
        self._uploaded, self._time = len(self._rows), time.monotonic()

    close = upload


def _round(value: Any) -> Any:
    """Floats to seven digits, what an f32 holds; null for what JSON has no word for."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _appended(path: pathlib.Path, step: int) -> TextIO:
    """The log open for more rows, those after `step` dropped."""
    if path.exists():
        beside = path.with_suffix(".tmp")
        beside.write_text("".join(_kept(path, step)))
        os.replace(beside, path)
    return path.open("a")


def _kept(path: paths.Path, step: int) -> list[str]:
    """The rows up to `step`, without a last line that a killed process left unfinished."""
    kept = []
    if not path.exists():
        return kept
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            logging.warning("%s: dropped a line that is not a row of the log: %.60s", path, line)
    return kept


class Speed:
    """Images per second, step time, share of time spent waiting for data, and utilisation between two log rows.

    Args:
      batch_size: examples per step.
      flops_per_example: of a training step.
    """

    def __init__(self, batch_size: int, flops_per_example: float) -> None:
        self._batch, self._flops = batch_size, flops_per_example
        kind = jax.devices()[0].device_kind
        known = [PEAK_FLOPS[k] for k in sorted(PEAK_FLOPS, key=len, reverse=True) if kind.startswith(k)]
        self._peak = known[0] * jax.device_count() if known else None
        self._start, self._steps, self._waited, self._paused = time.perf_counter(), 0, 0.0, 0.0

    def step(self) -> None:
        self._steps += 1

    def pause(self, seconds: float) -> None:
        """Takes time out of the count that was spent on evaluation or saving."""
        self._paused += seconds

    def take(self, waited: float) -> dict[str, float]:
        """Figures since the last call. waited: seconds that the loop has waited for data since its start."""
        now = time.perf_counter()
        seconds = max(now - self._start - self._paused, 1e-9)
        figures = {
            "images_per_s": self._steps * self._batch / seconds,
            "step_ms": 1000 * seconds / max(self._steps, 1),
            "data_wait": min((waited - self._waited) / seconds, 1.0),
            "tflops": self._flops * self._steps * self._batch / seconds / 1e12,
        }
        if self._peak:
            figures["mfu"] = figures["tflops"] * 1e12 / self._peak
        self._start, self._steps, self._waited, self._paused = now, 0, waited, 0.0
        return {f"train/{k}": v for k, v in figures.items()}


class Progress:
    """One line that says where the run is and when it ends; redrawn on a terminal, appended elsewhere."""

    def __init__(self, start: int, total: int) -> None:
        self._total, self._last, self._rate = total, (start, time.perf_counter()), None
        self._terminal = sys.stderr.isatty()

    def show(self, step: int, figures: Mapping[str, float]) -> None:
        if jax.process_index() != 0:
            return
        (last, then), now = self._last, time.perf_counter()
        rate = (now - then) / max(step - last, 1)
        self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
        self._last = (step, now)
        wanted = {"loss": "loss {:.4f}", "bits_per_token": "{:.3f} bits/token", "psnr": "{:.2f} dB", "codebook_usage": "codes {:.0%}", "images_per_s": "{:.0f} img/s"}
        words = [text.format(figures[f"train/{k}"]) for k, text in wanted.items() if f"train/{k}" in figures]
        line = f"step {step}/{self._total} ({step / self._total:.0%})  {'  '.join(words)}  {clock((self._total - step) * self._rate)} left"
        print("\r\x1b[K" + line if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def note(self, step: int, figures: Mapping[str, float]) -> None:
        """Prints evaluation figures on a line of their own."""
        self.end()
        if jax.process_index() == 0:
            print(f"step {step}: " + "  ".join(f"{k.removeprefix('eval/')} {v:.4g}" for k, v in figures.items()), file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal and jax.process_index() == 0:
            print(file=sys.stderr)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
