"""From stored records to examples: images decoded, bad ones counted and replaced, fixed views, threads that work ahead."""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from vimlab.data.base import DataError, DecodeError, Record, Source
from vimlab.data.images import decode


class Example(NamedTuple):
    """A record whose image is decoded: `image` uint8[H,W,3], and `index`, the place of the record in its source."""

    image: np.ndarray
    record: Record
    index: int


def view_rng(seed: int, index: int, view: int) -> np.random.Generator:
    """The generator that draws fixed crop number `view` of the record at `index`; it depends on these three alone."""
    return np.random.Generator(np.random.PCG64([seed, index, view]))


class BadRecords:
    """Counts records that cannot be decoded, names each once in the log, and stops when they are too many.

    The share is judged from 100 records on, with three standard deviations of room for chance.
    """

    def __init__(self, max_bad: float, name: str):
        self._max_bad, self._name, self._lock = max_bad, name, threading.Lock()
        self.seen, self.bad, self.keys = 0, 0, []

    def good(self) -> None:
        with self._lock:
            self.seen += 1

    def add(self, error: Exception, key: str) -> None:
        """Counts a bad record. Raises DataError when there are too many."""
        with self._lock:
            self.seen += 1
            self.bad += 1
            if key not in self.keys:
                self.keys.append(key)
                logging.warning("%s: %s; it is skipped", self._name, error)
            allowed = self._max_bad * self.seen + 3 * (self._max_bad * self.seen) ** 0.5
            if self.seen >= 100 and self.bad > allowed:
                raise DataError(f"{self.bad} of {self.seen} images of {self._name!r} cannot be decoded "
                                f"(data.max_bad is {self._max_bad}), among them {', '.join(map(repr, self.keys[:3]))}; "
                                "`vimlab data check` lists them all")


class Decoded:
    """The examples of a source for pictures of `image_size`; `bad` counts the records without one."""

    def __init__(self, source: Source, image_size: int, bad: BadRecords):
        self._source, self._bad = source, bad
        self._at_least = 2 * image_size  # What a large JPEG may be reduced to on the way: every crop still shrinks it.

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        # A bad record is replaced by the next good one, so what stands at an index never depends on what was read before.
        for candidate in range(index, index + len(self)):
            example = self.read(candidate % len(self))
            if example is not None:
                return example
        raise DataError(f"none of the {len(self)} images of {self._source.info.name!r} can be decoded")

    def read(self, index: int) -> Example | None:
        """One example, or None where it is bad."""
        key = f"record {index}"
        try:
            record = self._source[index]
            key = record["key"]
            image = decode(record["image"], key, self._at_least)
        except (DecodeError, OSError) as error:
            self._bad.add(error, key)
            return None
        self._bad.good()
        return Example(image, record, index)


def reader(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    """Threads that read and decode."""
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="vimlab-data")


def ahead(function: Callable[[int], Any], groups: Iterator[Sequence[int]], threads: int, prefetch: int) -> Iterator[list[Any]]:
    """The function's results over each group of indices, in order, worked out on threads `prefetch` groups ahead."""
    pool, waiting = reader(threads), collections.deque()
    try:
        for group in groups:
            waiting.append([pool.submit(function, index) for index in group])
            if len(waiting) > prefetch:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        for future in (f for group in waiting for f in group):
            future.cancel()
        pool.shutdown(wait=False)
