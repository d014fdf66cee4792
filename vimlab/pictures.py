"""Pictures for people: grids of uint8 images with captions, and PNG files that are whole or absent."""

import io
import os
import pathlib
from collections.abc import Sequence

import numpy as np

CAPTION_HEIGHT = 16
BACKGROUND = 255
INK = (70, 70, 70)
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
    return np.concatenate([np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=BACKGROUND) for s in strips])


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


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file beside its place and renames it there, so that no reader meets half of it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
