"""Where a run's files lie: in a folder of this machine, or in a bucket of Google Cloud Storage, `gs://BUCKET/FOLDER`.

A place in a bucket is an `epath.Path`, etils' path layer, which Orbax uses too; here it stands on gcsfs. A place on this
machine stays a `pathlib.Path`, whose methods have the same names. What the two do differently is in this file:

                         folder                              bucket
    a file               written beside, then renamed        one upload, which appears whole or not at all
    a folder             is made                             is what objects have in common at the start of their names
    renaming a folder    at once                             its objects are copied within the store, then deleted
    deleting a folder    renamed first                       marked first, the seal goes next
    checksums            read and computed here              MD5 of the store, from one listing
    appending            yes                                 no: the whole object is written again
    libraries that       get the file                        get a copy on this machine
      know only files

In neither is anything locked: one run at a time writes to a workdir.
"""

import base64
import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

# Before etils looks for TensorFlow: one way to a bucket, whatever else is installed.
os.environ.setdefault("EPATH_USE_TF", "false")

from etils import epath  # noqa: E402

from vimlab.config import ConfigError  # noqa: E402

BUCKET = "gs://"
DELETING = "deleting"  # The mark of a folder that is being deleted: at the end of its name, or as an object in it.

Path = pathlib.Path | epath.Path


class Stored(NamedTuple):
    """A file of a listing: its bytes, when it was written (seconds since 1970), and the store's MD5 in base64 where it has one."""

    size: int
    time: float
    md5: str | None


def place(path: str | os.PathLike) -> Path:
    """What a user's path names, in a bucket or on this machine. Looks at nothing; `check` does."""
    text = os.fspath(path)
    if not text.startswith(BUCKET):
        return pathlib.Path(path)
    _list_anew()
    return epath.Path(text.rstrip("/"))


def is_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def check(path: Path, flag: str = "--workdir") -> None:
    """Raises ConfigError for a bucket that does not exist or cannot be reached, and for those of other stores."""
    if not is_bucket(path):
        # `Path` has made one slash of the two, and would quietly make a folder of that name here.
        if re.match(r"[a-z][a-z0-9]+:/", str(path)):
            raise ConfigError(f"{flag} {path} names a bucket of a store that is not known here; give gs://BUCKET/FOLDER, or a folder")
        return
    bucket, _, folder = os.fspath(path).removeprefix(BUCKET).partition("/")
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(f"{flag} {path} names a bucket, which needs gcsfs: pip install vimlab[gcs]")
    if not folder:
        raise ConfigError(f"{flag} {path} names a whole bucket; give a folder in it, as in {path}/run")
    try:
        # Listing is the least that every role that can read the run allows.
        _store().call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
    except FileNotFoundError:
        raise ConfigError(f"{flag} {path}: there is no bucket {bucket!r}; make it with gcloud storage buckets create, or correct its name") from None
    except Exception as error:  # noqa: BLE001, whatever credentials and networks raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(f"{flag} {path} cannot be reached ({reason}); log in with gcloud auth application-default login, and see that "
                          "you may read and write there") from error


def refuse_bucket(path: str | os.PathLike, flag: str, why: str) -> None:
    """Raises ConfigError where a path is in a bucket. why: a clause that says why this cannot be, and what to do."""
    if is_bucket(path):
        raise ConfigError(f"{flag} {path} is in a bucket, but {why}")


def resolved(path: Path) -> Path:
    """The one absolute path of a place."""
    return path if is_bucket(path) else path.resolve()


def absolute(path: Path) -> Path:
    """An absolute path; links in it stay."""
    return path if is_bucket(path) else path.absolute()


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, where a folder is to be made."""
    if not is_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file that no reader meets half of: beside its place and renamed, or as one upload that the store checks."""
    path = place(path)
    if is_bucket(path):
        _store().pipe_file(os.fspath(path), data, consistency="md5")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def beside(path: str | os.PathLike) -> Iterator[io.BufferedIOBase]:
    """A file to write, on this machine, that takes its place when it is whole, and leaves nothing where writing fails."""
    path = place(path)
    if is_bucket(path):
        with tempfile.TemporaryDirectory(prefix="vimlab-") as folder:
            part = pathlib.Path(folder) / "part"
            with open(part, "wb") as file:
                yield file
            _store().put_file(os.fspath(part), os.fspath(path), consistency="md5")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def fetched(path: Path) -> pathlib.Path:
    """The file itself on this machine, else a copy of it here, which goes when the process ends."""
    if not is_bucket(path):
        return path
    copy = pathlib.Path(tempfile.mkdtemp(dir=_scratch().name)) / path.name
    _store().get_file(os.fspath(path), os.fspath(copy))
    return copy


class Staging:
    """A folder for libraries that write to this machine alone.

    Attributes:
      path: where they write: the place itself, or a folder here, whose files `publish` brings to their place.
    """

    def __init__(self, target: Path):
        self._target, self._published = target, {}
        self.path = pathlib.Path(tempfile.mkdtemp(dir=_scratch().name)) if is_bucket(target) else target

    def publish(self) -> None:
        """Uploads the files that are new or have grown; nothing on this machine."""
        if not is_bucket(self._target):
            return
        for name, stored in files(self.path).items():
            if self._published.get(name) != stored:
                _store().put_file(os.fspath(self.path / name), os.fspath(self._target / name))
                self._published[name] = stored


def size(path: Path) -> int:
    """The bytes of a file."""
    return path.stat().length if is_bucket(path) else path.stat().st_size


def files(folder: Path) -> dict[str, Stored]:
    """All files within a folder by their names in it, sorted; of a bucket in one listing."""
    if not is_bucket(folder):
        found = ((p.relative_to(folder).as_posix(), p.stat()) for p in folder.rglob("*") if p.is_file())
        return {name: Stored(stat.st_size, stat.st_mtime, None) for name, stat in sorted(found)}
    start = os.fspath(folder).removeprefix(BUCKET) + "/"
    found = _store().find(os.fspath(folder), detail=True)
    names = {key.removeprefix(start): facts for key, facts in found.items() if key.startswith(start) and not key.endswith("/")}
    return {name: Stored(facts["size"], facts["mtime"].timestamp(), facts.get("md5Hash")) for name, facts in sorted(names.items())}


def lookup(folder: Path) -> Callable[[str], Stored]:
    """Looks up files of a folder by their names in it, of a bucket in one listing; the function raises FileNotFoundError."""
    if not is_bucket(folder):

        def look(name: str) -> Stored:
            stat = (folder / name).stat()
            return Stored(stat.st_size, stat.st_mtime, None)

        return look
    listed = files(folder)

    def find(name: str) -> Stored:
        if name not in listed:
            raise FileNotFoundError(name)
        return listed[name]

    return find


def md5(path: Path) -> str:
    """The MD5 of a file's bytes in base64, as Google Cloud Storage has it."""
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()


def rename_folder(folder: Path, target: Path) -> None:
    """Gives a folder another name, which must be free. In a bucket: a process killed meanwhile leaves all of it at least once."""
    if not is_bucket(folder):
        folder.rename(target)
        return
    old, new = ([os.fspath(f / name) for name in files(folder)] for f in (folder, target))
    _store().copy(old, new)
    _store().rm(old)


def delete_folder(folder: Path) -> None:
    """Deletes a folder that nothing depends on."""
    if not is_bucket(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif names := [os.fspath(folder / name) for name in files(folder)]:
        _store().rm(names)


def delete_sealed(folder: Path, seal: str) -> None:
    """Deletes a folder so that a process killed meanwhile leaves nothing that looks damaged, and `finish_deletions` ends it."""
    if not is_bucket(folder):
        renamed = folder.with_name(f"{folder.name}.{DELETING}")
        shutil.rmtree(folder.rename(renamed))
        return
    write_whole(folder / DELETING, b"")
    (folder / seal).unlink()
    _delete_marked(folder)


def finish_deletions(parent: Path) -> None:
    """Deletes what `delete_sealed` began to delete in a folder."""
    if not is_bucket(parent):
        for leftover in parent.glob(f"*.{DELETING}"):
            shutil.rmtree(leftover)
        return
    for mark in parent.glob(f"*/{DELETING}"):
        _delete_marked(mark.parent)


def _delete_marked(folder: Path) -> None:
    if names := [os.fspath(folder / name) for name in files(folder) if name != DELETING]:
        _store().rm(names)
    (folder / DELETING).unlink()


@functools.cache
def _list_anew() -> None:
    """Other processes write to the same bucket, so no listing may be remembered, neither here nor in the path layer's own file system."""
    import fsspec

    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


@functools.cache
def _store() -> Any:
    """The file system that the path layer stands on, for what paths have no word for."""
    import fsspec

    _list_anew()
    return fsspec.filesystem("gs")


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="vimlab-")
