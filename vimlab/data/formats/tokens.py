"""A token cache: what a tokenizer made of a data set, as ArrayRecord shards with a manifest.json, by `vimlab tokenize`.

A record is one msgpack map: `key` str, `index` int (the record of the data set that was used: itself, or the next one
where its image cannot be decoded), `ids` bytes, little-endian, of shape [views, positions, groups], and, where there
is one, `label` int and `caption` str. Record i of the cache stands for record i of the data set.
"""

import json
import pathlib
from typing import Any

import msgpack
import numpy as np

from vimlab.data.base import DataError, PerProcess, Record, SourceInfo
from vimlab.tokens import TokenSpec

FORMAT = "tokens 1"


class TokenRecords:
    """The records of a token cache: key, index, ids i32[K,N,G] for its K views, and label and caption where there are.

    Its fingerprint is that of the data set that it was made from, whose records stand in the same places.

    Attributes:
      folder: where it lies.
      spec: what the tokens look like.
      views: K, fixed crops of each image.
      manifest: all that it says about itself.

    Raises:
      DataError: no cache, an unfinished or a damaged one.
    """

    def __init__(self, folder: str | pathlib.Path):
        self.folder = pathlib.Path(folder).expanduser()
        self.manifest = read_manifest(self.folder)
        spec, data, shards = (self.manifest[key] for key in ("spec", "data", "shards"))
        for shard in shards:
            path = self.folder / shard["file"]
            size = path.stat().st_size if path.is_file() else 0
            if size != shard["bytes"]:
                raise DataError(f"{str(path)!r} has {size} bytes, not the {shard['bytes']} that the cache's manifest lists; {self._again}")
        self._shards = PerProcess(_open, [f"{self.folder / s['file']}[0:{s['count']}]" for s in shards])
        self._size, self.views = data["size"], self.manifest["views"]
        self.spec = TokenSpec(tuple(spec["grid"]), spec["codes"], spec["groups"])
        classes = self.manifest["class_names"]
        self.info = SourceInfo(f"{data['name']} as tokens ({self.folder.name})", self._size, tuple(classes) if classes else None,
                               self.manifest["captions"], data["fingerprint"])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._size:
            raise IndexError(index)
        try:
            return unpack(self._shards.get()[index], self.spec, self.views)
        except (RuntimeError, ValueError, KeyError, msgpack.UnpackException) as error:
            raise DataError(f"record {index} of the token cache {str(self.folder)!r} is damaged ({error}); {self._again}") from None

    @property
    def _again(self) -> str:
        return "remove the folder and run `vimlab tokenize` again"


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest.json of a token cache. Raises DataError where there is none, or one of another kind or version."""
    path = folder / "manifest.json"
    if folder.with_name(folder.name + ".partial").is_dir() and not folder.exists():
        raise DataError(f"the token cache {str(folder)!r} is not finished; run the same `vimlab tokenize` again, and it goes on")
    if not path.is_file():
        raise DataError(f"there is no token cache in {str(folder)!r}; make one with `vimlab tokenize`, or set data.tokens=none to read pixels")
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(path)!r} is not a manifest of `vimlab tokenize` ({error})") from None
    if version != FORMAT:
        raise DataError(f"{str(folder)!r} is in format {str(version)!r}, but token caches are in format {FORMAT!r}; make one with "
                        "`vimlab tokenize`")
    return manifest


def pack(record: Record, codes: int) -> bytes:
    """A record, its ids of a codebook of `codes` entries, as bytes; equal records are equal bytes."""
    stored = {name: record[name] for name in ("key", "index", "label", "caption") if name in record}
    return msgpack.packb(stored | {"ids": record["ids"].astype(ids_dtype(codes)).tobytes()})


def unpack(data: bytes, spec: TokenSpec, views: int) -> Record:
    """The inverse of `pack`: ids i32[views, N, G]. Raises ValueError where they are not as many."""
    record = msgpack.unpackb(data)
    ids = np.frombuffer(record["ids"], ids_dtype(spec.codes)).reshape(views, spec.length, spec.groups)
    return Record(**record | {"ids": ids.astype(np.int32)})


def ids_dtype(codes: int) -> np.dtype:
    """The stored integers of ids in [0, codes)."""
    return np.dtype("<u2" if codes <= 1 << 16 else "<u4")


def _open(shards: list[str]) -> Any:
    from array_record.python import array_record_data_source

    return array_record_data_source.ArrayRecordDataSource(shards)
