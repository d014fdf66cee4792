"""Batches as a pure function of (seed, step): shuffling, decoding, augmentation, whole evaluation passes.

Training example `g`, counted over the whole run and over all processes, is a function of (seed, g) alone: its record by
a permutation for each epoch, its crop by a generator with counter g. Step `s` holds examples [s·B, (s+1)·B) of a global
batch B, and process p of P its p-th stretch of B/P. The whole position in the data is therefore one integer, the step,
whatever the number of processes, threads or restarts.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np
from absl import logging

from vimlab.data.base import Complement, DataError, DecodeError, Record, Source, Subset, held_out
from vimlab.data.images import decode
from vimlab.data.sources import open_source
from vimlab.data.transforms import Center, Generator, Resize, Tokenizer

Batch = dict[str, np.ndarray]
Crop = Tokenizer | Generator | Center | Resize


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how it is cut.

    Attributes:
      train: source to train on, as in `vimlab.data.sources`.
      eval: source to evaluate on; None where `holdout` makes it.
      holdout: where `eval` is None, this many records are taken from `train`, evenly over it, to evaluate on.
      crop: crop policy of training.
      eval_crop: crop policy of evaluation.
      threads: threads that read and decode, in each process.
      prefetch: batches prepared ahead.
      max_bad: share of undecodable images that is put up with.
    """

    train: str
    eval: str | None = None
    holdout: int = 0
    crop: Crop = Tokenizer()
    eval_crop: Center | Resize = Center()
    threads: int = 8
    prefetch: int = 2
    max_bad: float = 0.01

    def __post_init__(self):
        if self.eval is not None and self.holdout:
            raise DataError("data.eval and data.holdout are both set; holdout takes records from data.train, so set only one")
        if self.threads < 1 or self.prefetch < 1 or self.holdout < 0:
            raise DataError("data.threads and data.prefetch must be at least 1 and data.holdout not negative")
        if not 0 <= self.max_bad <= 1:
            raise DataError(f"data.max_bad is a share between 0 and 1, not {self.max_bad}")


def open_train_eval(config: DataConfig) -> tuple[Source, Source | None]:
    """The sources of training and evaluation, without a common record; evaluation's is None where none is configured.

    Raises:
      DataError: a source that is not there, or two whose classes differ.
    """
    train = open_source(config.train)
    if config.eval is None:
        if not config.holdout:
            return train, None
        chosen = held_out(len(train), config.holdout)
        return (Subset(train, Complement(len(train), chosen), f" without {len(chosen)} held out"),
                Subset(train, chosen, f" held out {len(chosen)}"))
    evaluation = open_source(config.eval)
    classes = (train.info.class_names, evaluation.info.class_names)
    if None not in classes and classes[0] != classes[1]:
        different = sorted(set(classes[0]) ^ set(classes[1]))[:3]
        raise DataError(f"the classes of {config.train!r} and {config.eval!r} differ"
                        f" ({', '.join(different) or 'in their order'}); labels would not mean the same")
    return train, evaluation


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


class _Decoded:
    """A source with each image decoded: "image" uint8[H,W,3], "label" (-1 for none), "index" of the record used."""

    def __init__(self, source: Source, at_least: int, bad: BadRecords):
        self._source, self._at_least, self._bad = source, at_least, bad

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        # A bad record is replaced by the next good one, so what stands at an index never depends on what was read before.
        for candidate in range(index, index + len(self)):
            example = self.read(candidate % len(self))
            if example is not None:
                return example
        raise DataError(f"none of the {len(self)} images of {self._source.info.name!r} can be decoded")

    def read(self, index: int) -> dict | None:
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
        return {"image": image, "label": record.get("label", -1), "index": index}


class TrainPipeline:
    """Endless training batches of this process: {"image" uint8[b,S,S,3], "label" i32[b], "index" i64[b]}.

    Args:
      source: where records come from.
      image_size: S, side of the pictures in pixels.
      crop: policy that cuts them.
      batch_size: of the global batch B; b = B / process_count.
      seed: of shuffling and cropping.
      process_index, process_count: which stretch of each batch is ours, of how many.
      threads: that read and decode.
      prefetch: batches that `iterate` prepares ahead.
      max_bad: share of undecodable images put up with.

    Raises:
      DataError: the batch does not divide by the processes.
    """

    def __init__(self, source: Source, *, image_size: int, crop: Crop, batch_size: int, seed: int, process_index: int = 0,
                 process_count: int = 1, threads: int = 8, prefetch: int = 2, max_bad: float = 0.01):
        if batch_size % process_count:
            raise DataError(f"batch_size {batch_size} does not divide by {process_count} processes")
        self.source, self._batch_size, self._local = source, batch_size, batch_size // process_count
        self._first, self._threads, self._prefetch = process_index * self._local, threads, prefetch
        self._bad = BadRecords(max_bad, source.info.name)

        def cut(example: dict, rng: np.random.Generator) -> dict:
            return example | {"image": crop(example["image"], image_size, rng)}

        decoded = _Decoded(source, 2 * image_size, self._bad)
        self._indices = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        self._examples = self._indices.map(decoded.__getitem__).random_map(cut)

    @property
    def bad(self) -> dict[str, int]:
        """Records read so far, and how many could not be decoded."""
        return {"seen": self._bad.seen, "bad": self._bad.bad}

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch at a step."""
        with _reader(self._threads) as pool:
            return _collate(list(pool.map(self._examples.__getitem__, self._rows(step))))

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches from a step on, prepared ahead. Close it (or drop it) to stop its threads."""
        tasks = ([(self._examples.__getitem__, g) for g in self._rows(step)] for step in itertools.count(start_step))
        return _ahead(tasks, self._threads, self._prefetch)

    def records(self, step: int) -> list[Record]:
        """The stored records (captions and keys too) at a step, row by row, their images not decoded."""
        return [self.source[self._indices[g]] for g in self._rows(step)]

    def _rows(self, step: int) -> range:
        first = step * self._batch_size + self._first
        return range(first, first + self._local)


class EvalPipeline:
    """One whole pass in the source's order, as batches of this process with a "mask" f32[b] beside the training keys.

    Every process sees the same number of batches; rows beyond the end, and images that cannot be decoded, have mask 0.
    The arguments are TrainPipeline's; `crop` gets no random generator.
    """

    def __init__(self, source: Source, *, image_size: int, crop: Center | Resize, batch_size: int, process_index: int = 0,
                 process_count: int = 1, threads: int = 8, prefetch: int = 2, max_bad: float = 0.01):
        if batch_size % process_count:
            raise DataError(f"batch_size {batch_size} does not divide by {process_count} processes")
        self.source, self._size, self._crop, self._batch_size = source, image_size, crop, batch_size
        self._local, self._first = batch_size // process_count, process_index * (batch_size // process_count)
        self._threads, self._prefetch = threads, prefetch
        self._bad = BadRecords(max_bad, source.info.name)
        self._decoded = _Decoded(source, 2 * image_size, self._bad)

    def __len__(self) -> int:
        """Batches in a pass."""
        return -(-len(self.source) // self._batch_size)

    @property
    def bad(self) -> dict[str, int]:
        """Records read so far, and how many could not be decoded."""
        return {"seen": self._bad.seen, "bad": self._bad.bad}

    def __iter__(self) -> Iterator[Batch]:
        firsts = range(self._first, self._first + len(self) * self._batch_size, self._batch_size)
        tasks = ([(self._example, i) for i in range(first, first + self._local)] for first in firsts)
        return _ahead(tasks, self._threads, self._prefetch)

    def _example(self, index: int) -> dict:
        example = self._decoded.read(index) if index < len(self.source) else None
        if example is None:
            return {"image": np.zeros((self._size, self._size, 3), np.uint8), "label": -1, "index": index, "mask": 0.0}
        return example | {"image": self._crop(example["image"], self._size), "mask": 1.0}


def _collate(examples: Sequence[dict]) -> Batch:
    types = {"image": np.uint8, "label": np.int32, "index": np.int64, "mask": np.float32}
    return {name: np.stack([e[name] for e in examples]).astype(types[name], copy=False) for name in examples[0]}


def _reader(threads: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="vimlab-data")


def _ahead(groups: Iterator[list[tuple[Callable[[int], dict], int]]], threads: int, prefetch: int) -> Iterator[Batch]:
    """Runs groups of calls on threads, `prefetch` groups ahead, and yields their results as batches, in order."""
    pool, waiting = _reader(threads), collections.deque()
    try:
        for group in groups:
            waiting.append([pool.submit(*call) for call in group])
            if len(waiting) > prefetch:
                yield _collate([future.result() for future in waiting.popleft()])
        while waiting:
            yield _collate([future.result() for future in waiting.popleft()])
    finally:
        for future in (f for group in waiting for f in group):
            future.cancel()
        pool.shutdown(wait=False)
