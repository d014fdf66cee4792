"""Checksums of a folder's files: a seal, written last, says that the folder is complete and what is in it.

CRC-32 with the size: every flipped byte and every truncation is found, and the standard library computes it faster than
disks deliver. A bucket has the MD5 of what it stores, so a folder there is sealed, and looked through, without reading it. (Its
CRC-32C is of no use: files of Orbax's that end in their own CRC-32C all have the same.) A folder that was copied from one to
the other keeps its seal, and is then read.
"""

import json
import os
import zlib
from typing import Any

from vimlab import paths

SEAL = "checksums.json"


def write_file(path: paths.Path, data: bytes) -> None:
    """Writes a file beside its name, brings it to the disk, and renames it: a reader sees all of it or none."""
    if paths.is_bucket(path):
        paths.write_whole(path, data)
        return
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def seal(folder: paths.Path, **facts: Any) -> None:
    """Writes the sizes and checksums of all files of `folder`, and the JSON values `facts`, as its seal."""
    found = paths.files(folder).items()
    body = facts | {"files": {name: [stored.size, stored.md5] if stored.md5 else _checksum(folder / name) for name, stored in found}}
    write_file(folder / SEAL, json.dumps(body | {"seal": _own(body)}, indent=1).encode())


def read_seal(folder: paths.Path) -> dict[str, Any] | None:
    """The seal's facts and `files` {name: [bytes, CRC-32 or, of a bucket, MD5]}; None where there is none or it is itself damaged."""
    try:
        body = json.loads((folder / SEAL).read_bytes())
        return body if body.pop("seal") == _own(body) else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def damage(folder: paths.Path) -> str | None:
    """What is wrong with a sealed folder, as half a sentence; None where every file is as it was sealed."""
    if not (folder / SEAL).is_file():
        return "it is not committed: its save was interrupted or is still under way"
    body = read_seal(folder)
    if body is None:
        return f"{SEAL} is damaged"
    look = paths.lookup(folder)
    for name, (size, checksum) in body["files"].items():
        try:
            found = look(name)
            if found.size != size:
                return f"{name} has {found.size} bytes instead of {size}"
            there = (found.md5 or paths.md5(folder / name)) if isinstance(checksum, str) else _checksum(folder / name)[1]
            if there != checksum:
                return f"the bytes of {name} have changed since they were saved (wrong checksum)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _checksum(path: paths.Path) -> list[int]:
    size = crc = 0
    with path.open("rb") if paths.is_bucket(path) else open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _own(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
