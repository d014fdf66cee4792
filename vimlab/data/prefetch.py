"""Puts host batches onto the mesh from a background thread, so that the next is there when a step ends."""

import atexit
import queue
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np

_END = object()


class Prefetcher:
    """Device batches of an iterator of host batches, `depth` ahead; use it as a context manager, or close it.

    Each process gives its own rows; the arrays that come out are global. i64 (record indices) becomes i32. An exception
    of the iterator reaches whoever asks for the batch that it prevented.

    Attributes:
      wait_seconds: time that the consumer has spent waiting, since the start.
    """

    def __init__(self, iterator: Iterator[dict[str, np.ndarray]], sharding: jax.sharding.Sharding, depth: int = 2):
        self._iterator, self._sharding = iterator, sharding
        self._queue, self._stop, self._done = queue.Queue(maxsize=max(depth, 1)), threading.Event(), False
        self.wait_seconds = 0.0
        self._thread = threading.Thread(target=self._fill, name="vimlab-prefetch", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread inside JAX while the interpreter goes away would crash

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> dict[str, jax.Array]:
        if self._done:
            raise StopIteration
        start = time.perf_counter()
        item = self._queue.get()
        self.wait_seconds += time.perf_counter() - start
        if item is _END or isinstance(item, BaseException):
            self.close()
            raise StopIteration if item is _END else item
        return item

    def close(self) -> None:
        """Stops the thread and closes the iterator. Safe to call again."""
        self._done = True
        self._stop.set()
        atexit.unregister(self.close)
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()  # it may be waiting for room
            except queue.Empty:
                self._thread.join(0.02)

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _fill(self) -> None:
        try:
            for batch in self._iterator:
                if self._stop.is_set():
                    break
                self._queue.put({name: self._place(rows) for name, rows in batch.items()})
            else:
                self._queue.put(_END)
        except BaseException as error:  # handed to the consumer, whatever it is
            self._queue.put(error)
        finally:
            if hasattr(self._iterator, "close"):
                self._iterator.close()

    def _place(self, rows: np.ndarray) -> jax.Array:
        rows = rows.astype(np.int32) if rows.dtype == np.int64 else rows
        return jax.make_array_from_process_local_data(self._sharding, rows)


def prefetch_to_mesh(iterator: Iterator[dict[str, np.ndarray]], sharding: jax.sharding.Sharding, depth: int = 2) -> Prefetcher:
    """Batches {name: [b, ...]} of this process → {name: jax.Array [B, ...]} sharded by `sharding`, prepared ahead."""
    return Prefetcher(iterator, sharding, depth)
