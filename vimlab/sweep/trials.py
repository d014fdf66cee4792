"""Trials: overrides resolved to configs, named by what they change, each once, each an ordinary command."""

import collections
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vimlab import config as configs
from vimlab import run as runs
from vimlab.config import ConfigError
from vimlab.sweep.algebra import text

LONGEST_VALUE, LONGEST_NAME = 32, 120
SEED = "seed"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
      name: what it changes, as a folder's name.
      overrides: all of them, as they are typed.
      changes: those that the name tells.
      config: the resolved config's JSON values.
    """

    name: str
    overrides: dict[str, str]
    changes: dict[str, str]
    config: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the resolved config: two trials with one digest are the same run."""
        return _digest(self.config)

    def train(self, base: str, workdir: pathlib.Path | str) -> list[str]:
        """The arguments of `vimlab` that train it."""
        return ["train", "--config", base, "--workdir", str(workdir), *(f"--config.{k}={v}" for k, v in self.overrides.items())]


def make_trials(base: str, sweep: Iterable[Mapping[str, Any]], everywhere: Sequence[tuple[str, str]] = ()) -> tuple[list[Trial], int]:
    """Resolves each of a sweep's overrides over a config.

    Args:
      base: config file and argument.
      sweep: overrides; those with an attribute `common` say which keys are no news.
      everywhere: overrides for every trial, which win.

    Returns:
      the trials in their order, and how many were left out because another resolves to the same config.

    Raises:
      ConfigError: nothing to run, an unknown key, a value of the wrong type; the sentence names the overrides.
    """
    config = configs.load(base)
    points = list(sweep)
    if not points:
        raise ConfigError("the sweep is empty: it makes no trials")
    overrides = [{k: text(v) for k, v in point.items()} | dict(everywhere) for point in points]
    common = frozenset.intersection(*(frozenset(getattr(point, "common", ())) for point in points)) | {k for k, _ in everywhere}
    told = [k for k in dict.fromkeys(k for o in overrides for k in o) if k not in common or len({o.get(k) for o in overrides}) > 1]
    changes = [{k: o[k] for k in sorted(told, key=SEED.__eq__) if k in o} for o in overrides]  # The seed last.
    trials: dict[str, Trial] = {}
    for name, o, c in zip(names(changes), overrides, changes, strict=True):
        try:
            resolved = runs.to_dict(runs.resolve(config, list(o.items())))
        except ConfigError as error:
            raise ConfigError(f"trial {name}: {error}") from None
        trials.setdefault(_digest(resolved), Trial(name, o, c, resolved))
    return list(trials.values()), len(points) - len(trials)


def names(changes: Sequence[Mapping[str, str]]) -> list[str]:
    """A folder's name for each: `dim=4_seed=0`. The part of a key that tells it from the others; what changes nothing is `base`."""
    short = short_keys({k for c in changes for k in c})
    found = ["_".join(f"{short[k]}={_safe(v)}" for k, v in c.items()) or "base" for c in changes]
    found = [n if len(n) <= LONGEST_NAME else f"{n[: LONGEST_NAME - 7]}-{_digest(dict(c))[:6]}" for n, c in zip(found, changes, strict=True)]
    # Two texts that are alike once they are safe; the same changes twice are one trial anyway.
    unlike = collections.defaultdict(set)
    for name, c in zip(found, changes, strict=True):
        unlike[name.lower()].add(_digest(dict(c)))
    return [n if len(unlike[n.lower()]) == 1 else f"{n}-{_digest(dict(c))[:6]}" for n, c in zip(found, changes, strict=True)]


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """The fewest last parts of each dotted key that no other of the keys ends in."""
    keys, short = set(keys), {}
    for key in keys:
        parts = key.split(".")
        tails = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        ends = lambda tail: sum(f".{other}".endswith(f".{tail}") for other in keys)  # noqa: B023
        short[key] = next((tail for tail in tails if ends(tail) == 1), key)
    return short


def _safe(value: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-") or "empty"
    return safe if len(safe) <= LONGEST_VALUE else f"{safe[-LONGEST_VALUE + 7 :]}-{hashlib.sha256(value.encode()).hexdigest()[:6]}"


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
