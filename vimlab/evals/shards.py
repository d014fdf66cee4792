"""What was computed of many images, kept in files a shard at a time: an interrupted evaluation goes on where it stopped."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from vimlab.config import ConfigError
from vimlab.data.shards import Progress
from vimlab.evals.devices import Arrays, from_first
from vimlab.paths import Path, beside, place, write_whole

SIZE = 1024  # Images in a shard: whatever the batch, so that shards of one batch size go on under another.


class Shards:
    """Arrays [N,…] of N images, in files that are named by what they are of.

    Args:
      folder: for all requests; each has a folder of its own in it.
      request: JSON values that fix every number of the arrays; the batch size and the devices are none of them.
      count: N.
      make: the arrays of images `start` to `stop`; called for shards that are not there yet.

    Attributes:
      path: the folder of this request.
      count: N.
    """

    def __init__(
        self, folder: str | os.PathLike, request: Mapping[str, Any], count: int, make: Callable[[int, int], Arrays]
    ) -> None:
        self.request = {**request, "count": count, "shard": SIZE}
        text = json.dumps(self.request, sort_keys=True, allow_nan=False)
        self.path = place(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.count, self._make = count, make
        self._bounds = [(start, min(start + SIZE, count)) for start in range(0, count, SIZE)]
        self._say(text)

    def _say(self, text: str) -> None:
        if jax.process_index() == 0 and not (self.path / "request.json").exists():
            write_whole(self.path / "request.json", text.encode())

    def __iter__(self) -> Iterator[Arrays]:
        """The arrays of each shard, in order; made and stored where they are missing, and where a file is damaged."""
        progress = Progress(self.count, quiet=not self.missing or jax.process_index() > 0)
        for index, (start, stop) in enumerate(self._bounds):
            found = self._read(index, stop - start)
            if found is not None:
                progress.skip(stop - start)
            else:
                found = self._make(start, stop)
                wrong = {name: x.shape for name, x in found.items() if len(x) != stop - start}
                if wrong:
                    raise ConfigError(f"a shard of {stop - start} images was given arrays {wrong}")
                if jax.process_index() == 0:
                    self._write(index, found)
                progress.add(stop - start)
            yield found
        progress.close()

    @property
    def missing(self) -> int:
        """Images that are still to be made."""
        return sum(stop - start for i, (start, stop) in enumerate(self._bounds) if not self._file(i).exists())

    def _file(self, index: int) -> Path:
        return self.path / f"{index:05d}.npz"

    def _read(self, index: int, count: int) -> Arrays | None:
        """A stored shard as the first process finds it, whose disk alone need hold it; None where it is to be made."""
        return from_first(self._load(index, count) if jax.process_index() == 0 else None)

    def _load(self, index: int, count: int) -> Arrays | None:
        if not self._file(index).exists():
            return None
        try:
            with self._file(index).open("rb") as stored, np.load(stored) as file:
                arrays = {name: file[name] for name in file.files}
            if all(len(x) == count for x in arrays.values()):
                return arrays
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            pass
        logging.warning("%s is damaged and is made again", self._file(index))
        return None

    def _write(self, index: int, arrays: Arrays) -> None:
        with beside(self._file(index)) as file:
            np.savez(file, **arrays)

