"""What the trials of a sweep gave: figures, means and spread over seeds, and paired differences from the baseline."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vimlab.config import ConfigError, flatten, suggest
from vimlab.evals import workdir
from vimlab.evals.comparison import ORIGIN
from vimlab.paths import Path
from vimlab.sweep.algebra import text
from vimlab.sweep.experiment import Report
from vimlab.sweep.store import Sweep
from vimlab.sweep.trials import SEED, Trial, names

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one trial gave.

    Attributes:
      trial: which.
      state, message: see `Sweep.state`.
      figures: `EVALUATOR/FIGURE` of its newest results, `train/FIGURE` as it was logged last; empty before it is done.
      series: metric name → (steps f64[P], values f64[P]).
      protocols: evaluator name → how its figures came about, without what only says where and when.
    """

    trial: Trial
    state: str
    message: str
    figures: dict[str, float]
    series: Series
    protocols: dict[str, dict[str, Any]]

    @property
    def seed(self) -> int:
        return self.trial.config[SEED]


@dataclasses.dataclass(frozen=True)
class Statistic:
    """Mean and standard deviation (of the sample; None of a single value) of some values, by seed."""

    values: dict[int, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.values.values())))

    @property
    def spread(self) -> float | None:
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else None

    def minus(self, other: "Statistic") -> "Statistic | None":
        """The differences by seed, of the seeds that both have; None where they share none."""
        shared = [seed for seed in self.values if seed in other.values]
        return Statistic({seed: self.values[seed] - other.values[seed] for seed in shared}) if shared else None


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials that differ in their seed alone.

    Attributes:
      name: what they change.
      changes: the same by key.
      outcomes: theirs.
      figures: of those that are done.
      differences: from the baseline over shared seeds; empty for the baseline itself.
    """

    name: str
    changes: dict[str, str]
    outcomes: tuple[Outcome, ...]
    figures: dict[str, Statistic]
    differences: dict[str, Statistic]


@dataclasses.dataclass(frozen=True)
class Results:
    """A sweep's results.

    Attributes:
      sweep, report: theirs.
      columns: the figures that are shown.
      groups: in the order of their first trials.
      baseline: name of the group that the others are compared with.
    """

    sweep: Sweep
    report: Report
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    baseline: str

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for group in self.groups for outcome in group.outcomes]

    def findings(self) -> list[str]:
        """What the experiment's report concludes; nothing before all trials are done."""
        finished = all(outcome.state == "done" for outcome in self.outcomes)
        return list(self.report.findings(as_json(self)["groups"])) if self.report.findings and finished else []


def collect(sweep: Sweep, report: Report, columns: Sequence[str] = (), baseline: str = "") -> Results:
    """Reads what the trials have left.

    Args:
      sweep, report: theirs.
      columns: figures in place of the report's.
      baseline: name of a group in place of the report's.

    Raises:
      ConfigError: no trial has such a figure, or there is no such group.
    """
    outcomes = [read(sweep, trial) for trial in sweep.trials]
    known = dict.fromkeys(name for outcome in outcomes for name in outcome.figures)
    columns = tuple(columns or report.columns or [name for name in known if not name.startswith("train/")] or list(known))
    for column in columns:
        if known and column not in known:
            raise ConfigError(f"no trial of {sweep.root} has the figure {column!r}{suggest(column, known)} (there are {', '.join(known)})")
    together: dict[tuple, list[Outcome]] = {}
    for outcome in outcomes:
        together.setdefault(tuple((k, v) for k, v in outcome.trial.overrides.items() if k != SEED), []).append(outcome)
    changes = [{k: v for k, v in members[0].trial.changes.items() if k != SEED} for members in together.values()]
    groups = [
        Group(name, change, tuple(members), {c: s for c in columns if (s := _statistic(members, c))}, {})
        for name, change, members in zip(names(changes), changes, together.values(), strict=True)
    ]
    base = _baseline(groups, baseline, {k: text(v) for k, v in report.baseline.items()})
    return Results(sweep, report, columns, tuple(_compared(group, base) for group in groups), base.name)


def read(sweep: Sweep, trial: Trial) -> Outcome:
    """One trial's outcome."""
    state, message = sweep.state(trial)
    try:
        run = workdir.read(sweep.workdir(trial))
    except ConfigError:
        return Outcome(trial, state, message, {}, {}, {})  # It has not begun.
    newest = {name: records[-1] for name, records in run.results.items()}
    figures = {f"{name}/{k}": v for name, record in newest.items() for k, v in record["metrics"].items() if v is not None}
    figures |= {name: float(values[-1]) for name, (_, values) in run.series.items() if name.startswith("train/") and len(values)}
    protocols = {name: {k: v for k, v in flatten(record["protocol"]).items() if k not in ORIGIN} for name, record in newest.items()}
    return Outcome(trial, state, message, figures if state == "done" else {}, run.series, protocols)


def _statistic(outcomes: Sequence[Outcome], column: str) -> Statistic | None:
    values = {o.seed: o.figures[column] for o in outcomes if column in o.figures}
    return Statistic(values) if values else None


def _baseline(groups: Sequence[Group], name: str, changes: Mapping[str, str]) -> Group:
    if name:
        found = [g for g in groups if g.name == name]
        if not found:
            raise ConfigError(f"there is no baseline {name!r}{suggest(name, [g.name for g in groups])} (there are {', '.join(g.name for g in groups)})")
        return found[0]
    found = [g for g in groups if changes.items() <= g.outcomes[0].trial.overrides.items()]
    if not found:
        raise ConfigError(f"no trial of this sweep has what report() calls its baseline, {dict(changes)}")
    return found[0]


def _compared(group: Group, base: Group) -> Group:
    if group is base:
        return group
    pairs = {c: s.minus(base.figures[c]) for c, s in group.figures.items() if c in base.figures}
    return dataclasses.replace(group, differences={c: s for c, s in pairs.items() if s})


def shared_protocols(outcomes: Sequence[Outcome]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What the protocols of all trials have in common, by evaluator, and the keys in which they differ, as `EVALUATOR/KEY`."""
    shared, unlike = {}, []
    for name in dict.fromkeys(name for o in outcomes for name in o.protocols):
        protocols = [o.protocols[name] for o in outcomes if name in o.protocols]
        keys = dict.fromkeys(key for p in protocols for key in p)
        alike = {key for key in keys if all(p.get(key) == protocols[0].get(key) for p in protocols)}
        shared[name] = {key: without_folders(protocols[0].get(key)) for key in keys if key in alike}
        unlike += [f"{name}/{key}" for key in keys if key not in alike]
    return shared, unlike


def without_folders(value: Any) -> Any:
    """A path's last part, for tables that are shown to others: `data=/a/b#train` → `data=b#train`."""
    if not isinstance(value, str) or "/" not in value:
        return value
    file, colon, arguments = value.partition(":")
    if colon:  # A config and its arguments: where data lies is nobody's business, which config it is is.
        return file + ":" + ",".join(f"{k}{sign}{v.rsplit('/', 1)[-1]}" for k, sign, v in (a.partition("=") for a in arguments.split(",")))
    return value.rstrip("/").rsplit("/", 1)[-1]


def as_json(results: Results) -> dict[str, Any]:
    """Everything that the tables show, and each trial's figures, as JSON values."""
    shared, unlike = shared_protocols(results.outcomes)
    number = lambda s: {"mean": s.mean, "spread": s.spread, "seeds": {str(k): v for k, v in s.values.items()}}
    groups = [
        {"name": g.name, "changes": g.changes, "figures": {c: number(s) for c, s in g.figures.items()},
         "differences": {c: number(s) for c, s in g.differences.items()}}
        for g in results.groups
    ]  # fmt: skip
    trials = [
        {"name": o.trial.name, "overrides": {k: without_folders(v) for k, v in o.trial.overrides.items()}, "state": o.state, "message": o.message,
         "figures": {k: v for k, v in o.figures.items() if not k.startswith("train/") or k in results.columns}}
        for o in results.outcomes
    ]  # fmt: skip
    return {
        "title": results.report.title, "base": without_folders(results.sweep.base), "columns": list(results.columns), "baseline": results.baseline,
        "groups": groups, "trials": trials, "protocols": shared, "differing_protocol_keys": unlike,
    }  # fmt: skip


def progress(folder: Path) -> int | None:
    """The newest step in a run's logs, or None before there is one."""
    steps = []
    for name in ("metrics", "performance"):
        path = folder / f"{name}.jsonl"
        for line in reversed(path.read_text().splitlines() if path.is_file() else ()):
            try:
                steps.append(int(json.loads(line)["step"]))
                break
            except (ValueError, KeyError, TypeError):
                continue  # Being written.
    return max(steps, default=None)


def best(results: Results, figure: str) -> tuple[Group, Statistic]:
    """The group with the highest mean of a figure, or the lowest after a minus sign. Raises ConfigError where none has it."""
    name = figure.removeprefix("-")
    sign = -1 if figure.startswith("-") else 1
    found = [(g, s) for g in results.groups if (s := _statistic(g.outcomes, name)) and math.isfinite(s.mean)]
    if not found:
        known = dict.fromkeys(k for o in results.outcomes for k in o.figures)
        raise ConfigError(f"no trial that is done has the figure {name!r}{suggest(name, known)}; name one with --by"
                          + (f" (there are {', '.join(known)})" if known else ""))
    return max(found, key=lambda pair: sign * pair[1].mean)
