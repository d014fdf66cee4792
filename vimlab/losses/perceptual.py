"""LPIPS on VGG16: a distance between pictures in the features of a network, and the loader of its weights from files.

"The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (Zhang et al., 2018), version 0.1. The weights come
from files that the user has: torchvision's `vgg16-397923af.pth` (the network) and the `lpips` package's `weights/v0.1/vgg.pth`
(five linear heads), or one file that holds both. Nothing is downloaded.
"""

import os
import pathlib
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vimlab import safetensors_io, torch_io
from vimlab.config import UserError
from vimlab.nn.conv import conv2d
from vimlab.parallel.rules import constrain
from vimlab.weights import known_by, sha256

# torchvision's indices of VGG16's convolutions, a row a resolution; the last of each row is compared after its ReLU.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
# The published heads' sums: whatever file they come from, other heads give another distance.
HEAD_SUMS = (6.9260, 8.8583, 17.5150, 51.5213, 47.0349)
NEEDED = "LPIPS needs torchvision's vgg16-397923af.pth and lpips's weights/v0.1/vgg.pth, or one file that holds both"
Weights = Mapping[str, jax.Array | np.ndarray]


class PerceptualError(UserError):
    """Weights that are absent or are not LPIPS's; the message names the file and says what it must hold."""


def lpips(weights: Weights, images: jax.Array, reconstructions: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The distance of each reconstruction from its image; gradients flow to the reconstructions alone.

    Pass `weights` into the compiled function as an argument: captured, they would be compiled in as 59 MB of constants. They stay
    whole on every device of a mesh, for they have neither gradients nor moments; the pictures are split over all its axes.

    Args:
      weights: as `load_weights` returns them.
      images: f32[B,H,W,3] in [0,1], the target; sides of at least 16.
      reconstructions: f32[B,H,W,3], the same.
      dtype: of the convolutions; norms, differences and means are f32.

    Returns:
      f32[B], 0 for equal pictures.
    """
    images, reconstructions = jax.lax.stop_gradient(images.astype(jnp.float32)), reconstructions.astype(jnp.float32)
    images, reconstructions = (constrain(x, "pictures", "height", "width", "channels") for x in (images, reconstructions))
    total = jnp.zeros(len(images), jnp.float32)
    pairs = zip(_features(weights, images, dtype), _features(weights, reconstructions, dtype), strict=True)
    for stage, (target, features) in enumerate(pairs):
        difference = jnp.square(_normalise(jax.lax.stop_gradient(target)) - _normalise(features))
        total += (difference * weights[f"head{stage}"]).sum(-1).mean((1, 2))
    return total


def _features(weights: Weights, images: jax.Array, dtype: DTypeLike) -> list[jax.Array]:
    """VGG16's relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of pictures in [0,1], of `dtype`."""
    shift, scale = jnp.array([-0.030, -0.088, -0.188]), jnp.array([0.458, 0.448, 0.450])
    x = ((2.0 * images - 1.0 - shift) / scale).astype(dtype)
    features = []
    for stage, convolutions in enumerate(STAGES):
        x = _halve(x) if stage else x
        for index in convolutions:
            w, b = weights[f"conv{index}.w"].astype(dtype), weights[f"conv{index}.b"].astype(dtype)
            x = jax.nn.relu(conv2d(x, w, 1, ((1, 1), (1, 1))) + b)
        features.append(x)
    return features


def _halve(x: jax.Array) -> jax.Array:
    """Largest of each 2x2 square: [B,H,W,C] → [B,H//2,W//2,C]. Pairs differentiate faster on CPU than a window's maximum."""
    _, height, width, _ = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def _normalise(x: jax.Array) -> jax.Array:
    """Unit length over channels, f32. The constant is inside the root: the slope of a bare root at 0 is infinite."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-10)


def load_weights(*paths: str | os.PathLike) -> Weights:
    """Reads VGG16's convolutions and the five heads from one file or several, `.pth`/`.pt` or `.safetensors`.

    Names are torchvision's (`features.0.weight`) or lpips's (`net.slice1.0.weight`, `lin0.model.1.weight`, `lin0.weight`).

    Returns:
      {"conv{i}.w": f32[3,3,in,out], "conv{i}.b": f32[out], "head{k}": f32[width]} on the host, i as in torchvision.

    Raises:
      PerceptualError: a file that is absent, damaged (its hash against its name) or of another kind; weights that are missing,
        misshapen, not finite, untrained (all biases zero), or heads other than v0.1's; distances that do not behave.
    """
    found = {}
    for path in map(pathlib.Path, paths):
        if not path.is_file():
            raise PerceptualError(f"the perceptual weights {str(path)!r} do not exist; {NEEDED} (or no perceptual loss)")
        _check_name(path)
        found |= {_name(n): x for n, x in _read(path).items() if _name(n)}
    weights = {name: _take(found, name, shape, paths) for name, shape in weight_shapes().items()}
    _check(weights, ", ".join(map(str, paths)))
    return weights


def provenance(*paths: str | os.PathLike) -> str:
    """One line for the log and beside every figure: each file's name, the start of its sha256, and what it is if known."""
    parts = []
    for name, digest in hashes(*paths).items():
        known = known_by(digest)
        parts.append(f"{name} (sha256 {digest[:8]}, {known.what if known else 'not a known file'})")
    return "LPIPS from " + ", ".join(parts)


def hashes(*paths: str | os.PathLike) -> dict[str, str]:
    """The sha256 of each file, by its name."""
    return {pathlib.Path(path).name: sha256(path) for path in paths}


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """The shape of each array that `load_weights` returns."""
    shapes, channels = {}, 3
    for convolutions, width in zip(STAGES, WIDTHS, strict=True):
        for index in convolutions:
            shapes |= {f"conv{index}.w": (3, 3, channels, width), f"conv{index}.b": (width,)}
            channels = width
    return shapes | {f"head{k}": (width,) for k, width in enumerate(WIDTHS)}


def _name(name: str) -> str | None:
    """Our name of a tensor that public files call `name`; None for those of no use here, such as VGG16's classifier."""
    if match := re.search(r"(?:^|\.)(?:features|slice\d)\.(\d+)\.(weight|bias)$", name):
        return f"conv{match[1]}.{match[2][0]}"
    match = re.search(r"(?:^|\.)lins?\.?(\d)(?:\.model\.1)?\.weight$", name)
    return f"head{match[1]}" if match else None


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".safetensors":
            return safetensors_io.read(path)[0]
        return torch_io.read(path, keep=lambda name: _name(name) is not None)
    except (safetensors_io.SafetensorsError, torch_io.TorchFileError) as error:
        raise PerceptualError(f"perceptual weights: {error}") from error


def _take(found: dict[str, np.ndarray], name: str, shape: tuple[int, ...], paths: tuple) -> np.ndarray:
    """One array in our layout: kernels [out,in,3,3] become [3,3,in,out], heads [1,width,1,1] become [width]."""
    files = ", ".join(map(str, paths))
    if name not in found:
        kind = (
            "the five linear heads (lin0.model.1.weight, …)"
            if "head" in name
            else "VGG16's convolutions (features.0.weight, …)"
        )
        raise PerceptualError(f"{files} lack {kind}, namely {name}; {NEEDED}")
    x = np.asarray(found[name], np.float32)
    x = x.transpose(2, 3, 1, 0) if x.ndim == 4 and "conv" in name else x.reshape(-1)
    if x.shape != shape:
        raise PerceptualError(
            f"{name} in {files} has shape {found[name].shape}, which is not that of VGG16's LPIPS; give the files for VGG16"
        )
    return np.ascontiguousarray(x)


def _check_name(path: pathlib.Path) -> None:
    """torchvision puts the start of a file's sha256 into its name."""
    match = re.fullmatch(r"vgg16-([0-9a-f]{8})\.pth", path.name)
    if match and not (found := sha256(path)).startswith(match[1]):
        raise PerceptualError(
            f"{path} is damaged: its sha256 starts with {found[:8]}, not with the {match[1]} of its name; fetch it again"
        )


def _check(weights: Weights, files: str) -> None:
    """Refuses weights that are not, or do not act as, those of a trained network with the published heads."""
    if not all(np.isfinite(x).all() for x in weights.values()):
        raise PerceptualError(f"{files} hold numbers that are not finite; fetch them again")
    if not any(x.any() for name, x in weights.items() if name.endswith(".b")):
        raise PerceptualError(
            f"{files} hold a VGG16 that was never trained (all its biases are zero); give torchvision's vgg16-397923af.pth"
        )
    for stage, expected in enumerate(HEAD_SUMS):
        head = weights[f"head{stage}"]
        if head.min() < 0 or abs(head.sum() / expected - 1) > 1e-3:
            raise PerceptualError(
                f"head {stage} in {files} sums to {head.sum():.4f}, but LPIPS v0.1's, all positive, to {expected}; "
                "give the lpips package's weights/v0.1/vgg.pth"
            )
    picture = _test_picture()
    same, slight, strong = np.asarray(
        jax.jit(lpips)(weights, np.stack([picture] * 3), np.stack([picture, _blur(picture, 1), _blur(picture, 4)]))
    )
    if not same < 1e-5 < slight < strong < 2:
        raise PerceptualError(
            f"{files} do not act as LPIPS: a picture lies {same:.3g} from itself, {slight:.3g} from a slight blur of it and "
            f"{strong:.3g} from a strong one, which should be 0 and rise; fetch them again"
        )


def _test_picture() -> np.ndarray:
    """Discs on a slope of colour, f32[32,32,3]."""
    y, x = np.mgrid[:32, :32] / 32
    picture = np.stack([x, y, 1 - x * y], -1)
    for cx, cy, colour in ((0.3, 0.3, (0.9, 0.1, 0.1)), (0.7, 0.6, (0.1, 0.2, 0.9)), (0.35, 0.75, (1.0, 0.9, 0.2))):
        picture[(x - cx) ** 2 + (y - cy) ** 2 < 0.02] = colour
    return picture.astype(np.float32)


def _blur(picture: np.ndarray, radius: int) -> np.ndarray:
    """Mean over squares of side 2 radius + 1, the border repeated."""
    wide = np.pad(picture, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    window = np.lib.stride_tricks.sliding_window_view(wide, (2 * radius + 1,) * 2, (0, 1))
    return window.mean((-1, -2), dtype=np.float32)
