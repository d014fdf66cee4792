"""What a data source is: the protocol, what it says about itself, its errors, and views onto parts of one."""

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from vimlab.config import UserError

CAPTION_NAMES = ("caption", "captions", "text", "prompt", "txt", "title", "description")
LABEL_NAMES = ("label", "labels", "cls", "class", "fine_label", "class_id", "category")
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"))


class DataError(UserError):
    """Data that cannot be found or used; the message is one sentence that names it and says what to do."""


class DecodeError(DataError):
    """One record whose image cannot be decoded; the message names its key."""


class Record(TypedDict, total=False):
    """One example as it is stored. `image`: encoded bytes or uint8[H,W,3]; `label` and `caption` only where there is one.

    A token cache has instead of the image its `ids`, i32[K,N,G] for K views, and the `index` of the record they are of.
    """

    key: str
    image: bytes | np.ndarray
    label: int
    caption: str
    ids: np.ndarray
    index: int


@dataclasses.dataclass(frozen=True)
class SourceInfo:
    """What a source holds; two sources with one fingerprint hold the same records in the same order."""

    name: str
    size: int
    class_names: tuple[str, ...] | None
    has_captions: bool
    fingerprint: str


@runtime_checkable
class Source(Protocol):
    """Random access to records. Thread-safe; pickles without open handles."""

    info: SourceInfo

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class PerProcess:
    """A value made by `function(*args)` on first use in each process, so that no open handle crosses a fork or a pickle."""

    def __init__(self, function: Callable[..., Any], *args: Any):
        self._function, self._args = function, args
        self._lock, self._pid, self._value = threading.Lock(), None, None

    def get(self) -> Any:
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._value = self._function(*self._args)
                    self._pid = os.getpid()
        return self._value

    def __getstate__(self) -> tuple:
        return self._function, self._args

    def __setstate__(self, state: tuple) -> None:
        self.__init__(state[0], *state[1])


class Complement(Sequence):
    """The whole numbers below `size` that are not in the sorted array `without`, in order, without listing them."""

    def __init__(self, size: int, without: np.ndarray):
        self._size = size - len(without)
        self._shifted = np.asarray(without) - np.arange(len(without))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, i: int) -> int:
        if not 0 <= i < self._size:
            raise IndexError(i)
        return i + int(np.searchsorted(self._shifted, i, side="right"))


class Subset:
    """The records of `source` at `indices` (a range, an array or a Complement); `what` goes into name and fingerprint."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray, what: str):
        self._source, self._indices = source, indices
        self.info = dataclasses.replace(source.info, name=f"{source.info.name}{what}", size=len(indices),
                                        fingerprint=fingerprint([source.info.fingerprint, what]))

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._source[int(self._indices[index])]


def fingerprint(parts: Iterable[Any]) -> str:
    """Sixteen hexadecimal digits that change with any part."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode() + b"\n")
    return digest.hexdigest()[:16]


def held_out(size: int, count: int) -> np.ndarray:
    """`count` of `size` indices, sorted: one from each of `count` equal stretches, so a set sorted by class stays balanced.

    i64[count], a fixed function of the two numbers. Raises DataError where that would leave no record.
    """
    if not 0 < count < size:
        raise DataError(f"cannot hold out {count} of {size} records; choose a holdout between 1 and {size - 1}")
    edges = np.arange(count + 1) * size // count
    mixed = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return edges[:-1] + ((mixed >> np.uint64(33)) % np.diff(edges).astype(np.uint64)).astype(np.int64)
