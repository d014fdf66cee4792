"""The compiled resize is Pillow's, bit for bit; the crop is torchvision's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vimlab.scoring.bicubic import resize_and_crop


def by_pillow(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    wide, high = (int(size * side / min(height, width)) for side in (width, height))
    whole = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC)
    left, top = int(round((wide - size) / 2.0)), int(round((high - size) / 2.0))
    return np.asarray(whole.crop((left, top, left + size, top + size)))


def levels(images) -> np.ndarray:
    """Of 8 bits; compilers divide by 255 as they like, in the last bit."""
    found = np.rint(np.asarray(images) * 255)
    np.testing.assert_allclose(images, found / 255, atol=1e-7)
    return found.astype(np.uint8)


@pytest.mark.parametrize("shape", [(32, 32), (56, 56), (200, 143), (41, 57)])
def test_it_is_pillows(shape):
    rng = np.random.default_rng(sum(shape))
    noise = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)  # Overshoots on both sides, which both passes cut off.
    steps = (np.indices((*shape, 3)).sum(0) // 3 % 2 * 255).astype(np.uint8)
    images = np.stack([noise, steps])
    found = jax.jit(resize_and_crop, static_argnums=1)(images.astype(np.float32) / 255, 56)
    np.testing.assert_array_equal(levels(found), np.stack([by_pillow(x, 56) for x in images]))


def test_values_between_levels_are_rounded_and_cut_first():
    values = np.float32([[-70, 127.49, 127.51], [255, 300, 254.6]]) / 255
    found = resize_and_crop(jnp.broadcast_to(values[:, None, None], (2, 4, 4, 3)), 4)
    np.testing.assert_array_equal(levels(found)[:, 0, 0], [[0, 127, 128], [255, 255, 255]])
