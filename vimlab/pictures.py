"""Pictures for people: grids of uint8 images with captions of rows or of images, and PNG files that are whole or absent."""

import io
import os
from collections.abc import Callable, Sequence

import numpy as np

from vimlab.paths import write_whole

CAPTION_HEIGHT = 16
CAPTION_LINES = 5
BACKGROUND = 255
INK = (70, 70, 70)
RIGHT, WRONG = (26, 127, 75), (179, 38, 30)
MARK_WIDTH = 14
GAP = 8
READABLE = 96


def to_uint8(images: np.ndarray) -> np.ndarray:
    """f32[..., 3] in [0, 1] → uint8[..., 3], rounded and clipped; NaN becomes black."""
    return np.round(np.clip(np.nan_to_num(np.asarray(images, np.float32)), 0, 1) * 255).astype(np.uint8)


def grid(
    rows: Sequence[np.ndarray], *, labels: Sequence[str] | None = None, scale: int | None = None, pad: int = 2
) -> np.ndarray:
    """Lays rows of images under one another, each under its caption.

    Args:
      rows: uint8[B, H, W, 3] each; the sizes may differ from row to row.
      labels: one caption a row; the empty one takes no room.
      scale: whole factor of nearest-neighbour enlargement; None brings images under 96 pixels to about that width.
      pad: pixels around each image.

    Returns:
      uint8[height, width, 3].

    Raises:
      ValueError: no rows, rows that are not images, or another number of labels than of rows.
    """
    if not rows or any(r.ndim != 4 or r.shape[-1] != 3 or r.dtype != np.uint8 for r in rows):
        raise ValueError(f"a grid needs rows of uint8[B,H,W,3], not {[(r.dtype.name, r.shape) for r in rows]}")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"{len(rows)} rows were given {len(labels)} labels")
    scale = scale or max(1, round(READABLE / max(r.shape[2] for r in rows)))
    strips = []
    for row, label in zip(rows, labels or [""] * len(rows), strict=True):
        strips += [_caption(label)] * bool(label) + [_strip(row, scale, pad)]
    width = max(s.shape[1] for s in strips)
    return np.concatenate([_widened(s, width) for s in strips])


def captioned(
    images: np.ndarray, captions: Sequence[str], *, columns: int = 4, beside: np.ndarray | None = None,
    marks: Sequence[bool] | None = None, scale: int | None = None, pad: int = 2,
) -> np.ndarray:  # fmt: skip
    """Lays images out row by row, each over its own caption, wrapped to the image's width.

    Args:
      images: uint8[B, H, W, 3].
      captions: one an image; after CAPTION_LINES lines the rest of one is cut.
      columns: captions in a row.
      beside: uint8[B, H, W, 3], each shown to the right of its image over the same caption.
      marks: a tick or a cross before each caption.
      scale, pad: as `grid` takes them.

    Returns:
      uint8[height, width, 3].

    Raises:
      ValueError: no images, or another number of captions, of images beside or of marks.
    """
    if len({len(images), *(len(x) for x in (captions, beside, marks) if x is not None)}) != 1 or not len(images):
        raise ValueError("a captioned grid needs images, and as many captions, images beside them and marks")
    scale = scale or max(1, round(READABLE / images.shape[2]))
    groups = [images[i : i + 1] if beside is None else np.stack([images[i], beside[i]]) for i in range(len(images))]
    strips = [_strip(group, scale, pad) for group in groups]
    width = strips[0].shape[1]
    rows = []
    for start in range(0, len(strips), columns):
        row = slice(start, start + columns)
        texts = _texts(captions[row], None if marks is None else marks[row], width)
        tiles = [_widened(np.concatenate([s, t]), width + GAP) for s, t in zip(strips[row], texts, strict=True)]
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate([_widened(row, rows[0].shape[1]) for row in rows])


def _widened(image: np.ndarray, width: int) -> np.ndarray:
    return np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=BACKGROUND)


def _texts(captions: Sequence[str], marks: Sequence[bool] | None, width: int) -> list[np.ndarray]:
    """The captions of one row, each wrapped to `width` pixels and all of one height."""
    from PIL import Image, ImageDraw, ImageFont

    font, left = ImageFont.load_default(11), 3 + (0 if marks is None else MARK_WIDTH)
    wrapped = [_wrap(caption, lambda text: font.getlength(text) <= width - left) for caption in captions]
    height, boxes = max(map(len, wrapped)) * CAPTION_HEIGHT + GAP, []
    for i, lines in enumerate(wrapped):
        canvas = Image.new("RGB", (width, height), (BACKGROUND,) * 3)
        pen = ImageDraw.Draw(canvas)
        for n, line in enumerate(lines):
            pen.text((left, n * CAPTION_HEIGHT + 2), line, fill=INK, font=font)
        if marks is not None and marks[i]:
            pen.line([(4, 8), (7, 11), (13, 4)], fill=RIGHT, width=2)
        elif marks is not None:
            pen.line([(4, 4), (12, 12)], fill=WRONG, width=2)
            pen.line([(4, 12), (12, 4)], fill=WRONG, width=2)
        boxes.append(np.asarray(canvas))
    return boxes


def _wrap(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Lines of whole words that fit, of a word's letters where it is longer; at most CAPTION_LINES, the last then ending in "…"."""
    lines: list[str] = []
    for word in text.split():
        if lines and fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and not fits(lines[-1] + letter):
                lines.append("")
            lines[-1] += letter
    if len(lines) <= CAPTION_LINES:
        return lines
    last = lines[CAPTION_LINES - 1]
    while last and not fits(f"{last}…"):
        last = last[:-1]
    return [*lines[: CAPTION_LINES - 1], f"{last}…"]


def _strip(row: np.ndarray, scale: int, pad: int) -> np.ndarray:
    large = row.repeat(scale, axis=1).repeat(scale, axis=2)
    return np.concatenate(np.pad(large, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=BACKGROUND), axis=1)


def _caption(label: str) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(11)
    canvas = Image.new("RGB", (int(font.getlength(label)) + 8, CAPTION_HEIGHT), (BACKGROUND,) * 3)
    ImageDraw.Draw(canvas).text((3, 2), label, fill=INK, font=font)
    return np.asarray(canvas)


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8[H, W, 3] as a PNG file, making its folder where needed."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())
