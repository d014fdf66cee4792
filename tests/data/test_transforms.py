"""Crops and area resizing against NumPy; ranges of the papers' listings by what comes out."""

import numpy as np
import pytest
from PIL import Image

from vimlab.data import transforms
from vimlab.data.transforms import Center, Generator, Resize, Tokenizer, area_mean, resize


@pytest.fixture(params=["pillow", "opencv"])
def resizer(request, monkeypatch):
    """With OpenCV and without it."""
    if request.param == "pillow":
        monkeypatch.setattr(transforms, "cv2", None)
    else:
        pytest.importorskip("cv2")


def positions(height, width):
    """A picture whose red is the column and whose green is the row, so that a crop tells where it came from."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_area_is_the_box_average_at_whole_factors(resizer, factor):
    picture = np.random.default_rng(factor).integers(0, 256, (12 * factor, 8 * factor, 3), np.uint8)
    want = picture.reshape(12, factor, 8, factor, 3).mean((1, 3))
    assert np.abs(resize(picture, 12, 8) - want).max() <= 0.5 + 1e-6


def test_area_counts_cut_pixels_in_part():
    """5 → 3: output 0 covers pixel 0 and two thirds of pixel 1; the matrix of overlaps is written out here."""
    overlaps = np.array([[1, 2 / 3, 0, 0, 0], [0, 1 / 3, 1, 1 / 3, 0], [0, 0, 0, 2 / 3, 1]]) / (5 / 3)
    values = np.random.default_rng(0).integers(0, 256, (5, 4))
    np.testing.assert_allclose(area_mean(values, 3, 0), overlaps @ values, atol=1e-9)
    np.testing.assert_allclose(area_mean(values.T, 3, 1), (overlaps @ values).T, atol=1e-9)


def test_area_agrees_between_implementations(monkeypatch):
    pytest.importorskip("cv2")
    picture = np.random.default_rng(1).integers(0, 256, (121, 97, 3), np.uint8)
    fast = resize(picture, 64, 50).astype(int)
    monkeypatch.setattr(transforms, "cv2", None)
    assert np.abs(fast - resize(picture, 64, 50)).max() <= 1


def test_shrinking_keeps_no_stripes(resizer):
    """A grid of one-pixel lines becomes grey; sampling without averaging would leave stripes."""
    lines = np.zeros((256, 256, 3), np.uint8)
    lines[:, ::2] = 255
    small = resize(lines, 64, 64).astype(int)
    assert np.abs(small - 127.5).max() <= 1


def test_enlarging_interpolates(resizer):
    """A ramp stays a ramp (nearest neighbour would make steps), and its ends stay within it."""
    ramp = np.repeat(np.arange(0, 128, 8, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, -1)
    large = resize(ramp, 64, 64)[32, :, 0].astype(int)
    assert (np.diff(large[8:-8]) == 2).all() and (np.diff(large) >= 0).all()


def test_tokenizer_crop_follows_the_listing():
    """Sides in [9/8, 12/8]·size of a random square, anywhere; half of them mirrored."""
    picture, size = positions(100, 200), 40
    spans, lefts, flips = [], [], 0
    for seed in range(300):
        crop = Tokenizer()(picture, size, np.random.default_rng(seed)).astype(int)
        assert crop.shape == (size, size, 3)
        flips += crop[0, 0, 0] > crop[0, -1, 0]
        spans.append(abs(crop[0, -1, 0] - crop[0, 0, 0]) / (size - 1))  # source pixels for each pixel of the crop
        lefts.append(min(crop[0, 0, 0], crop[0, -1, 0]))
    assert 100 / 60 - 0.05 <= min(spans) < 1.75 and 2.1 < max(spans) <= 100 / 45 + 0.05
    assert min(lefts) < 10 and max(lefts) > 110
    assert 110 < flips < 190


def test_generator_crop_follows_the_listing():
    """Squares near the middle (offset 3/8 to 5/8 of what is spare), sides in [1, 9/8]·size, never mirrored."""
    picture, size = positions(100, 200), 40
    spans, lefts = [], []
    for seed in range(200):
        crop = Generator()(picture, size, np.random.default_rng(seed)).astype(int)
        assert crop[0, 0, 0] < crop[0, -1, 0]
        spans.append((crop[0, -1, 0] - crop[0, 0, 0]) / (size - 1))
        lefts.append(crop[0, 0, 0])
    assert 100 / 45 - 0.05 <= min(spans) < 2.3 and max(spans) <= 100 / 40 + 0.05
    # the square starts at 37..61 of 100; the last crop moves up to (45 - 40) of 45 further
    assert 36 <= min(lefts) < 42 and 58 < max(lefts) <= 61 + 100 * 5 / 45 + 2


def test_center_is_the_middle_square(resizer):
    picture = positions(40, 100)
    want = picture[:, 30:70].reshape(20, 2, 20, 2, 3).mean((1, 3))
    assert np.abs(Center()(picture, 20) - want).max() <= 0.5 + 1e-6


def test_resize_takes_the_whole_picture_and_flips_half():
    picture = positions(32, 32)
    np.testing.assert_array_equal(Resize()(picture, 32), picture)
    results = [Resize(flip=True)(picture, 32, np.random.default_rng(seed)) for seed in range(100)]
    flipped = sum(np.array_equal(r, picture[:, ::-1]) for r in results)
    assert flipped + sum(np.array_equal(r, picture) for r in results) == 100 and 30 < flipped < 70


@pytest.mark.parametrize("policy", [Tokenizer(), Generator(), Center(), Resize()])
@pytest.mark.parametrize("shape", [(7, 31), (64, 64), (33, 32), (500, 3)])
def test_any_picture_becomes_the_square_and_nothing_else_is_random(policy, shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    kept = picture.copy()
    first, again = (policy(picture, 32, np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(picture, kept)


def test_small_pictures_are_enlarged_to_the_size_and_no_further():
    """A 20-pixel picture at size 40 under the tokenizer's crop is the bicubic enlargement itself."""
    picture = positions(20, 20)
    want = np.asarray(Image.fromarray(picture).resize((40, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Tokenizer(flip=False)(picture, 40, np.random.default_rng(0)), want)
