"""Batches as a pure function of (seed, step): shuffling, decoding, augmentation, whole evaluation passes.

Training example `g`, counted over the whole run and over all processes, is a function of (seed, g) alone: its record by
a permutation for each epoch, its crop by a generator with counter g. With a fixed number K of views the crop is view
(epoch mod K) of the record instead, which (seed, record, view) fix; a token cache holds the tokens of these. Step `s`
holds examples [s·B, (s+1)·B) of a global batch B, of which a process reads the rows that its devices hold. The whole
position in the data is therefore one integer, the step, whatever the number of processes, threads or restarts.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from vimlab.data.base import Complement, DataError, Record, Source, Subset, held_out
from vimlab.data.examples import BadRecords, Decoded, Example, ahead, reader, view_rng
from vimlab.data.formats.tokens import TokenRecords
from vimlab.data.sources import open_source
from vimlab.data.text import Bytes, SentencePiece, TextTokenizer
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
      views: an image has this many fixed crops, one after the other in each epoch; None crops afresh for each example.
      tokens: folder of a token cache of `train`, made by `vimlab tokenize`, to train on; None reads pixels.
      text: how captions become ids, in the batches of tasks that read them; None leaves captions alone.
    """

    train: str
    eval: str | None = None
    holdout: int = 0
    crop: Crop = Tokenizer()
    eval_crop: Center | Resize = Center()
    threads: int = 8
    prefetch: int = 2
    max_bad: float = 0.01
    views: int | None = None
    tokens: str | None = None
    text: Bytes | SentencePiece | None = None

    def __post_init__(self):
        if self.eval is not None and self.holdout:
            raise DataError("data.eval and data.holdout are both set; holdout takes records from data.train, so set only one")
        if self.threads < 1 or self.prefetch < 1 or self.holdout < 0:
            raise DataError("data.threads and data.prefetch must be at least 1 and data.holdout not negative")
        if not 0 <= self.max_bad <= 1:
            raise DataError(f"data.max_bad is a share between 0 and 1, not {self.max_bad}")
        if self.views is not None and self.views < 1:
            raise DataError(f"data.views is {self.views}, but must be at least 1, or none for fresh crops")


def open_train_eval(config: DataConfig) -> tuple[Source, Source | None]:
    """The sources of training and evaluation, without a common record; evaluation's is None where none is configured.

    Training's are the TokenRecords of `config.tokens` where that is set; evaluation always reads pixels.

    Raises:
      DataError: a source that is not there, two whose classes differ, captions wanted where there are none, or a cache of
        data that has changed since.
    """
    cache = None if config.tokens is None else TokenRecords(config.tokens)
    if config.holdout:
        train, evaluation = _hold_out(config, cache)
    else:
        train = open_source(config.train) if cache is None else cache
        evaluation = None if config.eval is None else open_source(config.eval)
    sources = [train] if evaluation is None else [train, evaluation]
    classes = [source.info.class_names for source in sources]
    if None not in classes and classes[0] != classes[-1]:
        different = sorted(set(classes[0]) ^ set(classes[-1]))[:3]
        raise DataError(f"the classes of {config.train!r} and {config.eval!r} differ"
                        f" ({', '.join(different) or 'in their order'}); labels would not mean the same")
    for source in sources if config.text is not None else ():
        check_captions(source)
    return train, evaluation


def _hold_out(config: DataConfig, cache: TokenRecords | None) -> tuple[Source, Source]:
    whole = open_source(config.train)
    chosen = held_out(len(whole), config.holdout)
    train = Subset(whole, Complement(len(whole), chosen), f" without {len(chosen)} held out")
    if cache is not None and cache.info.fingerprint != train.info.fingerprint:
        raise DataError(f"the token cache {config.tokens!r} was made from other data than {config.train!r} without {config.holdout} held out "
                        f"(fingerprint {cache.info.fingerprint}, not {train.info.fingerprint}); run `vimlab tokenize` again")
    return (train if cache is None else cache), Subset(whole, chosen, f" held out {len(chosen)}")


def check_captions(source: Source) -> None:
    """Raises DataError where a source has no captions that a text encoder could read."""
    if not source.info.has_captions:
        raise DataError(f"config.data.text asks for captions, but {source.info.name!r} has none; set data.text=none, or choose data "
                        "that has them")


class TrainPipeline:
    """Endless training batches of this process.

    Of pixels {"image" uint8[b,S,S,3], "label" i32[b], "index" i64[b]}, and of a TokenRecords source, whose image size,
    crops and views were fixed when it was made, "tokens" i32[b,N,G] in place of "image". Label is -1 where there is none;
    index is the place of the record in its source.

    Args:
      source: where records come from.
      image_size: S, side of the pictures in pixels.
      crop: policy that cuts them.
      batch_size: of the global batch B.
      seed: of shuffling and cropping.
      rows: the b rows of each batch that this process holds; all if not given.
      threads: that read and decode.
      prefetch: batches that `iterate` prepares ahead.
      max_bad: share of undecodable images put up with.
      text: encodes captions (an absent one is ""), for "text" i32[b,T] in the batch.
      views: K fixed crops of each image, view (epoch mod K) in each epoch; None crops afresh for each example.
    """

    def __init__(self, source: Source, *, image_size: int, crop: Crop, batch_size: int, seed: int, rows: Sequence[int] | None = None,
                 threads: int = 8, prefetch: int = 2, max_bad: float = 0.01,
                 text: TextTokenizer | None = None, views: int | None = None):
        self.source, self._batch_size, self._ours = source, batch_size, range(batch_size) if rows is None else rows
        self._threads, self._prefetch = threads, prefetch
        self._bad = BadRecords(max_bad, source.info.name)
        decoded = Decoded(source, image_size, self._bad)

        def cut(example: Example, rng: np.random.Generator) -> dict:
            return {"image": crop(example.image, image_size, rng)} | _described(example.record, example.index, text)

        def cut_view(g: int, index: int) -> dict:
            example = decoded[index]
            return cut(example, view_rng(seed, example.index, g // len(source) % views))

        def cached(g: int, index: int) -> dict:
            record = source[index]
            return {"tokens": record["ids"][g // len(source) % source.views]} | _described(record, record["index"], text)

        self._indices = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        if isinstance(source, TokenRecords):
            self._examples = self._indices.map_with_index(cached)
        elif views:
            self._examples = self._indices.map_with_index(cut_view)
        else:
            self._examples = self._indices.map(decoded.__getitem__).random_map(cut)

    @property
    def bad(self) -> dict[str, int]:
        """Images read so far, and how many could not be decoded."""
        return {"seen": self._bad.seen, "bad": self._bad.bad}

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch at a step."""
        with reader(self._threads) as pool:
            return _collate(list(pool.map(self._examples.__getitem__, self._rows(step))))

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches from a step on, prepared ahead. Close it (or drop it) to stop its threads."""
        return _batches(self._examples.__getitem__, map(self._rows, itertools.count(start_step)), self._threads, self._prefetch)

    def records(self, step: int) -> list[Record]:
        """The stored records (captions and keys too) at a step, row by row, their images not decoded."""
        return [self.source[self._indices[g]] for g in self._rows(step)]

    def _rows(self, step: int) -> list[int]:
        return [step * self._batch_size + row for row in self._ours]


class EvalPipeline:
    """One whole pass in the source's order, as batches of this process with a "mask" f32[b] beside the training keys.

    Every process sees the same number of batches; rows beyond the end, and images that cannot be decoded, have mask 0.
    The arguments are TrainPipeline's; `crop` gets no random generator.
    """

    def __init__(self, source: Source, *, image_size: int, crop: Center | Resize, batch_size: int, rows: Sequence[int] | None = None,
                 threads: int = 8, prefetch: int = 2, max_bad: float = 0.01,
                 text: TextTokenizer | None = None):
        self.source, self._size, self._crop, self._batch_size, self._text = source, image_size, crop, batch_size, text
        self._ours = range(batch_size) if rows is None else rows
        self._threads, self._prefetch = threads, prefetch
        self._bad = BadRecords(max_bad, source.info.name)
        self._decoded = Decoded(source, image_size, self._bad)

    def __len__(self) -> int:
        """Batches in a pass."""
        return -(-len(self.source) // self._batch_size)

    @property
    def bad(self) -> dict[str, int]:
        """Images read so far, and how many could not be decoded."""
        return {"seen": self._bad.seen, "bad": self._bad.bad}

    def __iter__(self) -> Iterator[Batch]:
        groups = ([batch * self._batch_size + row for row in self._ours] for batch in range(len(self)))
        return _batches(self._example, groups, self._threads, self._prefetch)

    def _example(self, index: int) -> dict:
        example = self._decoded.read(index) if index < len(self.source) else None
        if example is None:
            black = np.zeros((self._size, self._size, 3), np.uint8)
            return {"image": black, "mask": 0.0} | _described(Record(), index, self._text)
        return {"image": self._crop(example.image, self._size), "mask": 1.0} | _described(example.record, index, self._text)


def _described(record: Record, index: int, text: TextTokenizer | None) -> dict:
    """A row of a batch but for its picture."""
    row = {"label": record.get("label", -1), "index": index}
    return row if text is None else row | {"text": text.encode(record.get("caption", ""))}


def _batches(function: Callable[[int], dict], groups: Iterator[Sequence[int]], threads: int, prefetch: int) -> Iterator[Batch]:
    with contextlib.closing(ahead(function, groups, threads, prefetch)) as rows:
        for group in rows:
            yield _collate(group)


def _collate(examples: Sequence[dict]) -> Batch:
    types = {"image": np.uint8, "tokens": np.int32, "label": np.int32, "index": np.int64, "text": np.int32, "mask": np.float32}
    return {name: np.stack([e[name] for e in examples]).astype(types[name], copy=False) for name in examples[0]}
