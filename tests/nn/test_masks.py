"""Masks against brute force: the rule position by position, convolution-shaped windows cell by cell on the grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimlab.config import ConfigError
from vimlab.nn.masks import Mask, causal, conv_offsets, full

T, F = True, False
LAYOUTS = {
    "causal": causal(6),
    "full": full(5),
    "one": full(1),
    "prefix_lm": Mask((0, 0, 0, 1, 1, 1, 1), (T, T, T, F, F, F, F)),
    "next_scale": Mask((0, 1, 1, 1, 1, 2, 2, 2), (T,) * 8),
    "mixed_flags": Mask((1, 0, 1, 1, 0), (T, F, F, T, T)),
    "conv": Mask((0,) * 12, (F,) * 12, conv_offsets(4, 3)),
    "conv_after_text": Mask((0,) * 3 + (1,) * 12, (T,) * 3 + (F,) * 12, conv_offsets(4, 3), prefix=3),
    "conv_after_causal_text": Mask((0,) * 9, (F,) * 9, (0, 2, 4), prefix=2),
}


def conv(height, width, kernel):
    return Mask((0,) * (height * width), (F,) * (height * width), conv_offsets(width, kernel))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_rule(name):
    mask = LAYOUTS[name]
    allowed = mask.allowed()
    assert allowed.dtype == bool and allowed.shape == (mask.length, mask.length)
    for i in range(mask.length):
        for j in range(mask.length):
            sees = mask.block[j] < mask.block[i] or (mask.block[j] == mask.block[i] and (mask.intra[i] or j <= i))
            if mask.offsets is not None and min(i, j) >= mask.prefix:
                sees = sees and i - j in mask.offsets
            assert allowed[i, j] == sees, (i, j)
    assert allowed.diagonal().all(), "a position that sees nothing"
    assert mask.is_causal == (name in ("causal", "one")) and mask.is_full == (name in ("full", "one"))


def test_causal_by_blocks_is_causal():
    assert Mask((3, 5, 6, 9), (T, F, T, F)).is_causal and not Mask((0, 0, 1), (T, T, T)).is_causal


def test_the_window_of_dall_e():
    offsets = conv_offsets(32, 11)
    assert len(offsets) == len(set(offsets)) == 61 and offsets == tuple(sorted(offsets))
    assert offsets[0] == 0 and offsets[-1] == conv(4, 32, 11).window == 165
    assert conv_offsets(8, 3) == (0, 1, 7, 8, 9) and conv_offsets(8, 1) == (0,)


@pytest.mark.parametrize("height, width, kernel", [(9, 9, 5), (5, 16, 3), (4, 5, 3), (3, 32, 11)])
def test_conv_mask_is_a_window_on_the_grid(height, width, kernel):
    """In columns a half window from the sides: exactly the cells of the window above, or before it in the row."""
    allowed, half = conv(height, width, kernel).allowed(), kernel // 2
    for i in range(height * width):
        (r, c), seen = divmod(i, width), np.flatnonzero(allowed[i])
        if half <= c < width - half:
            window = [(y, x) for y in range(height) for x in range(width) if abs(y - r) <= half and abs(x - c) <= half]
            assert [divmod(int(j), width) for j in seen] == [cell for cell in window if cell <= (r, c)]


@pytest.mark.parametrize("height, width, kernel", [(6, 6, 5), (4, 4, 3), (5, 3, 5), (7, 2, 7), (6, 1, 5)])
def test_conv_mask_wraps_in_the_raster(height, width, kernel):
    """Everywhere, on grids narrower than the window too: a cell beyond a side is the raster's next or previous row's."""
    allowed, half = conv(height, width, kernel).allowed(), kernel // 2
    for i in range(height * width):
        r, c = divmod(i, width)
        row = {(0, dx) for dx in range(-half, 1)}
        above = {(dy, dx) for dy in range(-half, 0) for dx in range(-half, half + 1)}
        cells = {(r + dy + (c + dx) // width, (c + dx) % width) for dy, dx in row | above}
        expected = {y * width + x for y, x in cells if 0 <= y < height and y * width + x <= i}
        assert set(np.flatnonzero(allowed[i])) == expected, (r, c)


def test_wrap_around_by_hand():
    allowed = conv(3, 4, 3).allowed()
    # The last of row 1 sees row 0's last two and, to the right of them, the first of its own row.
    assert list(np.flatnonzero(allowed[7])) == [2, 3, 4, 6, 7]
    # The first of row 2: its predecessor is the last of row 1; to the left of the one above lies the last of row 0.
    assert list(np.flatnonzero(allowed[8])) == [3, 4, 5, 7, 8]
    assert conv_offsets(1, 5) == (0, 1, 2, 3, 4) and conv_offsets(2, 3) == (0, 1, 2, 3)


def test_window():
    assert causal(7).window == 6 and conv(4, 4, 3).window == 5


def test_equal_masks_are_one_static_argument():
    traces = []
    f = jax.jit(lambda x, mask: traces.append(mask) or x @ mask.allowed(), static_argnames="mask")
    for _ in range(2):
        f(jnp.ones(12), mask=conv(3, 4, 3))
    f(jnp.ones(12), mask=causal(12))
    assert len(traces) == 2
    assert conv(3, 4, 3).allowed() is conv(3, 4, 3).allowed()
    with pytest.raises(ValueError, match="read-only"):
        causal(3).allowed()[0, 2] = True


@pytest.mark.parametrize("width, kernel, message", [(8, 4, "an odd kernel, which has a centre, not 4"), (8, 0, "not 0"),
                                                    (8, -3, "not -3"), (0, 3, "at least one column wide, not 0")])
def test_impossible_windows(width, kernel, message):
    with pytest.raises(ConfigError, match=message):
        conv_offsets(width, kernel)


@pytest.mark.parametrize("args, message", [
    (((), ()), "not 0 and 0"),
    (((0, 0), (F,)), "not 2 and 1"),
    (((0, 0), (F, F), (1,)), "lack 0"),
    (((0, 0), (F, F), (0,), 3), "a prefix of 3 is not within the mask's 2 positions"),
])
def test_impossible_masks(args, message):
    with pytest.raises(ValueError, match=message):
        Mask(*args)
