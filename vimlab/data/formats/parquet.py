"""Parquet files with images in them: binary columns, or the struct {bytes, path} that Hugging Face's `datasets` writes."""

import bisect
import collections
import itertools
import json
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

from absl import logging

from vimlab.data.base import CAPTION_NAMES, LABEL_NAMES, DataError, PerProcess, Record, SourceInfo, fingerprint

CACHE_BYTES = 1 << 29  # of decoded row groups, for each process
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "picture", "pixels")


class Parquet:
    """Rows of Parquet files in order.

    A row costs the reading of its whole row group, of which the last half gigabyte is kept: small sets end up in
    memory, large ones are slow in random order and should be imported (`vimlab data import`); the log says so.
    """

    def __init__(self, files: Sequence[pathlib.Path], name: str):
        pq = _pyarrow_parquet()
        self._files, self._groups, held = [str(f) for f in files], [], 0
        for number, file in enumerate(files):
            try:
                meta = pq.read_metadata(file)
            except Exception as error:
                raise DataError(f"{str(file)!r} cannot be read as Parquet ({str(error).splitlines()[0]})") from None
            self._groups += [(number, group, meta.row_group(group).num_rows) for group in range(meta.num_row_groups)]
            held += sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
        self._ends = list(itertools.accumulate(rows for _, _, rows in self._groups))
        if not self._ends or not self._ends[-1]:
            raise DataError(f"{name!r} has no rows")
        self._columns, classes = _columns(pq.read_schema(files[0]), name)
        self._cache = PerProcess(_Cache)
        if held > CACHE_BYTES:
            logging.warning("%s holds %.1f GB of Parquet, which is slow to read in random order; `vimlab data import` "
                            "makes it fast", name, held / 1e9)
        stamp = fingerprint([self._columns, classes] + [(f.name, f.stat().st_size) for f in files])
        self.info = SourceInfo(name, self._ends[-1], classes, "caption" in self._columns, stamp)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = bisect.bisect_right(self._ends, index)
        number, group, rows = self._groups[at]
        table = self._cache.get().read(self._files[number], group, tuple(self._columns.values()))
        row = index - (self._ends[at] - rows)
        value = {part: table.column(column)[row].as_py() for part, column in self._columns.items()}
        image, key = value["image"], f"{index:08d}"
        if isinstance(image, dict):
            key = image.get("path") or key
            image = image["bytes"] or pathlib.Path(self._files[number]).with_name(key).read_bytes()
        record = Record(key=key, image=image or b"")
        if value.get("label") is not None:
            record["label"] = int(value["label"])
        if value.get("caption"):
            record["caption"] = value["caption"] if isinstance(value["caption"], str) else str(value["caption"][0])
        return record


class _Cache:
    """The row groups read last, up to CACHE_BYTES of them."""

    def __init__(self):
        self._lock, self._tables, self._bytes = threading.Lock(), collections.OrderedDict(), 0

    def read(self, file: str, group: int, columns: tuple[str, ...]) -> Any:
        with self._lock:
            if (file, group) in self._tables:
                self._tables.move_to_end((file, group))
                return self._tables[file, group]
            table = _pyarrow_parquet().ParquetFile(file).read_row_group(group, columns=list(columns), use_threads=False)
            self._tables[file, group] = table
            self._bytes += table.nbytes
            while self._bytes > CACHE_BYTES and len(self._tables) > 1:
                self._bytes -= self._tables.popitem(last=False)[1].nbytes
            return table


def _columns(schema: Any, name: str) -> tuple[dict[str, str], tuple[str, ...] | None]:
    """Which column is the image, the label, the caption; and the class names of Hugging Face's metadata."""
    import pyarrow as pa

    types = {field.name: field.type for field in schema}
    binary = [n for n, t in types.items() if pa.types.is_binary(t) or pa.types.is_large_binary(t)
              or (pa.types.is_struct(t) and "bytes" in {t.field(i).name for i in range(t.num_fields)})]
    texts = [n for n, t in types.items() if pa.types.is_string(t) or pa.types.is_large_string(t)
             or (pa.types.is_list(t) and pa.types.is_string(t.value_type))]
    found = {"image": next((n for n in IMAGE_NAMES if n in binary), binary[0] if binary else None),
             "label": next((n for n in LABEL_NAMES if n in types and pa.types.is_integer(types[n])), None),
             "caption": next((n for n in CAPTION_NAMES if n in texts), None)}
    if found["image"] is None:
        raise DataError(f"{name!r} has no column with image bytes; its columns are {sorted(types)}")
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(found["label"] or "", {}).get("names")
    return {part: column for part, column in found.items() if column}, tuple(names) if names else None


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError("reading Parquet needs pyarrow; install it with `pip install pyarrow`") from None
    return pyarrow.parquet
