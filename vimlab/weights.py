"""Public weight files: finding, checking and reading the user's copy of what `vimlab.published` lists.

Nothing is downloaded. A user fetches a file from the page that publishes it and puts it into the weights folder (the environment
variable VIMLAB_WEIGHTS, else ~/.cache/vimlab/weights), or names its path in a config.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import sys
import zipfile

import numpy as np

from vimlab import safetensors_io, torch_io
from vimlab.config import UserError
from vimlab.published import KNOWN, Known

VARIABLE = "VIMLAB_WEIGHTS"


class WeightsError(UserError):
    """A weights file that is absent, damaged, unknown or of another kind; the message names it and says what to do."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A file on this machine.

    Attributes:
      path: where it lies.
      sha256: of its bytes, as they are now.
      known: the published file that it is; None for any other.
    """

    path: pathlib.Path
    sha256: str
    known: Known | None


def folder() -> pathlib.Path:
    """Where the user puts weight files; it need not exist."""
    return pathlib.Path(os.environ.get(VARIABLE) or "~/.cache/vimlab/weights").expanduser()


def held(known: Known) -> pathlib.Path | None:
    """The file of the weights folder that bears a name of this one; None where there is none. Its bytes are not looked at."""
    return next((path for name in known.files if (path := folder() / name).is_file()), None)


def sha256(path: str | os.PathLike) -> str:
    """Of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_by(digest: str) -> Known | None:
    """The published file with this sha256."""
    return next((known for known in KNOWN.values() if known.sha256 == digest), None)


def locate(*ids: str, path: str | os.PathLike = "", allow_unknown: bool = False) -> Found:
    """Finds and checks the user's copy of one of several files that serve the same purpose.

    Args:
      ids: keys of KNOWN; the first that the weights folder holds is taken.
      path: a file to take in place of the folder's.
      allow_unknown: whether a file of another hash than the published ones is taken, as weights that nobody has verified.

    Raises:
      WeightsError: no such file, a damaged one, one of another purpose, or an unknown one that is not allowed.
    """
    wanted = [KNOWN[i] for i in ids]
    if path:
        place = pathlib.Path(path).expanduser()
        if not place.is_file():
            raise WeightsError(f"the weights {str(path)!r} do not exist; give the path of {_offer(wanted)}")
    else:
        place = next(filter(None, map(held, wanted)), None)
        if place is None:
            raise WeightsError(
                f"the weights folder {str(folder())!r} lacks {_offer(wanted)}, needed for {wanted[0].use}; fetch it there and run "
                "`vimlab weights add FILE`, or name its path in the config"
            )
    found = identify(place)
    if found.known in wanted:
        return found
    if found.known is not None:
        raise WeightsError(f"{place} is {found.known.what}, but {_offer(wanted)} is needed; give that")
    if not allow_unknown:
        raise WeightsError(
            f"{place} has the sha256 {found.sha256[:16]}…, which is not that of {_offer(wanted)}; give that file, or accept this one "
            "with allow_unknown=True, and figures will be marked as unverified"
        )
    return found


def identify(path: str | os.PathLike) -> Found:
    """Hashes a file. Raises WeightsError where it bears the name of a published one but not its bytes."""
    place = pathlib.Path(path)
    digest = sha256(place)
    named = next((known for known in KNOWN.values() if place.name in known.files), None)
    if named is not None and named.sha256 != digest:
        raise WeightsError(
            f"{place} is damaged, or is another file of that name: its sha256 starts with {digest[:8]} where {named.what} has "
            f"{named.sha256[:8]}; fetch it again from {named.page}"
        )
    return Found(place, digest, known_by(digest))


def add(path: str | os.PathLike) -> Found:
    """Copies a published file, whatever its name, into the weights folder: all of it or nothing.

    Raises:
      WeightsError: no such file, or not the bytes of a published one.
    """
    source = pathlib.Path(path).expanduser()
    if not source.is_file():
        raise WeightsError(f"{str(path)!r} does not exist; give a file to add")
    found = identify(source)
    if found.known is None:
        raise WeightsError(
            f"{source} has the sha256 {found.sha256[:16]}…, which is of no file that vimlab knows (it knows {', '.join(KNOWN)}): it is "
            "cut off or another one; fetch it again, or name its path in the config with allow_unknown=True"
        )
    target = folder() / found.known.files[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(target.name + ".tmp")
    try:
        shutil.copyfile(source, beside)
        if sha256(beside) != found.sha256:
            raise WeightsError(f"{source} changed while it was copied to {target}, which is left as it was; add it again")
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    return dataclasses.replace(found, path=target)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors`, an `.npz`, or else a torch file by name, on the host.

    Raises:
      UserError: the file is damaged, or holds something else; the message names it.
    """
    suffix = pathlib.Path(path).suffix
    if suffix == ".safetensors":
        return safetensors_io.read(path)[0]
    if suffix != ".npz":
        return torch_io.read(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} is not a whole .npz file ({error}); fetch it again or save it again") from error


def _offer(wanted: list[Known]) -> str:
    return " or ".join(f"{known.files[0]} ({known.what}, {known.page})" for known in wanted)


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["weights", *sys.argv[1:]])
