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


def ink(image: np.ndarray) -> np.ndarray:
    """Rows and columns of an image's dark pixels, i64[2,…]."""
    return np.stack(np.nonzero((image < 128).all(-1)))


def white(count: int) -> np.ndarray:
    return np.full((count, 96, 96, 3), 255, np.uint8)


def test_captioned_places_each_image_over_its_own_caption():
    images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
    image = pictures.captioned(images, ["", "two", ""], columns=2)
    tile, height = 100 + pictures.GAP, 100 + pictures.CAPTION_HEIGHT + pictures.GAP
    assert image.shape == (height + 100 + pictures.GAP, 2 * tile, 3), "a row without captions takes no room for them"
    for i, (top, left) in enumerate([(2, 2), (2, tile + 2), (height + 2, 2)]):
        np.testing.assert_array_equal(image[top : top + 96, left : left + 96], images[i])
    assert not ink(image[100:height, :tile]).size and ink(image[100:height, tile:]).size


def test_captioned_pairs_share_a_caption():
    images, beside = np.zeros((2, 32, 32, 3), np.uint8), np.full((2, 32, 32, 3), 9, np.uint8)
    image = pictures.captioned(images, ["a", "b"], beside=beside)
    width = 2 * 100 + pictures.GAP
    assert image.shape[1] == 2 * width, "32 pixels are enlarged to 96, and a pair has a gap to the next"
    for left in (0, width):
        assert (image[2:98, left + 2 : left + 98] == 0).all() and (image[2:98, left + 102 : left + 198] == 9).all()


def test_long_captions_are_wrapped_and_cut():
    heights = {}
    for text in ("short", "word " * 60, "w" * 300):
        image = pictures.captioned(white(1), [text])
        heights[text[:5]] = (image.shape[0] - 100 - pictures.GAP) / pictures.CAPTION_HEIGHT
        assert ink(image[-pictures.GAP - pictures.CAPTION_HEIGHT :]).size, "the last line is written on"
    assert heights == {"short": 1, "word ": 5, "wwwww": 5}
    lines = pictures._wrap("ab " + "cdefghij" * 2 + " k", lambda text: len(text) <= 6)
    assert lines == ["ab", "cdefgh", "ijcdef", "ghij k"], "whole words, or the pieces of one that is too long"
    short = lambda text: len(text) <= 5
    assert pictures._wrap("one two three four five six", short) == ["one", "two", "three", "four", "five…"]
    assert pictures._wrap("a two three four fives six", short) == ["a two", "three", "four", "fives", "six"]
    assert pictures._wrap("one two three four fives six", short)[-1] == "five…"


def test_marks_are_ticks_and_crosses():
    plain = pictures.captioned(white(2), ["same", "same"])
    image = pictures.captioned(white(2), ["same", "same"], marks=[True, False])
    tile = 100 + pictures.GAP
    first, second = image[100:, :tile], image[100:, tile:]
    colours = [{tuple(c) for c in part.reshape(-1, 3).tolist()} for part in (first, second)]
    assert [pictures.RIGHT in c for c in colours] == [True, False] and [pictures.WRONG in c for c in colours] == [False, True]
    shifted = first[:, pictures.MARK_WIDTH :]
    np.testing.assert_array_equal(shifted, plain[100:, : tile - pictures.MARK_WIDTH])
    (tick, cross) = ((part[:, : pictures.MARK_WIDTH] < 250).any(-1) for part in (first, second))
    assert (tick != cross).any(), "the shapes differ, not the colours alone"


@pytest.mark.parametrize(
    "count, captions, more", [(0, [], {}), (2, ["a"], {}), (1, ["a"], dict(beside=white(2))), (1, ["a"], dict(marks=[True, False]))]
)
def test_captioned_refuses_what_does_not_match(count, captions, more):
    with pytest.raises(ValueError, match="as many captions"):
        pictures.captioned(white(count), captions, **more)
