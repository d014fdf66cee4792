"""Many processes as one run: joined within a time-out, compared, and ended together; what goes wrong on one is told by all.

Processes talk through JAX's coordination service, a store of keys on process 0, and not through the devices: a process that
is late or gone is then found by name and not by a stall.
"""

import argparse
import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
from absl import logging

import vimlab
from vimlab import exits
from vimlab.config import UserError, diff
from vimlab.parallel import cluster
from vimlab.parallel.cluster import Cluster, add_flags

__all__ = ["PACKAGES", "Lost", "add_flags", "compare", "count", "first", "gather", "index", "joined", "note", "on_any", "on_stop"]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml-collections")
PATIENCE = 3600.0  # Seconds that processes wait for each other where one may have much to do; one that has died is noticed sooner.
LINGER = 5.0  # Seconds that process 0, on which the store of keys lies, stays for the others to read why it ends.
NOTES = "vimlab/notes/"

_turns, _spent = itertools.count(), []
_ending = threading.Lock()
_watch: "_Watch | None" = None


class Lost(Exception):
    """Another process is gone, or did not come in time; the message says which and where."""


class _Told(UserError):
    """What another process failed of, as it said itself."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Within it this process is one of its cluster's, where there is one.

    An exception inside ends the whole run: the process says why and ends itself with the exit code for it, and the others
    say the same and end with the same code. Without a cluster, exceptions pass as ever.

    Args:
      args: of `add_flags`.

    Raises:
      ConfigError: see `cluster.find`.
    """
    global _watch
    place = cluster.find(args)
    if place is None:
        yield
        return
    try:
        _connect(place, args.init_timeout, args.peer_timeout)
        _watch = _Watch()
        if place.index:
            logging.set_verbosity(logging.WARNING)
        compare("software", {"python": platform.python_version(), "vimlab": vimlab.__version__}
                | {name: importlib.metadata.version(name) for name in PACKAGES})  # fmt: skip
        yield
        gather(None, "the end of the command")
        _watch.stop()
        _watch = None
    except BaseException as error:
        _end(error)


def index() -> int:
    """Which process this is, from 0; unlike JAX's function, it starts no device."""
    return _state().process_id


def count() -> int:
    """How many processes there are."""
    return _state().num_processes


def first(action: Callable[[], Any]) -> Any:
    """Runs `action` on process 0 alone; every process gets what it returned (JSON values), or its error as a UserError."""
    if count() == 1:
        return action()
    key, store = f"vimlab/first/{next(_turns)}", _state().client
    if index() == 0:
        try:
            value = action()
        except Exception as error:
            code, sentence = _verdict(error)
            store.key_value_set(key, json.dumps({"code": code, "error": sentence}))
            raise
        store.key_value_set(key, json.dumps({"value": value}))
        return value
    try:
        told = json.loads(store.blocking_key_value_get(key, int(PATIENCE * 1000)))
    except jax.errors.JaxRuntimeError as error:
        raise Lost(f"process 0 did not do its part within {PATIENCE:.0f} s, or is gone ({_one_line(error)})") from error
    if "error" in told:
        raise _Told(f"process 0: {told['error']}", told["code"])
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
    store, in_turn = _state().client, key is None
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
        raise Lost(f"waiting for the others at {what} failed ({_one_line(error)})") from error
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


def _connect(place: Cluster, patience: float, peer_timeout: float) -> None:
    """Joins the coordination service. JAX aborts a process that waits in vain; ours ends with a sentence before it does."""
    timer = threading.Timer(patience, _give_up, [place, patience])
    timer.daemon = True
    timer.start()
    # Its handler would swallow SIGTERM in every command; `vimlab.parallel.stopping` does its work in training.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            place.coordinator, place.count, place.index, place.local_devices, cluster_detection_method="deactivate",
            initialization_timeout=int(patience) + 60, heartbeat_timeout_seconds=max(int(peer_timeout), 1),
        )  # fmt: skip
    except Exception as error:
        raise UserError(f"the {place.count} processes ({place.kind}) cannot meet at {place.coordinator}: {_one_line(error)}; look whether the address "
                        "is process 0's, and its port free there") from error  # fmt: skip
    finally:
        timer.cancel()


def _give_up(place: Cluster, patience: float) -> None:
    who = f"process {place.index} of {place.count}"
    host, _, port = place.coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        text = (f"{who} waited {patience:.0f} s at the coordinator {place.coordinator}, but not all {place.count} processes came; look whether "
                "each was started, with this coordinator, and what the log of the missing one says")  # fmt: skip
    except OSError as error:
        text = (f"{who} found no coordinator at {place.coordinator} for {patience:.0f} s ({_one_line(error)}); look whether process 0 was started, "
                "and whether this host may reach that address and port")  # fmt: skip
    _say(f"{text}; --init-timeout waits longer")
    _leave(exits.LOST)


class _Watch:
    """A thread that hears, within a second, what other processes note: that one has failed, or asks for a stop."""

    def __init__(self) -> None:
        self.on_stop: Callable[[str], None] | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="vimlab-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _listen(self) -> None:
        heard = False
        while not self._end.wait(1.0):
            try:
                notes = read_notes()
                if "failed" in notes:
                    _end(_Told(*_failure(notes)))
                if "stop" in notes and self.on_stop and not heard:
                    heard = True
                    self.on_stop(notes["stop"])
            except Exception as error:
                if not self._end.is_set():
                    _end(error)


def on_stop(heard: Callable[[str], None] | None) -> None:
    """`heard` is called, in a thread of its own, with the note that some process has left under "stop"."""
    if _watch is not None:
        _watch.on_stop = heard


def note(name: str, text: str) -> None:
    """Leaves a note that every process hears."""
    _state().client.key_value_set(NOTES + name, text, allow_overwrite=True)


def read_notes() -> dict[str, str]:
    """All notes, by name."""
    return {key.removeprefix(NOTES): text for key, text in _state().client.key_value_dir_get(NOTES)}


def _failure(notes: Mapping[str, str]) -> tuple[str, int]:
    told = json.loads(notes["failed"])
    return told["sentence"], told["code"]


def _end(error: BaseException) -> NoReturn:
    """Ends this process for an error; the others hear of it first. Whoever comes here second waits for the end."""
    _ending.acquire()
    code, sentence = _verdict(error)
    if code == exits.LOST or (code == exits.FAILED and isinstance(error, jax.errors.JaxRuntimeError)):
        # A connection that breaks is often the first that is seen of another's failure; its own words come within moments.
        code, sentence = _last_words(3.0) or (code, sentence)
    if isinstance(error, _Told):
        _say(sentence)
    else:
        sentence = f"process {index()} of {count()}{' ' if code == exits.LOST else ': '}{sentence}"
        if code == exits.FAILED:
            traceback.print_exception(error)
        with contextlib.suppress(Exception):
            if code != exits.LOST and "failed" not in read_notes():
                note("failed", json.dumps({"code": code, "sentence": sentence}))
        _say(sentence)
    if count() > 1 and index() == 0:
        time.sleep(LINGER)
    _leave(code)


def _last_words(seconds: float) -> tuple[int, str] | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if "failed" in (notes := read_notes()):
                sentence, code = _failure(notes)
                return code, sentence
        time.sleep(0.2)
    return None


def _verdict(error: BaseException) -> tuple[int, str]:
    """Exit code and sentence of an error."""
    if isinstance(error, _Told):
        return error.code, str(error)
    if isinstance(error, (UserError, FloatingPointError)):
        return exits.USER_ERROR, " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return exits.INTERRUPTED, "interrupted"
    text = _one_line(error)
    broken = ("gloo", "connection", "socket closed", "unavailable", "heartbeat", "unhealthy", "coordination service")
    if isinstance(error, Lost) or (isinstance(error, jax.errors.JaxRuntimeError) and any(word in text.lower() for word in broken)):
        return exits.LOST, f"has lost another one ({text}); the same command goes on from the last checkpoint"
    return exits.FAILED, text


def _say(sentence: str) -> None:
    logging.flush()
    sys.stdout.flush()
    print(f"vimlab: error: {sentence}", file=sys.stderr, flush=True)


def _leave(code: int) -> NoReturn:
    """Ends at once: an orderly end would wait for the other processes, which are ending too."""
    os._exit(code)


def _state() -> Any:
    """What JAX knows of its processes, with the `client` of its store of keys; there is no public name for either."""
    from jax._src import distributed

    return distributed.global_state


def _names(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:8])) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")
    return f"process {shown}" if len(indices) == 1 else f"processes {shown}"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
