"""What the processes of a run tell each other: values, errors and notes, through the store of keys on process 0.

It is JAX's coordination service, not the devices, that they talk through: a process that is late or gone is then found by
name, and not by a stall. Every process calls these functions in the same order.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vimlab import exits
from vimlab.config import UserError, diff

PATIENCE = 3600.0  # Seconds that processes wait for each other where one may have much to do; one that has died is noticed sooner.
NOTES = "vimlab/notes/"

_turns, _spent = itertools.count(), []


class Lost(Exception):
    """Another process is gone, or did not come in time; the message says which and where."""


class Told(UserError):
    """What another process failed of, as it said itself."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def index() -> int:
    """Which process this is, from 0; unlike JAX's function, it starts no device."""
    return state().process_id


def count() -> int:
    """How many processes there are."""
    return state().num_processes


def first(action: Callable[[], Any]) -> Any:
    """Runs `action` on process 0 alone; every process gets what it returned (JSON values), or its error as a UserError."""
    if count() == 1:
        return action()
    key, store = f"vimlab/first/{next(_turns)}", state().client
    if index() == 0:
        try:
            value = action()
        except Exception as error:
            code, sentence = verdict(error)
            store.key_value_set(key, json.dumps({"code": code, "error": sentence}))
            raise
        store.key_value_set(key, json.dumps({"value": value}))
        return value
    try:
        told = json.loads(store.blocking_key_value_get(key, int(PATIENCE * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise Lost(f"process 0 did not do its part within {PATIENCE:.0f} s, or is gone ({one_line(error)})") from error
    if "error" in told:
        raise Told(f"process 0 of {count()}: {told['error']}", told["code"])
    return told["value"]


def gather(value: Any, what: str, seconds: float = PATIENCE, key: str | None = None) -> list[Any]:
    """The JSON value of every process, by its index; all of them wait for each other here.

    Args:
      what: names this place in the error of those that wait in vain.
      key: of this meeting, where not every process comes to it in the same order as to others; used once.

    Raises:
      Lost: a process has not come within `seconds`.
    """
    if count() == 1:
        return [value]
    store, in_turn = state().client, key is None
    key = key or f"vimlab/gather/{next(_turns)}"
    store.key_value_set(f"{key}/{index()}", json.dumps(value))
    there = lambda: {int(k.rpartition("/")[2]): json.loads(v) for k, v in store.key_value_dir_get(f"{key}/")}
    try:
        store.wait_at_barrier(key, int(seconds * 1000))
        found = there()
        if in_turn:
            # All are here, so all have read what was gathered last.
            for spent in _spent:
                store.key_value_delete(spent)
            _spent[:] = [f"{key}/{index()}"]
    except jax.errors.JaxRuntimeError as error:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if missing := sorted(set(range(count())) - set(there())):
                raise Lost(f"{_names(missing)} did not come to {what} within {seconds:.0f} s") from error
        raise Lost(f"waiting for the others at {what} failed ({one_line(error)})") from error
    return [found[i] for i in range(count())]


def on_any(flag: bool, what: str) -> bool:
    """Whether `flag` is true on at least one process; all of them wait for each other here."""
    return any(gather(bool(flag), what))


def compare(what: str, facts: Mapping[str, Any]) -> None:
    """Raises UserError, on every process, where the processes' facts (JSON values) differ; it names what differs, and where."""
    text = json.dumps(facts, sort_keys=True)
    digests = gather(hashlib.sha256(text.encode()).hexdigest(), f"the comparison of their {what}")
    other = next((i for i, digest in enumerate(digests) if digest != digests[0]), None)
    if other is None:
        return
    found = gather(facts if index() in (0, other) else None, f"the comparison of their {what}")
    differences = [f"{key} {b!r} instead of {a!r}" for key, (a, b) in diff(found[0], found[other]).items()]
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    raise UserError(f"process {other} differs from process 0 in its {what}: {', '.join(differences[:3])}{more}; start all {len(digests)} "
                    "processes with the same code and command")  # fmt: skip


def note(name: str, text: str) -> None:
    """Leaves a note that every process hears."""
    state().client.key_value_set(NOTES + name, text, allow_overwrite=True)


def read_notes() -> dict[str, str]:
    """All notes, by name."""
    return {key.removeprefix(NOTES): text for key, text in state().client.key_value_dir_get(NOTES)}


def verdict(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence of an error."""
    if isinstance(error, Told):
        return error.code, str(error)
    if isinstance(error, (UserError, FloatingPointError)):
        return exits.USER_ERROR, " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return exits.INTERRUPTED, "interrupted"
    text = one_line(error)
    broken = ("gloo", "connection", "socket closed", "unavailable", "heartbeat", "unhealthy", "coordination service")
    if isinstance(error, Lost) or (isinstance(error, jax.errors.JaxRuntimeError) and any(word in text.lower() for word in broken)):
        return exits.LOST, f"has lost another one ({text}); the same command goes on from the last checkpoint"
    return exits.FAILED, text


def state() -> Any:
    """What JAX knows of its processes, with the `client` of its store of keys; there is no public name for either."""
    from jax._src import distributed

    return distributed.global_state


def _names(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
    return f"process {shown}" if len(indices) == 1 else f"processes {shown}"


def one_line(error: BaseException) -> str:
    """An error's kind and message, shortened, for use within a sentence."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
