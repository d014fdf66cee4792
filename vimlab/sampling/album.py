"""A folder of drawn images: a PNG each, a grid of them all, and last the record that says how they came about."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from vimlab import pictures
from vimlab.config import ConfigError, diff
from vimlab.paths import Path
from vimlab.sampling.rerank import best
from vimlab.sampling.sampler import Drawn

RECORD, GRID = "samples.json", "grid.png"
SHOWN, COLUMNS = 64, 8  # Images in the grid at most, and in a row of it.


@dataclasses.dataclass(frozen=True)
class Album:
    """The images of one request, `num` for each of P prompts, with consecutive seeds.

    Attributes:
      folder: where they go; it is made where it is absent.
      request: all that the images depend on, as JSON values.
      captions: of the P prompts, under their images in the grid; the seed stands for an empty one.
      num: images drawn for each prompt.
      seed: of the first image.
    """

    folder: Path
    request: dict[str, Any]
    captions: Sequence[str]
    num: int
    seed: int

    @functools.cached_property
    def files(self) -> list[str]:
        """Names of the P·num images, by prompt and seed."""
        return [f"p{i // self.num:03d}_s{self.seed + i:08d}.png" for i in range(len(self.captions) * self.num)]

    def claim(self) -> None:
        """Raises ConfigError where the folder holds images of another request, or files of our names that nothing explains."""
        claim(self.folder, RECORD, self.request, (*self.files, GRID))

    def write(self, drawn: Drawn, kept: np.ndarray, scores: np.ndarray | None, made: dict[str, Any]) -> None:
        """Writes the images.

        Args:
          drawn: all P·num of them.
          kept: i64[P,K], which are written.
          scores: f32[P·num], where they were ranked by one; higher is better.
          made: versions and the like, for the record.
        """
        for i in kept.flat:
            pictures.save_png(self.folder / self.files[i], drawn.images[i])
        pictures.save_png(self.folder / GRID, self._grid(drawn.images, kept))
        head = json.dumps({"request": self.request, "made": made, "calls": drawn.calls}, indent=1)
        images = ",\n  ".join(json.dumps(entry) for entry in self._entries(drawn, kept, scores))
        pictures.write_whole(self.folder / RECORD, f'{head[:-2]},\n "images": [\n  {images}\n ]\n}}\n'.encode())

    def _grid(self, images: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The first images, a row for each prompt where that is neither short nor long."""
        shown, row = kept.ravel()[:SHOWN], kept.shape[1]
        columns = row if 1 < row <= COLUMNS else min(COLUMNS, len(shown))
        captions = [self.captions[i // self.num] or f"seed {self.seed + i}" for i in shown]
        return pictures.captioned(images[shown], captions, columns=columns)

    def _entries(self, drawn: Drawn, kept: np.ndarray, scores: np.ndarray | None) -> list[dict[str, Any]]:
        """What the record says of each image; those not written have no file."""
        files = {i: self.files[i] for i in kept.flat}
        entries = [{"file": files.get(i), "prompt": i // self.num, "seed": self.seed + i} for i in range(len(self.files))]
        if scores is not None:
            ranks = np.argsort(best(scores, self.num, self.num), axis=None) % self.num + 1
            entries = [e | {"rank": int(r), "score": float(s)} for e, r, s in zip(entries, ranks, scores, strict=True)]
        # Another machine may show in later decimals.
        sums = [round(float(x), 4) for x in drawn.log_probs.sum(1, dtype=np.float64)]
        return [e | {"log_prob": s, "ids": ids.tolist()} for e, s, ids in zip(entries, sums, drawn.ids, strict=True)]


def claim(folder: Path, record: str, request: dict[str, Any], files: Sequence[str]) -> None:
    """Raises ConfigError where a folder may not hold the `files` of a request, for its `record` names another one, or is missing."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder} is not a folder; choose another")
    if (folder / record).is_file():
        try:
            there = json.loads((folder / record).read_bytes())["request"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{folder / record} is not one of ours; choose another --out") from None
        for key, values in diff(there, request).items():
            old, new = (text if len(text) <= 60 else f"{text[:59]}…" for text in map(repr, values))
            raise ConfigError(f"--out {folder} holds images of another request ({key} {old}, not {new}); choose another, or remove it")
    elif strange := [name for name in files if (folder / name).exists()]:
        raise ConfigError(f"--out {folder} holds {strange[0]}, but no {record} that explains it; choose another, or remove it")
