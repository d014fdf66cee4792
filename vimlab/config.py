"""Config files become strict, frozen dataclasses: loading, overrides, durations, dumps, differences.

A config file is plain Python with `get_config(arg)` returning an `ml_collections.ConfigDict`. A *schema* (a frozen
dataclass whose fields may be dataclasses again) says which keys exist and what they hold. Whatever the file and the
command line set must be in the schema, so a key that nothing reads cannot exist.

This module imports neither JAX nor any model, so that mistakes in a config show within a second.
"""

import ast
import copy
import dataclasses
import difflib
import fractions
import importlib.util
import math
import pathlib
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections

T = TypeVar("T")
UNITS = ("steps", "epochs", "examples", "percent")


class UserError(ValueError):
    """A mistake of the user's; the message is one sentence that says what to change, and all that the user is shown."""


class ConfigError(UserError):
    """A mistake in a config or an override."""


class Text(str):
    """A value typed on the command line: its meaning is decided by the annotation of the field that it is meant for."""


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training: `Duration(100, "epochs")`, written `"100 epochs"` in configs; a bare number means steps.

    Percent is of the whole run.
    """

    count: float
    unit: str = "steps"

    @classmethod
    def parse(cls, text: "str | int | float | Duration") -> "Duration":
        """Reads `500`, `"500 steps"`, `"2.5 epochs"`, `"1e6 examples"` or `"5 percent"`. Raises ConfigError."""
        if isinstance(text, Duration):
            return text
        words = str(text).replace("_", "").split()
        unit = words[1] if len(words) == 2 else "steps"
        unit = unit if unit.endswith("s") or unit == "percent" else unit + "s"
        try:
            count = float(words[0])
        except (IndexError, ValueError):
            count = math.nan
        if len(words) not in (1, 2) or unit not in UNITS or not math.isfinite(count) or count < 0:
            raise ConfigError(f"{str(text)!r} is not a duration; write for example '500 steps', '10 epochs', '1e6 examples' or '5 percent'")
        return cls(count, unit)

    def steps(self, batch_size: int, epoch_examples: int | None = None, total: int | None = None) -> int:
        """The duration in whole optimizer steps, rounded up.

        Args:
          batch_size: examples per step.
          epoch_examples: size of the training set.
          total: steps of the whole run, which "percent" refers to.

        Raises:
          ConfigError: what the unit refers to is not known.
        """
        count = fractions.Fraction(str(self.count))  # The decimal as it was written: 1.1 epochs are not a step more.
        if self.unit == "steps":
            return math.ceil(count)
        if self.unit == "examples":
            return math.ceil(count / batch_size)
        if self.unit == "percent":
            if total is None:
                raise ConfigError(f"'{self}' has no run to refer to here; give the duration in steps, epochs or examples")
            return math.ceil(count * total / 100)
        if not epoch_examples:
            raise ConfigError(f"'{self}' needs a data set of known size; give the duration in steps or examples")
        return math.ceil(count * epoch_examples / batch_size)

    def __str__(self) -> str:
        return f"{int(self.count) if self.count == int(self.count) else self.count} {self.unit}"


def parse_arg(arg: str | None, **defaults: Any) -> types.SimpleNamespace:
    """Parses the text after the colon of `config.py:smoke,size=base` against defaults; a bare name means True.

    Raises:
      ConfigError: a name that has no default here, or a value of another type than its default.
    """
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, _, text = item.partition("=")
        if key not in defaults:
            raise ConfigError(f"config argument {key!r} is unknown{suggest(key, defaults)} (this config takes {', '.join(sorted(defaults))})")
        values[key] = _convert(type(defaults[key]), Text(text or "true"), f"argument {key!r}")
    return types.SimpleNamespace(**values)


def load(spec: str) -> ml_collections.ConfigDict:
    """Runs `get_config` of `path/to/config.py[:arg]`. Raises ConfigError when there is no such file or function."""
    path, _, arg = spec.partition(":")
    file = pathlib.Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.py")], 1) if file.parent.is_dir() else []
        raise ConfigError(f"config file {path!r} does not exist" + (f"; did you mean {str(file.parent / near[0])!r}?" if near else ""))
    module_spec = importlib.util.spec_from_file_location(f"vimlab_config_{file.stem}", file)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file {path!r} has no function get_config(arg)")
    return module.get_config(arg)


def resolve(schema: type[T], config: Mapping[str, Any] | ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]] = ()) -> T:
    """Applies dotted `(key, text)` overrides to a config and builds the schema from it.

    Choosing another variant of a section (`optim.name=adafactor`) drops the keys that only the old variant knows.

    Raises:
      ConfigError: an unknown key (with the nearest known one), a missing one, or a value of the wrong type.
    """
    tree = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else copy.deepcopy(dict(config))
    switched = set()
    for key, text in overrides:
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        if leaf == "name" and node.get("name") != text:
            switched.add(".".join(parents))
        node[leaf] = Text(text)
    return _build(schema, tree, (), frozenset(switched))


def _build(schema: type, section: Any, path: tuple[str, ...], switched: frozenset[str]) -> Any:
    where = ".".join(("config",) + path)
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where} is a section of keys, not the value {section!r}")
    hints = typing.get_type_hints(schema)
    fields = {f.name: f for f in dataclasses.fields(schema)}
    values = {}
    for key, value in section.items():
        if key == "name" and hasattr(schema, "NAME") and "name" not in fields:
            if value != schema.NAME:
                raise ConfigError(f"{where}.name is {str(value)!r}, but can only be {schema.NAME!r} here")
            continue
        if key not in fields:
            if ".".join(path) in switched and not isinstance(value, Text):
                continue
            raise ConfigError(f"{where}.{key} is unknown{suggest(key, fields)} ({where} takes {', '.join(sorted(fields))})")
        values[key] = _convert(hints[key], value, f"{where}.{key}", path + (key,), switched)
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name} is missing and has no default; set it in the config or with --{where}.{name}=…")
    try:
        return schema(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str, path: tuple[str, ...] = (), switched: frozenset[str] = frozenset()) -> Any:
    """Turns a config value, or a word from the command line, into what the annotation asks for."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in args and (value is None or (isinstance(value, Text) and value.lower() in ("none", "null"))):
            return None
        choices = [a for a in args if a is not type(None)]
        if all(dataclasses.is_dataclass(a) and hasattr(a, "NAME") for a in choices):
            return _build(_variant(choices, value, where), value, path, switched)
        for choice in choices:
            try:
                return _convert(choice, value, where, path, switched)
            except ConfigError:
                if choice is choices[-1]:
                    raise
    if hint is Any:
        return _literal(value) if isinstance(value, Text) else value
    if hint is Duration:
        try:
            return Duration.parse(value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    if dataclasses.is_dataclass(hint):
        return _build(_variant([hint], value, where) if hasattr(hint, "NAME") else hint, value, path, switched)
    if origin is typing.Literal:
        match = [a for a in args if str(a) == str(value)]
        if not match:
            raise ConfigError(f"{where} is {str(value)!r}, but must be one of {list(args)}")
        return match[0]
    if origin is tuple:
        items = [Text(v.strip()) for v in value.strip("()[]").split(",") if v.strip()] if isinstance(value, Text) else value
        if isinstance(items, (list, tuple)):
            return tuple(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(items))
    if origin is dict and isinstance(value, Mapping):
        return {k: _convert(args[1], v, f"{where}.{k}", path + (k,), switched) for k, v in value.items()}
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(hint)
    if kind is None:
        raise ConfigError(f"{where} cannot be {value!r}; it must be {hint}")
    if isinstance(value, Text) and hint is not str:
        value = {"true": True, "false": False}.get(value.lower(), _literal(value))
    if hint is float and type(value) is int:
        value = float(value)
    if hint is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not hint and not (hint is str and isinstance(value, str)):
        raise ConfigError(f"{where} must be {kind}, not {value!r}")
    return str(value) if hint is str else value


def _variant(choices: Sequence[type], value: Any, where: str) -> type:
    """The dataclass that a section's `name` chooses; without a name, the first."""
    names = {c.NAME: c for c in choices}
    name = value.get("name", choices[0].NAME) if isinstance(value, Mapping) else choices[0].NAME
    if name not in names:
        raise ConfigError(f"{where}.name is {str(name)!r}{suggest(str(name), names)} (known are {', '.join(sorted(names))})")
    return names[name]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return str(text)


def suggest(key: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the nearest of the known names, or nothing."""
    near = difflib.get_close_matches(key, list(known), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def to_dict(value: Any) -> Any:
    """A resolved config as plain JSON values; `resolve(type(value), to_dict(value)) == value`."""
    if isinstance(value, Duration):
        return str(value)
    if dataclasses.is_dataclass(value):
        name = {"name": value.NAME} if hasattr(value, "NAME") else {}
        return name | {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: to_dict(v) for k, v in value.items()}
    return [to_dict(v) for v in value] if isinstance(value, (tuple, list)) else value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one mapping from dotted keys to values."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return flat


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ, each with its old and its new value (`"(absent)"` where it has none)."""
    a, b = flatten(old), flatten(new)
    return {k: (a.get(k, "(absent)"), b.get(k, "(absent)")) for k in sorted(a | b) if a.get(k, "(absent)") != b.get(k, "(absent)")}


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separates `--config.a.b=v` (or `--config.a.b v`) from the other arguments. Raises ConfigError without a value."""
    rest, overrides, items = [], [], iter(argv)
    for item in items:
        match = re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", item, re.DOTALL)
        if not match:
            rest.append(item)
            continue
        value = match[2] if match[2] is not None else next(items, None)
        if value is None or (match[2] is None and value.startswith("--")):
            raise ConfigError(f"{item} needs a value, as in {item}=1")
        overrides.append((match[1], value))
    return rest, overrides


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["config", *sys.argv[1:]])
