"""The algebra of sweeps: generators of overrides, joined by `product`, `zip_` and `chain`.

A part is any iterable of overrides, that is of mappings from dotted config keys to values; or one mapping from keys to lists of values,
which stands for as many parts, one a key:

    product({"model.quantizer.dim": [4, 8]}, chain(fixed({"reseed": None}), {"reseed.every": [5, 25]}), seeds(3))
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vimlab.config import ConfigError


class Overrides(dict):
    """Dotted config keys and their values; `common` keys are in a trial's name only where trials differ in them."""

    def __init__(self, values: Mapping[str, Any] = (), common: Iterable[str] = ()) -> None:
        super().__init__(values)
        self.common = frozenset(common)


Part = Iterable[Mapping[str, Any]] | Mapping[str, Any]  # Of the latter each value is a list; `_values` says so to whom it is not.


def product(*parts: Part) -> Iterator[Overrides]:
    """Each of the first part with each of the second, and so on; the last part changes fastest."""
    for chosen in itertools.product(*_axes(parts)):
        yield _join(chosen)


def zip_(*parts: Part) -> Iterator[Overrides]:
    """The first of each part, then the second of each. Raises ConfigError where the parts are not equally long."""
    axes = [list(axis) for axis in _axes(parts)]
    if len({len(axis) for axis in axes}) > 1:
        raise ConfigError(f"zip_ joins parts of one length, but these have {[len(axis) for axis in axes]}")
    for chosen in zip(*axes, strict=True):
        yield _join(chosen)


def chain(*parts: Part) -> Iterator[Overrides]:
    """All of the first part, then all of the second, and so on; of a mapping, one key after the other is changed alone."""
    for axis in _axes(parts):
        yield from (_join((overrides,)) for overrides in axis)


def fixed(values: Mapping[str, Any]) -> Iterator[Overrides]:
    """What the trials share: one element, left out of their names unless they differ in it."""
    yield Overrides(values, values)


def seeds(which: int | Iterable[int]) -> Iterator[Overrides]:
    """The seeds 0 to n - 1, or those given."""
    for seed in range(which) if isinstance(which, int) else which:
        yield Overrides({"seed": seed})


def _axes(parts: Iterable[Part]) -> Iterator[Iterable[Mapping[str, Any]]]:
    for part in parts:
        if isinstance(part, Mapping):
            yield from ([{key: value} for value in _values(key, values)] for key, values in part.items())
        else:
            yield part


def _values(key: str, values: Any) -> Iterable[Any]:
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise ConfigError(f"the sweep gives {key} the single value {values!r}; write a list of values, or fixed({{{key!r}: {values!r}}})")
    return values


def _join(chosen: Iterable[Mapping[str, Any]]) -> Overrides:
    joined, common = {}, set()
    for overrides in chosen:
        if twice := joined.keys() & overrides.keys():
            raise ConfigError(f"two parts of the sweep's product both set {min(twice)}; leave it out of one of them")
        joined |= overrides
        common |= getattr(overrides, "common", frozenset())
    return Overrides(joined, common)


def text(value: Any) -> str:
    """A value as it is typed after `--config.key=`. Raises ConfigError for what cannot be typed."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(text, value))
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ConfigError(f"a sweep's values are numbers, texts, true, false and none, not {value!r}; set the keys of a section one by one")


def split_values(values: str) -> list[str]:
    """`4,8,[1,2]` → `4`, `8`, `[1,2]`: commas within brackets belong to a value."""
    found, depth = [""], 0
    for letter in values:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return [value.strip() for value in found]
