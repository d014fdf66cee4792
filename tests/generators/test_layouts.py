"""Layouts: the order of tokens, and DALL-E's window on the grids that generators have, by brute force with its wrap-around."""

import numpy as np
import pytest

from vimlab.generators.layouts import Raster
from vimlab.tokens import TokenSpec


def brute_force(height, width, kernel):
    """Cell by cell: position 0 is seen by all; from position 1 on, the window's cells that are not ahead, sideways into the next row."""
    n, half = height * width, kernel // 2
    allowed = np.zeros((n, n), bool)
    allowed[:, 0] = True
    for i in range(1, n):
        row, column = divmod(i, width)
        for dy in range(half + 1):
            for dx in range(-half, half + 1):
                j = (row - dy) * width + column + dx
                if 1 <= j <= i:
                    allowed[i, j] = True
    return allowed


@pytest.mark.parametrize("grid, kernel", [((32, 32), 11), ((8, 8), 11), ((8, 8), 5), ((4, 6), 3), ((3, 2), 7), ((16, 1), 3)], ids=str)
def test_convolution_shaped_attention_is_a_window_with_wrap_around(grid, kernel):
    mask = Raster(TokenSpec(grid, 16)).conv(kernel)
    np.testing.assert_array_equal(mask.allowed(), brute_force(*grid, kernel))
    assert mask.prefix == Raster.prefix == 1 and mask.allowed()[:, 0].all()


def test_the_window_of_dall_e_on_32x32():
    """61 positions at 61 distances, the furthest 165 back; the prefix beside them."""
    mask = Raster(TokenSpec((32, 32), 8192)).conv(11)
    assert len(mask.offsets) == 61 and max(mask.offsets) == mask.window == 165
    allowed = mask.allowed()
    seen = allowed[:, 1:].sum(1)
    assert seen.max() == 61 and (seen[200:] == 61).all()
    rows, columns = np.nonzero(np.tril(allowed)[:, 1:])
    assert (rows - (columns + 1)).max() == 165
    # In the last column, the window's right half goes on at the left, one row further down.
    i = 10 * 32 + 31
    left = [int(j) for j in np.flatnonzero(allowed[i]) if j % 32 < 16 and j]
    assert left == [row * 32 + column for row in range(6, 11) for column in range(5)]


def test_dense_is_causal():
    for grid in ((1, 1), (3, 5), (8, 8)):
        mask = Raster(TokenSpec(grid, 16)).dense()
        assert mask.is_causal and mask.length == grid[0] * grid[1]


def test_raster_order():
    rows, columns = Raster(TokenSpec((2, 3), 16)).coordinates
    assert rows.tolist() == [0, 0, 0, 1, 1, 1] and columns.tolist() == [0, 1, 2, 0, 1, 2]
    assert rows.dtype == columns.dtype == np.int32


def test_equal_layouts_are_equal():
    """A generator is a static argument of jitted functions: what is equal must not be compiled again."""
    a, b = (Raster(TokenSpec((4, 4), 16)) for _ in range(2))
    assert a == b and hash(a) == hash(b) and a.conv(3) == b.conv(3) and a != Raster(TokenSpec((4, 4), 17))
