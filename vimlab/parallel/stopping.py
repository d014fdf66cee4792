"""SIGTERM and SIGINT: the step after which every process of a run stops, agreed at no cost to the steps."""

import signal
import threading

from vimlab.parallel import exchange, multihost


class StopSignal:
    """Remembers SIGTERM or SIGINT, on whichever process it came, so that the loop can save and end at a step common to all.

    A second SIGINT ends the process at once. Whoever gets a signal leaves a note; when a process hears of it, its listening
    thread, and not the loop, which may be waiting for the devices of others, tells the step that the loop has come to. No loop
    begins another step before all have told; they all stop after the latest.

    Args:
      step: that the loop begins with.

    Attributes:
      name: of the signal, and of the process that got it; None as long as none is known.
    """

    def __init__(self, step: int) -> None:
        self.name: str | None = None
        self._got: str | None = None
        self._step, self._last, self._told = step, None, False
        self._lock = threading.Lock()
        self._old = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}
        multihost.on_stop(self._agree)

    def reached(self, step: int) -> bool:
        """Whether to stop before this step. Every process asks before each of its steps."""
        if exchange.count() == 1:
            self.name = self._got
            return self.name is not None
        if self._got and not self._told:
            self._told = True
            exchange.note("stop", f"{self._got} on process {exchange.index()}")
        with self._lock:
            self._step = step
            return self._last is not None and step > self._last

    def restore(self) -> None:
        """Puts the old handlers back."""
        multihost.on_stop(None)
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _agree(self, note: str) -> None:
        with self._lock:
            self._last = max(exchange.gather(self._step, "the step to stop at", key="vimlab/stop"))
            self.name = note

    def _remember(self, number: int, _: object) -> None:
        if self._got and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._got = signal.Signals(number).name
