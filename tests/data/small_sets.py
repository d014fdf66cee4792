"""Twelve records that every format of the tests holds, and what writes them."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

from vimlab.data.base import SourceInfo

CLASSES = ("ant", "bee", "cat")
COUNT = 12


class Memory:
    """A source over a list of records."""

    def __init__(self, records, name="memory", class_names=None, fingerprint="0"):
        self.records = records
        self.info = SourceInfo(name, len(records), class_names, any("caption" in r for r in records), fingerprint)

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def picture(i, height=20, width=24):
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)


def png(i):
    out = io.BytesIO()
    Image.fromarray(picture(i)).save(out, "PNG")
    return out.getvalue()


def plain(count=COUNT):
    """A source whose image i is all of red i (under 256), which tells which record was used."""
    images = [np.full((16, 16, 3), (i, 0, 7), np.uint8) for i in range(count)]
    return Memory([{"key": f"k{i}", "image": image, "label": i % 3} for i, image in enumerate(images)])


def add_to_tar(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def make_tar(path, rows, as_json=False):
    """KEY.png, KEY.cls and KEY.txt, or KEY.png and KEY.json, for each of the rows."""
    with tarfile.open(path, "w") as archive:
        for i in rows:
            add_to_tar(archive, f"set/{i:04d}.png", png(i))
            if as_json:
                add_to_tar(archive, f"set/{i:04d}.json", json.dumps({"label": i % 3, "caption": f"caption {i}"}).encode())
            else:
                add_to_tar(archive, f"set/{i:04d}.cls", str(i % 3).encode())
                add_to_tar(archive, f"set/{i:04d}.txt", f"caption {i}\n".encode())
    return path
