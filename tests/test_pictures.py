"""Grids place every pixel where it belongs; PNG files read back as written, and are never half there."""

import numpy as np
import pytest
from PIL import Image

from vimlab import pictures


def test_to_uint8_rounds_to_nearest_and_clips():
    values = np.array([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 1.7], np.float32)
    np.testing.assert_array_equal(pictures.to_uint8(values), [0, 0, 0, 1, 255, 255, 255])


def test_grid_enlarges_by_whole_pixels_with_padding():
    rows = [np.random.default_rng(r).integers(0, 256, (3, 4, 5, 3), np.uint8) for r in range(2)]
    image = pictures.grid(rows, scale=3, pad=2)
    assert image.shape == (2 * (4 * 3 + 4), 3 * (5 * 3 + 4), 3)
    for r in range(2):
        for b in range(3):
            top, left = r * 16 + 2, b * 19 + 2
            np.testing.assert_array_equal(image[top : top + 12 : 3, left : left + 15 : 3], rows[r][b])
            np.testing.assert_array_equal(image[top + 2 : top + 12 : 3, left + 2 : left + 15 : 3], rows[r][b])
    assert (image[:2] == pictures.BACKGROUND).all()


def test_grid_takes_rows_of_other_lengths_and_captions():
    rows = [np.zeros((2, 96, 96, 3), np.uint8), np.zeros((1, 96, 96, 3), np.uint8)]
    image = pictures.grid(rows, labels=["input", "reconstruction"])
    assert image.shape == (2 * (100 + pictures.CAPTION_HEIGHT), 200, 3), "96 pixels are readable and stay as they are"
    caption = image[: pictures.CAPTION_HEIGHT]
    assert 0 < (caption < 128).all(-1).sum() < 300, "the caption is written in dark ink"
    assert (image[-98:-2, 102:] == pictures.BACKGROUND).all()


@pytest.mark.parametrize("width, factor", [(16, 6), (32, 3), (64, 2), (96, 1), (256, 1)])
def test_grid_brings_small_images_to_a_readable_size(width, factor):
    assert pictures.grid([np.zeros((1, 8, width, 3), np.uint8)], pad=0).shape == (8 * factor, width * factor, 3)


@pytest.mark.parametrize(
    "rows, labels", [([], None), ([np.zeros((1, 4, 4, 3), np.float32)], None), ([np.zeros((1, 4, 4, 3), np.uint8)], ["a", "b"])]
)
def test_grid_refuses_what_is_no_grid(rows, labels):
    with pytest.raises(ValueError, match="row"):
        pictures.grid(rows, labels=labels)


def test_png_round_trip_and_nothing_left_beside(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    pictures.save_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), image)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    pictures.write_whole(tmp_path / "a", b"old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        pictures.write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
