"""vimlab's own stored form: ArrayRecord shards with a manifest.json, written by `vimlab data import`.

A record (format 1) is one msgpack map: `key` str, `image` bytes of an encoded file, and, where there is one, `label` int
and `caption` str. Shards have group_size 1, so a record is read without its neighbours.
"""

import json
import pathlib
from typing import Any

import msgpack

from vimlab.data.base import DataError, DecodeError, PerProcess, Record, SourceInfo

FORMAT = 1
WRITER_OPTIONS = "group_size:1,uncompressed"  # images are compressed already


class ArrayRecords:
    """One split of an imported data set. Raises DataError where the manifest and the shards do not fit together."""

    def __init__(self, folder: pathlib.Path, split: str):
        manifest = read_manifest(folder)
        entry = manifest["splits"][split]
        missing = [s["file"] for s in entry["shards"] if not (folder / s["file"]).is_file()]
        if missing:
            raise DataError(f"{str(folder)!r} lacks {missing[0]!r}, which its manifest lists; import it again")
        shards = [f"{folder / s['file']}[0:{s['count']}]" for s in entry["shards"]]
        self._shards = PerProcess(_open, shards)
        self._size = entry["count"]
        classes = tuple(manifest["class_names"]) if manifest["class_names"] else None
        self.info = SourceInfo(f"{manifest['name']}:{split}", self._size, classes, entry["captions"] > 0, entry["sha256"][:16])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._size:
            raise IndexError(index)
        try:
            return unpack(self._shards.get()[index])
        except (RuntimeError, ValueError, msgpack.UnpackException) as error:
            raise DecodeError(f"record {index} of {self.info.name!r} is damaged ({error})") from None


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest.json of an imported data set. Raises DataError where it is of another version or kind."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(folder / 'manifest.json')!r} is not a manifest of `vimlab data import` ({error})") from None
    if version != FORMAT:
        raise DataError(f"{str(folder)!r} is in format {version}, but this version reads format {FORMAT}; import it again")
    return manifest


def pack(record: Record) -> bytes:
    """A record with an encoded image as bytes: msgpack with keys in a fixed order, so equal records are equal bytes."""
    return msgpack.packb({name: record[name] for name in ("key", "label", "caption", "image") if name in record})


def unpack(data: bytes) -> Record:
    """The inverse of `pack`."""
    return Record(**msgpack.unpackb(data))


def _open(shards: list[str]) -> Any:
    from array_record.python import array_record_data_source

    return array_record_data_source.ArrayRecordDataSource(shards)
