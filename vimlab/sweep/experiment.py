"""What a sweep is made of: an experiment file, or a config and `--over key=values`; and the form of its report.

An experiment file is Python with `base` (a config file, which may have arguments), `sweep()` (overrides; see `algebra`), and where the
defaults do not suit `report()` (a `Report`) and `evals` (evaluators that `vimlab eval` runs after each training, comma-separated).
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vimlab.config import ConfigError, suggest
from vimlab.sweep import algebra


@dataclasses.dataclass(frozen=True)
class Against:
    """A plot of a figure against the values of a swept key, a line for each value of `by`."""

    figure: str
    key: str
    by: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """How a sweep is shown.

    Attributes:
      title: of the page.
      columns: figures as `EVALUATOR/FIGURE`, or `train/FIGURE` as it was logged last; those of all the trials' evaluators if none is given.
      best: the figure that the best trial has most of, or least of after a minus sign.
      baseline: what the baseline trial changes, that the others are compared with; the first trial if nothing is given.
      plots: `Against`, or names of logged metrics drawn over steps.
      reference: heads and rows of a table of published figures, and what it is.
      findings: makes sentences of the groups' figures, in the form that the table's JSON has.
    """

    title: str = ""
    columns: Sequence[str] = ()
    best: str = ""
    baseline: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    plots: Sequence[Against | str] = ()
    reference: tuple[str, Sequence[str], Sequence[Sequence[str]]] | None = None
    findings: Callable[[Sequence[Mapping[str, Any]]], Sequence[str]] | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What to sweep over.

    Attributes:
      name: the file's.
      base: config file and argument.
      sweep: makes the overrides, afresh at each call.
      evals: evaluators to run after each training, comma-separated.
      report: how it is shown.
    """

    name: str
    base: str
    sweep: Callable[[], Iterator[Mapping[str, Any]]]
    evals: str = ""
    report: Report = dataclasses.field(default_factory=Report)


def read(target: str, over: Sequence[str] = (), base_args: Sequence[str] = ()) -> Experiment:
    """Reads an experiment file, or a config file and argument with `key=value,value` for each key of `over`.

    Args:
      target: the file; a config's may have an argument.
      over: only with a config.
      base_args: added to the argument of the config.

    Raises:
      ConfigError: there is no such file, or it lacks a part or has one of a wrong type.
    """
    path, _, arg = target.partition(":")
    module = _module(path)
    if hasattr(module, "sweep"):
        if arg or over:
            raise ConfigError(f"{path} is an experiment with a sweep of its own; give its config arguments with --base-arg, and set keys of all "
                              "its trials with --config.key=value")
        return _experiment(path, module, base_args)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} is neither a config (it has no get_config) nor an experiment (it has no sweep)")
    if not over:
        raise ConfigError(f"{path} is a config; say what to sweep over, as in --over seed=0,1,2")
    axes = dict(map(_axis, over))
    if len(axes) < len(over):
        raise ConfigError("--over names a key twice; give all of its values after one --over")
    return Experiment(pathlib.Path(path).stem, _with_args(target, base_args), lambda: algebra.product(axes))


def _experiment(path: str, module: Any, base_args: Sequence[str]) -> Experiment:
    if not isinstance(getattr(module, "base", None), str):
        raise ConfigError(f"experiment {path} must hold base, the path of a config file as text")
    report, evals = getattr(module, "report", Report), getattr(module, "evals", "")
    for name, right in (("sweep", callable(module.sweep)), ("report", callable(report)), ("evals", isinstance(evals, str))):
        if not right:
            raise ConfigError(f"experiment {path} holds a {name} of a wrong type; sweep and report are functions, evals is text")
    shown = report()
    if not isinstance(shown, Report):
        raise ConfigError(f"report() of experiment {path} must return a vimlab.sweep.Report, not {type(shown).__name__}")
    return Experiment(pathlib.Path(path).stem, _with_args(module.base, base_args), module.sweep, evals, shown)


def _module(path: str) -> Any:
    file = pathlib.Path(path)
    if not file.is_file():
        known = [str(p) for folder in ("experiments", "configs") for p in sorted(pathlib.Path(folder).glob("*.py"))]
        raise ConfigError(f"there is no file {path!r} to sweep{suggest(path, known)}")
    spec = importlib.util.spec_from_file_location(f"vimlab_experiment_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _with_args(base: str, base_args: Sequence[str]) -> str:
    path, _, arg = base.partition(":")
    joined = ",".join(filter(None, [arg, *base_args]))
    return f"{path}:{joined}" if joined else path


def _axis(item: str) -> tuple[str, list[str]]:
    key, sign, values = item.partition("=")
    key = key.removeprefix("config.")
    if not sign or not key or not all(algebra.split_values(values)):
        raise ConfigError(f"--over {item!r} must be a key and its values, as in --over model.quantizer.dim=4,8,16")
    return key, algebra.split_values(values)
