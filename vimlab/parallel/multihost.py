"""Many processes as one run: joined within a time-out, compared, and ended together; what goes wrong on one is told by all."""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import jax
from absl import logging

import vimlab
from vimlab import exits
from vimlab.config import UserError
from vimlab.parallel import cluster
from vimlab.parallel.cluster import Cluster, add_flags
from vimlab.parallel.exchange import Told, compare, count, gather, index, note, one_line, read_notes, verdict

__all__ = ["PACKAGES", "add_flags", "joined", "on_stop"]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml-collections")
LINGER = 5.0  # Seconds that process 0, on which the store of keys lies, stays for the others to read why it ends.

_ending = threading.Lock()
_watch: "_Watch | None" = None


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
        raise UserError(f"the {place.count} processes ({place.kind}) cannot meet at {place.coordinator}: {one_line(error)}; look whether the address "
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
        text = (f"{who} found no coordinator at {place.coordinator} for {patience:.0f} s ({one_line(error)}); look whether process 0 was started, "
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
                    _end(Told(*_failure(notes)))
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


def _failure(notes: Mapping[str, str]) -> tuple[str, int]:
    told = json.loads(notes["failed"])
    return told["sentence"], told["code"]


def _end(error: BaseException) -> NoReturn:
    """Ends this process for an error; the others hear of it first. Whoever comes here second waits for the end."""
    _ending.acquire()
    code, sentence = verdict(error)
    if code == exits.LOST or (code == exits.FAILED and isinstance(error, jax.errors.JaxRuntimeError)):
        # A connection that breaks is often the first that is seen of another's failure; its own words come within moments.
        code, sentence = _last_words(3.0) or (code, sentence)
    if isinstance(error, Told):
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


def _say(sentence: str) -> None:
    logging.flush()
    sys.stdout.flush()
    print(f"vimlab: error: {sentence}", file=sys.stderr, flush=True)


def _leave(code: int) -> NoReturn:
    """Ends at once: an orderly end would wait for the other processes, which are ending too."""
    os._exit(code)
