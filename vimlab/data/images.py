"""Encoded images become uint8[H,W,3]: orientation, grey, CMYK, palette, alpha on white, 16 bits; truncation is an error.

Pillow decodes everything. Where OpenCV is installed it takes over the ordinary case (a whole JPEG of one or three
components), for which the two give the same picture; `DECODER` says which is in use.
"""

import io
import struct

import numpy as np
from PIL import Image, ImageOps

from vimlab.data.base import DecodeError

try:
    import cv2

    cv2.setNumThreads(0)  # the pipeline has threads of its own
except ImportError:
    cv2 = None

DECODER = "pillow" if cv2 is None else "opencv"


def decode(image: bytes | np.ndarray, key: str = "", at_least: int = 0) -> np.ndarray:
    """The image as uint8[H,W,3], upright, on white where it is transparent.

    Args:
      image: an encoded file, or uint8[H,W,3], which is returned as it is.
      key: names the record in errors.
      at_least: where positive, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side keeps
        this many pixels (several times faster on large photographs).

    Raises:
      DecodeError: not an image, or not all of one.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise DecodeError(f"record {key!r} holds an array {image.dtype}{list(image.shape)}, not uint8[H,W,3]")
        return image
    components, shorter = _jpeg_header(image)
    reduction = max((f for f in (1, 2, 4, 8) if at_least and shorter >= f * at_least), default=1)
    # Some versions of OpenCV fill what a truncated file lacks with grey; only a file that ends properly is given to it.
    if cv2 is not None and components in (1, 3) and image.endswith(b"\xff\xd9"):
        flag = cv2.IMREAD_COLOR if reduction == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{reduction}")
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flag)
        if pixels is not None:
            return np.ascontiguousarray(pixels[..., ::-1])
    try:
        with Image.open(io.BytesIO(image)) as picture:
            if reduction > 1:
                picture.draft(None, (picture.width // reduction, picture.height // reduction))
            return _to_rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # Pillow raises many types on damaged files, struct.error and SyntaxError among them
        raise DecodeError(f"record {key!r} cannot be decoded ({type(error).__name__}: {error})") from None


def _to_rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I;16") or picture.mode == "I":
        grey = np.asarray(picture).astype(np.int64)
        grey = (grey >> 8 if grey.max(initial=0) > 255 or picture.mode != "I" else grey).clip(0, 255)
        return np.repeat(grey.astype(np.uint8)[..., None], 3, -1)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        page = Image.new("RGB", picture.size, (255, 255, 255))
        page.paste(picture, mask=picture.getchannel("A"))
        picture = page
    return np.array(picture.convert("RGB"))


def _jpeg_header(data: bytes) -> tuple[int, int]:
    """(number of components, shorter side) of a JPEG; (0, 0) for anything else."""
    if not data.startswith(b"\xff\xd8"):
        return 0, 0
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", data, at + 5)
            return components, min(height, width)
        at += 1 if marker == 0xFF else 2 + length
    return 0, 0


def encode(image: np.ndarray, form: str = "png") -> bytes:
    """uint8[H,W,3] as "png" or "webp" (both lossless), or "jpeg" (quality 95, colour at full resolution)."""
    options = {"png": {"optimize": True}, "webp": {"lossless": True, "quality": 80, "method": 4},
               "jpeg": {"quality": 95, "subsampling": 0}}[form]
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, form.upper(), **options)
    return out.getvalue()
