"""Checksums of a folder's files: a seal, written last, says that the folder is complete and what is in it.

CRC-32 with the size: every flipped byte and every truncation is found, and the standard library computes it faster than
disks deliver.
"""

import json
import os
import pathlib
import zlib
from typing import Any

SEAL = "checksums.json"


def write_file(path: pathlib.Path, data: bytes) -> None:
    """Writes a file beside its name, brings it to the disk, and renames it: a reader sees all of it or none."""
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def seal(folder: pathlib.Path, **facts: Any) -> None:
    """Writes the sizes and checksums of all files of `folder`, and the JSON values `facts`, as its seal."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    body = facts | {"files": {name: _checksum(folder / name) for name in names}}
    write_file(folder / SEAL, json.dumps(body | {"seal": _own(body)}, indent=1).encode())


def read_seal(folder: pathlib.Path) -> dict[str, Any] | None:
    """The seal's facts and `files` {name: [bytes, CRC-32]}; None where there is none or it is itself damaged."""
    try:
        body = json.loads((folder / SEAL).read_bytes())
        return body if body.pop("seal") == _own(body) else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with a sealed folder, as half a sentence; None where every file is as it was sealed."""
    if not (folder / SEAL).is_file():
        return "it is not committed: its save was interrupted or is still under way"
    body = read_seal(folder)
    if body is None:
        return f"{SEAL} is damaged"
    for name, (size, crc) in body["files"].items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if _checksum(folder / name) != [size, crc]:
                return f"the bytes of {name} have changed since they were saved (wrong checksum)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _checksum(path: pathlib.Path) -> list[int]:
    size = crc = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 22):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]


def _own(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
