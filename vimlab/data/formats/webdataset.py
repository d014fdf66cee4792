"""WebDataset tars with random access: each tar is indexed once, and the index kept beside it or in the user's cache."""

import bisect
import hashlib
import itertools
import json
import os
import pathlib
import tarfile
from collections.abc import Sequence

import numpy as np

from vimlab.data.base import CAPTION_NAMES, IMAGE_SUFFIXES, LABEL_NAMES, DataError, DecodeError, Record, SourceInfo, fingerprint

PARTS = ("image", "label", "caption", "json")
SUFFIXES = {".cls": "label", ".label": "label", ".class": "label", ".txt": "caption", ".caption": "caption", ".text": "caption",
            ".json": "json"} | {suffix: "image" for suffix in IMAGE_SUFFIXES}
VERSION = 1


class WebDataset:
    """Samples of tars in order: KEY.jpg (or another image), KEY.cls (class number), KEY.txt (caption) or KEY.json.

    Class names are read from `classes.txt` beside the first tar, one a line, where that exists. A file is opened for
    each read, so nothing is shared between threads or processes.
    """

    def __init__(self, tars: Sequence[pathlib.Path], name: str):
        self._tars = [str(tar) for tar in tars]
        indices = [read_index(tar) for tar in tars]
        self._keys = [keys for keys, _ in indices]
        self._parts = [parts for _, parts in indices]
        self._ends = list(itertools.accumulate(len(keys) for keys in self._keys))
        if not self._ends or not self._ends[-1]:
            raise DataError(f"{name!r} holds no sample with an image; a sample looks like 000123.jpg, 000123.cls, 000123.txt")
        table = tars[0].parent / "classes.txt"
        classes = tuple(table.read_text().split("\n")) if table.is_file() else None
        classes = classes and tuple(line.strip() for line in classes if line.strip())
        has_captions = any((parts[:, 2, 1] >= 0).any() for parts in self._parts) or "caption" in self[0]
        stamp = [(tar.name, os.path.getsize(tar), len(keys)) for tar, keys in zip(tars, self._keys, strict=True)]
        self.info = SourceInfo(name, self._ends[-1], classes, has_captions, fingerprint([stamp, classes]))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        tar = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[tar - 1] if tar else 0)
        key = self._keys[tar][row].decode()
        found = {}
        with open(self._tars[tar], "rb") as file:
            for part, (offset, size) in zip(PARTS, self._parts[tar][row], strict=True):
                if size >= 0:
                    file.seek(offset)
                    found[part] = file.read(size)
                    if len(found[part]) != size:
                        raise DecodeError(f"record {key!r} is cut off: {self._tars[tar]!r} ends before it does")
        return self._record(key, found)

    def _record(self, key: str, found: dict[str, bytes]) -> Record:
        record = Record(key=key, image=found["image"])
        more = json.loads(found["json"]) if "json" in found else {}
        label = found["label"].decode() if "label" in found else next((more[n] for n in LABEL_NAMES if n in more), None)
        caption = found["caption"].decode("utf-8", "replace") if "caption" in found else None
        if caption is None:
            caption = next((more[n] for n in CAPTION_NAMES if isinstance(more.get(n), str)), None)
        if label is not None:
            try:
                record["label"] = int(label)
            except (TypeError, ValueError):
                raise DataError(f"record {key!r} has the label {str(label)[:40]!r}; labels in tars are class numbers") from None
        if caption is not None:
            record["caption"] = caption.strip()
        return record


def read_index(tar: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """The (keys S[n], (offset, size) of each part i64[n,4,2]) of a tar; size -1 where a sample lacks the part.

    The index is kept with the tar's size and modification time, and made again when either has changed.
    """
    status = tar.stat()
    stamp = np.array([VERSION, status.st_size, status.st_mtime_ns])
    name = hashlib.sha256(str(tar.resolve()).encode()).hexdigest()[:32] + ".npz"
    places = [tar.with_name(tar.name + ".index.npz"), _cache_folder() / name]
    for place in places:
        try:
            with np.load(place) as kept:
                if np.array_equal(kept["stamp"], stamp):
                    return kept["keys"], kept["parts"]
        except (OSError, ValueError, KeyError, EOFError):  # absent or damaged: made again below
            continue
    keys, parts = _scan(tar)
    for place in places[not tar.parent.stat().st_mode & 0o222 :]:  # root may write into a read-only folder, but should not
        part = place.with_name(f"{place.name}.{os.getpid()}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(part, "wb") as file:
                np.savez(file, stamp=stamp, keys=keys, parts=parts)
            os.replace(part, place)
            break
        except OSError:  # a read-only place; the next one, or no index kept at all
            part.unlink(missing_ok=True)
    return keys, parts


def _cache_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "vimlab", "tar_index")


def _scan(tar: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    samples: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                archive.members = []  # tarfile would keep them all
                folder, name = os.path.split(member.name)
                stem, dot, suffix = name.partition(".")
                part = SUFFIXES.get((dot + suffix).lower())
                if not member.isfile() or not stem or part is None:
                    continue
                sample = samples.setdefault(os.path.join(folder, stem), np.full((4, 2), -1))
                if sample[PARTS.index(part), 1] < 0:
                    sample[PARTS.index(part)] = member.offset_data, member.size
    except tarfile.ReadError as error:
        raise DataError(f"{str(tar)!r} is not a whole, uncompressed tar ({error}); decompress it, or fetch it again") from None
    samples = {key: parts for key, parts in samples.items() if parts[0, 1] >= 0}
    keys = np.array([key.encode() for key in samples], "S" if samples else "S1")
    return keys, np.array(list(samples.values()), np.int64).reshape(-1, 4, 2)
