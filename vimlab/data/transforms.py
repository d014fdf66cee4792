"""Crop policies: pure functions from (picture, size, random generator) to a square picture, and exact area resizing.

The two training policies are the listings of DALL-E's appendix A, which Parti (section 2) names as its own. Random
choices come from the generator alone. A picture too small for a policy's range is enlarged to `size`, no further.
"""

import dataclasses
from typing import ClassVar

import numpy as np
from PIL import Image

from vimlab.data.images import cv2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """For tokenizers: a random square of the shorter side, resized to U[low, high]·size, a random crop, a flip.

    Attributes:
      low, high: range of the resized side, in crops (9/8 and 12/8).
      flip: mirror half of the pictures.
    """

    NAME: ClassVar[str] = "tokenizer"
    low: float = 9 / 8
    high: float = 12 / 8
    flip: bool = True

    def __call__(self, image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """uint8[H,W,3] → uint8[size,size,3]."""
        short = min(image.shape[:2])
        image = random_crop(image, short, rng)
        image = random_crop(_random_resize(image, size, self.low, self.high, rng), size, rng)
        return image[:, ::-1] if self.flip and rng.random() < 0.5 else image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """For generators: a square near the middle, resized to U[1, high]·size, a random crop; no flip, for text in pictures.

    Attributes:
      high: upper end of the resized side, in crops (9/8).
    """

    NAME: ClassVar[str] = "generator"
    high: float = 9 / 8

    def __call__(self, image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
        """uint8[H,W,3] → uint8[size,size,3]."""
        short = min(image.shape[:2])
        corner = []
        for spare in (image.shape[0] - short, image.shape[1] - short):
            first = 3 * spare // 8
            corner.append(int(rng.integers(first, max(first + 1, 5 * spare // 8))))
        image = image[corner[0] : corner[0] + short, corner[1] : corner[1] + short]
        return random_crop(_random_resize(image, size, 1.0, self.high, rng), size, rng)


@dataclasses.dataclass(frozen=True)
class Center:
    """For evaluation: the middle square of the shorter side, resized. Nothing random."""

    NAME: ClassVar[str] = "center"

    def __call__(self, image: np.ndarray, size: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """uint8[H,W,3] → uint8[size,size,3]."""
        short = min(image.shape[:2])
        top, left = (image.shape[0] - short) // 2, (image.shape[1] - short) // 2
        return resize(image[top : top + short, left : left + short], size, size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize:
    """The whole picture resized to the square, for sets that are square already (CIFAR, emoji).

    Attributes:
      flip: mirror half of the pictures.
    """

    NAME: ClassVar[str] = "resize"
    flip: bool = False

    def __call__(self, image: np.ndarray, size: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """uint8[H,W,3] → uint8[size,size,3]."""
        image = resize(image, size, size)
        return image[:, ::-1] if self.flip and rng.random() < 0.5 else image


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square of `size` pixels at a random place."""
    top, left = (int(rng.integers(0, side - size + 1)) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def _random_resize(square: np.ndarray, size: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Resizes to a side drawn from [low, high]·size, but never beyond the square's own side, nor under `size`."""
    largest = max(size, len(square))
    least, most = (max(size, min(largest, round(share * size))) for share in (low, high))
    side = int(rng.integers(least, most + 1))
    return resize(square, side, side)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8[H,W,3] → uint8[height,width,3]: the mean over each pixel's area when shrinking, bicubic when enlarging."""
    if image.shape[:2] == (height, width):
        return image
    if height > image.shape[0] or width > image.shape[1]:
        return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BICUBIC))
    if cv2 is not None:
        return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    return np.rint(area_mean(area_mean(image, height, 0), width, 1)).astype(np.uint8)


def area_mean(image: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Mean over `size` equal stretches of one axis, pixels cut by an edge counting in part. Any real dtype → f64."""
    total = np.insert(np.cumsum(image, axis, dtype=np.float64), 0, 0, axis)
    edges = np.linspace(0, image.shape[axis], size + 1)
    whole = np.minimum(edges.astype(int), image.shape[axis] - 1)
    part = (edges - whole).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    integral = np.take(total, whole, axis) + part * np.take(image, whole, axis)
    return np.diff(integral, axis=axis) * (size / image.shape[axis])
