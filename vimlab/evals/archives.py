"""Images in the `.npz` archives that guided-diffusion's evaluator reads: uint8[N,H,W,3] as `arr_0`, labels as `arr_1`.

Its reference batches hold the images under the same name, often beside their statistics (vimlab.evals.statistics). Archives
are written and read batch by batch, so that memory does not grow with their size.
"""

import contextlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from vimlab.config import ConfigError, UserError
from vimlab.paths import beside, place

# What reading a damaged archive raises.
DAMAGE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class ArchiveError(UserError):
    """A file that is absent, damaged, or holds something else; the message names it."""


def write_images(
    path: str | os.PathLike, batches: Iterable[np.ndarray], *, count: int, labels: np.ndarray | None = None
) -> None:
    """Writes images for the evaluators of others; a batch at a time is in memory.

    Args:
      path: ends in ".npz".
      batches: uint8[B,H,W,3] each, in the set's order.
      count: images in all; a file's header comes before its images.
      labels: i64[count], left out for images without.

    Raises:
      ConfigError: batches of another kind, of several sizes or of another count than said.
    """
    if labels is not None and labels.shape != (count,):
        raise ConfigError(f"{path}: {count} images need as many labels, not an array of shape {labels.shape}")
    shape: tuple[int, ...] | None = None
    written = 0
    with beside(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
            for batch in batches:
                if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
                    raise ConfigError(f"{path}: images must be uint8[B,H,W,3], not {batch.dtype}{list(batch.shape)}")
                if shape is None:
                    shape = batch.shape[1:]
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                    np.lib.format.write_array_header_1_0(entry, header)
                if batch.shape[1:] != shape:
                    raise ConfigError(f"{path}: all images must be of one size, but there are {shape[:2]} and {batch.shape[1:3]}")
                entry.write(batch.tobytes())
                written += len(batch)
        if written != count or shape is None:
            raise ConfigError(f"{path} was to hold {count} images, but {written} came; nothing was written")
        if labels is not None:
            with archive.open("arr_1.npy", "w") as entry:
                np.lib.format.write_array(entry, labels)


class ImageArchive:
    """The images of an archive, whoever wrote it.

    Attributes:
      path: of the file.
      shape: (N,H,W,3).

    Raises:
      ArchiveError: the file is absent, damaged, or holds no uint8[N,H,W,3] as `arr_0`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = place(path)
        with self._open() as (_, shape):
            self.shape = shape

    def batches(self, size: int = 256) -> Iterator[np.ndarray]:
        """uint8[B,H,W,3] in the file's order, the last one smaller. Raises ArchiveError on damage."""
        with self._open() as (entry, (count, *shape)):
            for start in range(0, count, size):
                wanted = (min(size, count - start), *shape)
                data = entry.read(math.prod(wanted))
                # Fewer bytes than the header promises: NumPy's ValueError, which `_open` tells of.
                yield np.frombuffer(data, np.uint8).reshape(wanted)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[io.BufferedIOBase, tuple[int, ...]]]:
        if not self.path.is_file():
            raise ArchiveError(f"the image archive {str(self.path)!r} does not exist")
        try:
            with self.path.open("rb") as file, zipfile.ZipFile(file) as archive:
                if "arr_0.npy" not in archive.namelist():
                    raise ArchiveError(f"{self.path} holds {archive.namelist()} and no images, which would be named arr_0")
                with archive.open("arr_0.npy") as entry:
                    yield entry, self._header(entry)
        except DAMAGE as error:
            if isinstance(error, UserError):
                raise
            raise ArchiveError(f"{self.path} is damaged or no .npz file ({error}); fetch or write it again") from error

    def _header(self, entry: io.BufferedIOBase) -> tuple[int, ...]:
        version = np.lib.format.read_magic(entry)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[version](entry)
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran:
            raise ArchiveError(f"arr_0 in {self.path} is {dtype}{list(shape)}, but images are uint8[N,H,W,3]")
        return shape
