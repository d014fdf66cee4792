"""Where the pictures of a list of prompts lie: for people to look at, or as the programs of GenEval and DPG-Bench look for them.

  gallery  DIR/pictures/00012_00.png: of the prompt in row 12 of its file, its first picture
  flat     DIR/00012_00.png
  geneval  DIR/00012/metadata.jsonl, the prompt's line of evaluation_metadata.jsonl, and DIR/00012/samples/0000.png, …
           (github.com/djghosh13/geneval, README)
  dpg      DIR/images/NAME.png: one picture or four in a square, without a gap, of the prompt of that name; nothing else lies
           there, for all that does is judged (github.com/TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py)
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from vimlab import pictures
from vimlab.config import ConfigError
from vimlab.data.prompts import Prompt
from vimlab.paths import Path

LAYOUTS = ("gallery", "geneval", "dpg", "flat")
RECORD = "prompts.json"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A prompt and its pictures.

    Attributes:
      row: of its file, from 0.
      files: of the pictures, below the folder; several pictures share one where that is square.
      seeds: of the pictures.
      read: what the model reads of the prompt; "" where it is the whole.
    """

    row: int
    prompt: Prompt
    files: tuple[str, ...]
    seeds: tuple[int, ...]
    read: str = ""


def check_layout(layout: str, prompts: Sequence[Prompt], num: int) -> None:
    """Raises ConfigError where the layout's judge could not make sense of such prompts, or of `num` pictures of each."""
    if layout == "geneval" and not all(p.metadata for p in prompts):
        raise ConfigError("--layout geneval needs the 'tag' and 'include' that GenEval judges by; give its evaluation_metadata.jsonl as --file")
    if layout == "dpg" and not all(p.name for p in prompts):
        raise ConfigError("--layout dpg names pictures after prompts; give DPG-Bench's folder of .txt files, or its .csv, as --file")
    if layout == "dpg" and num not in (1, 4):
        raise ConfigError(f"--num is {num}, but --layout dpg takes 1, or 4 to a picture")


def files_of(layout: str, row: int, prompt: Prompt, num: int) -> tuple[str, ...]:
    """The names of a prompt's files: one for each of `num` pictures, or one for all."""
    match layout:
        case "geneval":
            return tuple(f"{row:05d}/samples/{n:04d}.png" for n in range(num))
        case "dpg":
            return (f"images/{prompt.name}.png",)
    return tuple(f"{'pictures/' if layout == 'gallery' else ''}{row:05d}_{n:02d}.png" for n in range(num))


def write_texts(folder: Path, layout: str, entries: Sequence[Entry]) -> None:
    """What a layout has beside its pictures."""
    if layout == "geneval":
        for entry in entries:
            pictures.write_whole(folder / f"{entry.row:05d}" / "metadata.jsonl", entry.prompt.metadata.encode())


def square(images: np.ndarray) -> np.ndarray:
    """uint8[K,H,W,3] row by row in the smallest square that holds them, the rest of it white: uint8[S·H,S·W,3]."""
    side = math.isqrt(len(images) - 1) + 1
    white = np.full((side * side - len(images), *images.shape[1:]), pictures.BACKGROUND, np.uint8)
    tiles = np.concatenate([images, white]).reshape(side, side, *images.shape[1:])
    return tiles.swapaxes(1, 2).reshape(side * images.shape[1], side * images.shape[2], 3)
