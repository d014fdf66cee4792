"""What is written shard by shard: a folder that grows beside its place, finished shards kept, the time left on one line."""

import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable
from typing import Any

from vimlab.config import diff
from vimlab.data.base import DataError
from vimlab.data.formats.array_record import WRITER_OPTIONS

REQUEST = "request.json"


def partial_of(dst: pathlib.Path) -> pathlib.Path:
    """The folder in which `dst` grows until it is whole. Raises DataError where there is a `dst` already."""
    if dst.exists():
        raise DataError(f"{str(dst)!r} exists already; choose another folder or remove it")
    return dst.with_name(dst.name + ".partial")


def claim(partial: pathlib.Path, request: dict[str, Any], what: str) -> None:
    """Makes the partial folder ours. Raises DataError unless it is new, or the beginning of this very import or cache (`what`)."""
    mark, request = partial / REQUEST, json.loads(json.dumps(request))
    if mark.is_file():
        changed = diff(json.loads(mark.read_text()), request)
        if changed:
            key, (there, wanted) = min(changed.items(), key=lambda change: "(absent)" in change[1])
            raise DataError(f"{str(partial)!r} is the beginning of another {what} ({key} {there!r}, not {wanted!r}); remove it, or choose "
                            "another folder")
    elif partial.is_dir() and any(path.suffix != ".part" for path in partial.iterdir()):
        raise DataError(f"{str(partial)!r} holds something else than the beginning of this {what}; remove it, or choose another folder")
    partial.mkdir(parents=True, exist_ok=True)
    write_json(mark, request)


def shards_of(partial: pathlib.Path, name: str, size: int, shard_records: int) -> list[tuple[pathlib.Path, pathlib.Path, range]]:
    """Where each shard of `size` records goes, the `.done` file that says it is whole, and its records."""
    count = -(-size // shard_records)
    paths = [partial / f"{name}-{shard:05d}-of-{count:05d}.array_record" for shard in range(count)]
    return [(path, path.with_suffix(".done"), range(i * shard_records, min((i + 1) * shard_records, size))) for i, path in enumerate(paths)]


class ShardWriter:
    """Writes the records of one shard beside its place; `close` brings it there."""

    def __init__(self, path: pathlib.Path):
        from array_record.python import array_record_module

        self._path, self._part = path, path.with_suffix(".part")
        self._writer = array_record_module.ArrayRecordWriter(str(self._part), WRITER_OPTIONS)
        self._digest, self._count = hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        """Adds a record."""
        self._writer.write(data)
        self._digest.update(data)
        self._count += 1

    def close(self) -> dict[str, Any]:
        """Finishes the shard. Returns its file, count of records, bytes, and the hash of its records in order."""
        self._writer.close()
        os.replace(self._part, self._path)
        return {"file": self._path.name, "count": self._count, "bytes": self._path.stat().st_size, "sha256": self._digest.hexdigest()}


def publish(partial: pathlib.Path, dst: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Adds the manifest, gives the folder its name, and clears away what said how far it was."""
    write_json(partial / "manifest.json", manifest)
    os.rename(partial, dst)
    for leftover in [*dst.glob("*.done"), dst / REQUEST]:
        leftover.unlink()


def sha256_of(parts: Iterable[str]) -> str:
    """One hash of several."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes beside, then renames."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


class Progress:
    """One line on stderr with the time left: rewritten on a terminal, every ten seconds a new one elsewhere."""

    def __init__(self, total: int, quiet: bool):
        self._total, self._quiet, self._done, self._skipped = total, quiet, 0, 0
        self._start = self._shown = time.monotonic()
        self._end = "\r" if sys.stderr.isatty() else "\n"

    def skip(self, count: int) -> None:
        """Counts what was there already."""
        self._done, self._skipped = self._done + count, self._skipped + count

    def add(self, count: int = 1) -> None:
        """Counts images."""
        self._done += count
        now = time.monotonic()
        if not self._quiet and now - self._shown > (0.5 if self._end == "\r" else 10):
            self._shown = now
            made, passed = self._done - self._skipped, now - self._start
            rate, (minutes, seconds) = made / passed, divmod(int((self._total - self._done) * passed / made), 60)
            line = f"{self._done:,} of {self._total:,} images, {rate:,.0f}/s, {minutes}:{seconds:02d} left"
            print(line.ljust(60), end=self._end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Says how many there were, and how long they took."""
        if not self._quiet:
            seconds = time.monotonic() - self._start
            again = f" ({self._skipped:,} were there already)" if self._skipped else ""
            print(f"{self._total:,} images in {seconds:.0f} s{again}".ljust(60), file=sys.stderr)
