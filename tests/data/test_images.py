"""Decoding: each odd kind of file becomes the upright RGB picture a person would see; damaged ones are named."""

import io

import numpy as np
import pytest
from PIL import Image

from vimlab.data import images
from vimlab.data.base import DecodeError
from vimlab.data.images import decode, encode

RNG = np.random.default_rng(0)


def smooth(height=24, width=40):
    """A picture without fine detail, so that JPEG keeps it."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([40 + 4 * x, 200 - 5 * y, 60 + 2 * (x + y)], -1).astype(np.uint8)


def stored(image, form, **options):
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, form, **options)
    return out.getvalue()


@pytest.fixture(params=["pillow", "opencv"])
def decoder(request, monkeypatch):
    """Each decoder in turn."""
    if request.param == "pillow":
        monkeypatch.setattr(images, "cv2", None)
    else:
        pytest.importorskip("cv2")


# EXIF orientation → what undoes it, in NumPy: the stored picture is the upright one transformed by the inverse.
UPRIGHT = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
           5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
           8: lambda a: np.rot90(a)}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(decoder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode(stored(smooth(), "JPEG", quality=95, subsampling=0, exif=exif))
    want = UPRIGHT[orientation](smooth())
    assert got.shape == want.shape and np.abs(got.astype(int) - want).max() <= 6


def test_lossless_forms_are_exact(decoder):
    picture = RNG.integers(0, 256, (13, 17, 3), np.uint8)
    for form in ("png", "webp"):
        np.testing.assert_array_equal(decode(encode(picture, form)), picture)
    assert np.abs(decode(encode(smooth(), "jpeg")).astype(int) - smooth()).max() <= 4


def test_grey_becomes_three_equal_channels(decoder):
    grey = smooth()[..., 0]
    for data in (stored(grey, "PNG"), stored(grey, "JPEG", quality=98)):
        got = decode(data)
        assert got.shape == (24, 40, 3) and (got == got[..., :1]).all() and np.abs(got[..., 0].astype(int) - grey).max() <= 3


def test_alpha_is_composited_on_white(decoder):
    picture, alpha = smooth(), np.tile(np.linspace(0, 255, 40).astype(np.uint8), (24, 1))
    want = np.rint((picture.astype(float) * alpha[..., None] + 255.0 * (255 - alpha[..., None])) / 255)
    got = decode(stored(np.dstack([picture, alpha]), "PNG"))
    assert np.abs(got - want).max() <= 1
    grey = decode(stored(Image.fromarray(np.dstack([picture[..., 0], alpha]), "LA"), "PNG"))
    assert np.abs(grey[..., 1] - want[..., 0]).max() <= 1


def test_palette_with_and_without_transparency(decoder):
    indices = RNG.integers(0, 4, (9, 11)).astype(np.uint8)
    table = np.array([[255, 0, 0], [0, 200, 10], [3, 5, 250], [9, 9, 9]], np.uint8)
    picture = Image.fromarray(indices, "P")
    picture.putpalette(table.tobytes())
    np.testing.assert_array_equal(decode(stored(picture, "PNG")), table[indices])
    want = np.where((indices == 2)[..., None], np.uint8(255), table[indices])
    np.testing.assert_array_equal(decode(stored(picture, "PNG", transparency=2)), want)


def test_cmyk_jpeg(decoder):
    """CMYK inks absorb: R = 255 (1-C)(1-K), and so on; Adobe's files store them inverted, which is undone."""
    inks = np.zeros((16, 48, 4), np.uint8)
    inks[:, :16], inks[:, 16:32], inks[:, 32:] = (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 128)
    got = decode(stored(Image.fromarray(inks, "CMYK"), "JPEG", quality=98)).astype(int)
    for column, colour in ((8, (0, 255, 255)), (24, (255, 0, 0)), (40, (127, 127, 127))):
        assert np.abs(got[8, column] - colour).max() <= 4


def test_sixteen_bits_keep_the_high_byte(decoder):
    deep = RNG.integers(0, 65536, (8, 9)).astype(np.uint16)
    got = decode(stored(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(got, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, -1))


def test_real_photographs_agree_between_decoders(shared_data, monkeypatch):
    pytest.importorskip("cv2")
    for path in sorted((shared_data / "imagenet_sample").rglob("*.JPEG"))[::25]:
        with_cv2 = decode(path.read_bytes(), str(path))
        with monkeypatch.context() as patch:
            patch.setattr(images, "cv2", None)
            with_pillow = decode(path.read_bytes(), str(path))
        assert with_cv2.shape == with_pillow.shape
        assert np.abs(with_cv2.astype(int) - with_pillow).max() <= 4 and np.abs(with_cv2.astype(int) - with_pillow).mean() < 0.1


def test_reduced_decoding_is_the_picture_made_smaller(decoder, shared_data):
    """A reduced decode must equal the mean over squares of the whole one, but for JPEG's own rounding."""
    large = np.asarray(Image.fromarray(smooth(64, 48)).resize((480, 640), Image.Resampling.BICUBIC))
    data = encode(large, "jpeg")
    assert decode(data, at_least=481).shape == (640, 480, 3)
    assert decode(data, at_least=241).shape == (640, 480, 3)
    for side, factor in ((240, 2), (120, 4), (60, 8)):
        got, want = decode(data, at_least=side), large.reshape(640 // factor, factor, 480 // factor, factor, 3).mean((1, 3))
        assert got.shape == want.shape and np.abs(got - want).max() <= 4


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_truncated_and_broken_files_are_named(decoder, form):
    data = encode(np.asarray(Image.fromarray(smooth()).resize((200, 150))), form)
    for damaged in (data[: len(data) // 2], data[:40], b"", b"not an image"):
        with pytest.raises(DecodeError, match="'kitten-7'"):
            decode(damaged, "kitten-7")


def test_arrays_of_the_wrong_kind_are_refused():
    with pytest.raises(DecodeError, match="uint8"):
        decode(np.zeros((4, 4, 3), np.float32), "x")
    with pytest.raises(DecodeError, match="uint8"):
        decode(np.zeros((4, 4), np.uint8), "x")
