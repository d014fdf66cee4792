"""Pillow's bicubic resize in compiled code, equal to it bit for bit, and the resize and crop of CLIP that rest on it.

Pillow's resize (libImaging/Resample.c) is a pass over rows and one over columns. Each weighs the pixels under Keys' cubic with
a = -0.5, widened by the scale when it shrinks, in integers of 22 fractional bits, and rounds to 8 bits. So do these.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

BITS = 22


def resize_and_crop(images: jax.Array, size: int) -> jax.Array:
    """The shorter side brought to `size`, then the middle square, as CLIP prepares its images: torchvision's Resize and CenterCrop.

    Args:
      images: f32[B,H,W,3] in [0,1]; rounded to 8 bits first, for that is what the network was trained to see.

    Returns:
      f32[B,size,size,3] in [0,1], multiples of 1/255.
    """
    levels = jnp.floor(jnp.clip(images.astype(jnp.float32), 0, 1) * 255 + 0.5).astype(jnp.int32)
    short = min(images.shape[1:3])
    height, width = (size * side // short for side in images.shape[1:3])
    levels = _resize_axis(_resize_axis(levels, width, 2), height, 1)
    top, left = (round((side - size) / 2) for side in (height, width))
    return levels[:, top : top + size, left : left + size].astype(jnp.float32) / 255


def _resize_axis(levels: jax.Array, size: int, axis: int) -> jax.Array:
    """One pass over i32 levels from 0 to 255; a tap a term, so that the sums stay in 32 bits."""
    if levels.shape[axis] == size:
        return levels
    places, taps = _taps(levels.shape[axis], size)
    shape = [-1 if a == axis else 1 for a in range(levels.ndim)]
    total = jnp.int32(1 << (BITS - 1))
    for place, tap in zip(places, taps, strict=True):
        total += jnp.take(levels, place, axis) * tap.reshape(shape)
    return jnp.clip(total >> BITS, 0, 255)


@functools.cache
def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `new` pixels the K old ones that it is made of and their weights, i32[K,new] each; weights times 2^22."""
    scale = old / new
    stretch = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    first = np.maximum((centres - 2 * stretch + 0.5).astype(int), 0)
    last = np.minimum((centres + 2 * stretch + 0.5).astype(int), old)
    places = first + np.arange(2 * math.ceil(2 * stretch) + 1)[:, None]
    weights = np.where(places < last, _cubic((places - centres + 0.5) / stretch), 0)
    weights /= weights.sum(0)
    fixed = np.trunc(weights * (1 << BITS) + np.copysign(0.5, weights)).astype(np.int32)
    return np.minimum(places, old - 1).astype(np.int32), fixed


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0))
