"""Token caches as data: what fixes one, its shards written by an encoder of pictures, and whether a run may train on it."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import vimlab
from vimlab.config import ConfigError, to_dict
from vimlab.data.base import DataError, Record, Source
from vimlab.data.examples import BadRecords, Decoded, ahead, view_rng
from vimlab.data.formats.tokens import FORMAT, TokenRecords, ids_dtype, pack
from vimlab.data.pipeline import Crop, DataConfig
from vimlab.data.shards import Progress, ShardWriter, publish, sha256_of, shards_of, write_json
from vimlab.data.transforms import Center, Resize
from vimlab.tokens import TokenSpec

SHARD_BYTES = 32e6  # Of ids in a shard: what is lost by a kill, and the share of a process, are less than a data set's shard.
Encode = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the bytes of a cache depend on; two processes with one recipe write parts of one cache.

    Attributes:
      source: the records, one of the cache for each.
      data: how they were opened, and the crop policy.
      views: K, fixed crops of each image.
      seed: of the crops.
      tokenizer: its fingerprint.
      image_size: side of its pictures.
      dtype: that its matrix products are computed in.
      spec: of its tokens.
      shard_records: records in a shard; about 32 MB by default.
    """

    source: Source
    data: DataConfig
    views: int
    seed: int
    tokenizer: str
    image_size: int
    dtype: str
    spec: TokenSpec
    shard_records: int | None = None

    @property
    def request(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        info = self.source.info
        data = {"source": self.data.train, "holdout": self.data.holdout, "name": info.name, "fingerprint": info.fingerprint, "size": info.size}
        return {"format": FORMAT, "tokenizer": {"fingerprint": self.tokenizer}, "dtype": self.dtype, "spec": dataclasses.asdict(self.spec),
                "data": data, "crop": to_dict(self.data.crop), "image_size": self.image_size, "views": self.views, "seed": self.seed,
                "class_names": info.class_names, "captions": info.has_captions, "shard_records": self._shard_records}

    def shards(self, partial: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path, range]]:
        """See `shards_of`; which records stand in which shard depends on no process."""
        return shards_of(partial, "tokens", len(self.source), self._shard_records)

    @property
    def _shard_records(self) -> int:
        size = self.views * self.spec.length * self.spec.groups * ids_dtype(self.spec.codes).itemsize
        return self.shard_records or max(1000, min(50_000, int(SHARD_BYTES / size)))


def write_shards(recipe: Recipe, partial: pathlib.Path, encode: Encode, *, batch_size: int, process_index: int = 0, process_count: int = 1,
                 quiet: bool = False) -> None:
    """Writes this process's shards that are not there yet; each counts once its `.done` file stands beside it.

    Args:
      partial: the folder of the cache until it is whole.
      encode: uint8[B,S,S,3] → i32[B,N,G] or more rows, of which the first B count; B is the same in every call. It may
        return before the work is done.
      batch_size: pictures at a time, about.
      process_index, process_count: shards ≡ index modulo count are ours.

    Raises:
      DataError: more images than `data.max_bad` cannot be decoded.
    """
    mine = recipe.shards(partial)[process_index::process_count]
    decoded = Decoded(recipe.source, recipe.image_size, BadRecords(recipe.data.max_bad, recipe.source.info.name))
    progress = Progress(sum(len(rows) for _, _, rows in mine), quiet)
    for path, done, rows in mine:
        if done.is_file():
            progress.skip(len(rows))
            continue
        writer, replaced = ShardWriter(path), 0
        for index, record in zip(rows, _records(recipe, decoded, rows, encode, batch_size), strict=True):
            writer.write(pack(record, recipe.spec.codes))
            replaced += record["index"] != index
            progress.add()
        write_json(done, writer.close() | {"replaced": replaced})
    progress.close()


def _records(recipe: Recipe, decoded: Decoded, rows: range, encode: Encode, batch_size: int) -> Iterator[Record]:
    """The cache's records of some rows, one batch behind the encoder, which then always has work."""
    data, size, views = recipe.data, recipe.image_size, range(recipe.views)

    def cut(index: int) -> tuple[Record, np.ndarray]:
        example = decoded[index]
        pictures = [data.crop(example.image, size, view_rng(recipe.seed, example.index, view)) for view in views]
        return example.record | {"index": example.index}, np.stack(pictures)

    def finished(records: list[Record], ids: Any) -> Iterator[Record]:
        ids = np.asarray(ids)[: len(records) * len(views)].reshape(len(records), len(views), *ids.shape[1:])
        return (record | {"ids": i} for record, i in zip(records, ids, strict=True))

    count = max(1, batch_size // len(views))
    groups = (rows[first : first + count] for first in range(0, len(rows), count))
    behind = iter(())
    with contextlib.closing(ahead(cut, groups, data.threads, data.prefetch)) as batches:
        for batch in batches:
            pictures = np.zeros((count * len(views), size, size, 3), np.uint8)  # The last batch is filled up with black.
            pictures[: len(batch) * len(views)] = np.concatenate([p for _, p in batch])
            begun = ([record for record, _ in batch], encode(pictures))
            yield from behind
            behind = finished(*begun)
    yield from behind


def finish(recipe: Recipe, partial: pathlib.Path, dst: pathlib.Path, path: str) -> None:
    """Makes the cache of shards that are all there, with the tokenizer's path in its manifest. Raises DataError where one is missing."""
    shards = []
    for file, done, _ in recipe.shards(partial):
        if not done.is_file():
            raise DataError(f"{str(file)!r} is not finished, its process has ended or still works; run the same `vimlab tokenize` again")
        shards.append(json.loads(done.read_text()))
    request = recipe.request
    replaced = sum(shard.pop("replaced") for shard in shards)
    manifest = request | {"tokenizer": request["tokenizer"] | {"path": path}, "vimlab": vimlab.__version__, "replaced": replaced,
                          "sha256": sha256_of(s["sha256"] for s in shards), "shards": shards}
    publish(partial, dst, manifest)


def check_cache(records: TokenRecords, *, tokenizer_fingerprint: str, spec: TokenSpec, data: DataConfig, seed: int) -> None:
    """Raises ConfigError unless a run with these would get from pixels the very tokens that the cache holds.

    A run that leaves `data.views` open takes the cache's. The seed counts only where the crop is random.
    """
    made = records.manifest
    views = made["views"] if data.views is None else data.views
    rows = [
        ("tokenizer", "tokenizer", made["tokenizer"]["fingerprint"], tokenizer_fingerprint),
        ("kind of tokens", "tokenizer", records.spec, spec),
        ("data", "data.train", made["data"]["source"], data.train),
        ("holdout", "data.holdout", made["data"]["holdout"], data.holdout),
        ("crop", "data.crop", made["crop"], to_dict(data.crop)),
        ("number of views", "data.views", made["views"], views),
        ("seed", "seed", made["seed"], seed if _is_random(data.crop) else made["seed"]),
    ]
    for what, key, there, here in rows:
        if there != here:
            whose = f" (of {made['tokenizer']['path']!r})" if what == "tokenizer" else ""
            raise ConfigError(f"the token cache {str(records.folder)!r} was made with another {what}, {there!r}{whose}, than this run's "
                              f"{here!r}; change config.{key}, or make a cache for it with `vimlab tokenize`")


def _is_random(crop: Crop) -> bool:
    """Whether two crops of one image may differ."""
    return not (isinstance(crop, Center) or (isinstance(crop, Resize) and not crop.flip))
