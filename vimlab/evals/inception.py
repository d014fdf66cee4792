"""InceptionV3 of 2015-12-05, the network of FID: pure functions over a flat dict of weights with the batch norms folded in.

"Rethinking the Inception Architecture for Computer Vision" (Szegedy et al., 2015), in the form of TensorFlow's graph of that date,
which FID was defined with and pytorch-fid ported to torch: 1008 logits, average pools that leave their zero padding out of the mean, and a
maximum pool in the last block where the paper has an average.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vimlab.weights import WeightsError

SIZE = 299
LOGITS = 1008
EPSILON = 1e-3
SPATIAL_CHANNELS = 7
Weights = Mapping[str, jax.Array | np.ndarray]
Pool = Callable[[jax.Array], jax.Array]
# Of a convolution: channels in, channels out, kernel height and width.
Shape = tuple[int, int, int, int]

STEM: dict[str, Shape] = {
    "Conv2d_1a_3x3": (3, 32, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (32, 64, 3, 3),
    "Conv2d_3b_1x1": (64, 80, 1, 1),
    "Conv2d_4a_3x3": (80, 192, 3, 3),
}


def apply(weights: Weights, images: jax.Array, *, resize: str) -> dict[str, jax.Array]:
    """Features of pictures of any size, for FID, sFID and the Inception Score.

    Args:
      weights: as `convert` returns them.
      images: f32[B,H,W,3] in [0,1].
      resize: how they are brought to 299x299 and scaled. "pytorch-fid": bilinear between pixel centres, 2x - 1. "tf1": TensorFlow 1's
        bilinear, whose pixels are aligned at the top left corner, and (255x - 128) / 128, as in the original graph, torch-fidelity
        and guided-diffusion's evaluator. Neither smooths before it shrinks.

    Returns:
      "features" f32[B,2048], the mean over positions of the last block ("pool_3"); "spatial" f32[B,2023], the first 7 channels of
      the 17x17 map of Mixed_6d after its ReLU, position by position (the graph's "mixed_6/conv", as guided-diffusion's sFID takes it);
      "logits" f32[B,1008] without the last layer's bias, as torch-fidelity and guided-diffusion take them for the Inception Score.
    """
    return trunk(weights, prepare(images, resize))


def prepare(images: jax.Array, resize: str) -> jax.Array:
    """f32[B,H,W,3] in [0,1] → f32[B,299,299,3] about [-1,1], as `apply` says."""
    x = _resize(images.astype(jnp.float32), half_pixel=resize == "pytorch-fid")
    return 2 * x - 1 if resize == "pytorch-fid" else (255 * x - 128) / 128


def trunk(weights: Weights, x: jax.Array) -> dict[str, jax.Array]:
    """Prepared pictures f32[B,299,299,3] → what `apply` returns."""
    conv = functools.partial(_conv, weights)
    x = conv("Conv2d_1a_3x3", x, stride=2, padding="VALID")
    x = conv("Conv2d_2a_3x3", x, padding="VALID")
    x = _max_pool(conv("Conv2d_2b_3x3", x))
    x = conv("Conv2d_3b_1x1", x)
    x = _max_pool(conv("Conv2d_4a_3x3", x, padding="VALID"))
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _block_a(weights, name, x)
    x = _block_b(weights, "Mixed_6a", x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d"):
        x = _block_c(weights, name, x)
    spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
    x = _block_c(weights, "Mixed_6e", x)
    x = _block_d(weights, "Mixed_7a", x)
    x = _block_e(weights, "Mixed_7b", x, _mean_pool)
    x = _block_e(weights, "Mixed_7c", x, lambda y: _max_pool(_pad(y, -jnp.inf), stride=1))
    features = x.mean((1, 2))
    logits = jnp.matmul(features, weights["fc.w"], precision=lax.Precision.HIGHEST)
    return {"features": features, "spatial": spatial, "logits": logits}


def _block_a(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    pooled = _chain(weights, name, _mean_pool(x), "branch_pool")
    fives = _chain(weights, name, x, "branch5x5_1", "branch5x5_2")
    threes = _chain(weights, name, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
    return jnp.concatenate([_chain(weights, name, x, "branch1x1"), fives, threes, pooled], -1)


def _block_b(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    single = _conv(weights, f"{name}.branch3x3", x, stride=2, padding="VALID")
    double = _chain(weights, name, x, "branch3x3dbl_1", "branch3x3dbl_2")
    double = _conv(weights, f"{name}.branch3x3dbl_3", double, stride=2, padding="VALID")
    return jnp.concatenate([single, double, _max_pool(x)], -1)


def _block_c(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    sevens = _chain(weights, name, x, *(f"branch7x7_{i}" for i in (1, 2, 3)))
    double = _chain(weights, name, x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)))
    pooled = _chain(weights, name, _mean_pool(x), "branch_pool")
    return jnp.concatenate([_chain(weights, name, x, "branch1x1"), sevens, double, pooled], -1)


def _block_d(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    threes = _conv(weights, f"{name}.branch3x3_2", _chain(weights, name, x, "branch3x3_1"), stride=2, padding="VALID")
    sevens = _chain(weights, name, x, "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3")
    sevens = _conv(weights, f"{name}.branch7x7x3_4", sevens, stride=2, padding="VALID")
    return jnp.concatenate([threes, sevens, _max_pool(x)], -1)


def _block_e(weights: Weights, name: str, x: jax.Array, pool: Pool) -> jax.Array:
    threes = _chain(weights, name, x, "branch3x3_1")
    double = _chain(weights, name, x, "branch3x3dbl_1", "branch3x3dbl_2")
    split = [_chain(weights, name, threes, f"branch3x3_{i}") for i in ("2a", "2b")]
    split += [_chain(weights, name, double, f"branch3x3dbl_{i}") for i in ("3a", "3b")]
    pooled = _chain(weights, name, pool(x), "branch_pool")
    return jnp.concatenate([_chain(weights, name, x, "branch1x1"), *split, pooled], -1)


def _chain(weights: Weights, block: str, x: jax.Array, *names: str) -> jax.Array:
    for name in names:
        x = _conv(weights, f"{block}.{name}", x)
    return x


def _conv(weights: Weights, name: str, x: jax.Array, stride: int = 1, padding: str = "SAME") -> jax.Array:
    # Highest precision: accelerators' defaults would move the features by a part in a hundred.
    y = lax.conv_general_dilated(
        x, weights[f"{name}.w"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=lax.Precision.HIGHEST
    )
    return jax.nn.relu(y + weights[f"{name}.b"])


def _max_pool(x: jax.Array, stride: int = 2) -> jax.Array:
    return _windows(x, jnp.maximum, stride)


def _mean_pool(x: jax.Array) -> jax.Array:
    """Means over 3x3 windows, of as many pixels as lie inside the picture."""
    counts = [np.minimum(3, np.minimum(np.arange(2, n + 2), np.arange(n + 1, 1, -1))) for n in x.shape[1:3]]
    return _windows(_pad(x, 0.0), jnp.add, 1) / np.float32(np.outer(*counts))[..., None]


def _pad(x: jax.Array, value: float) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


def _windows(x: jax.Array, combine: Callable[[jax.Array, jax.Array], jax.Array], stride: int) -> jax.Array:
    """Reduces 3x3 windows, one direction after the other: slices of whole rows are faster on CPU than a window's reduction."""
    for axis in (1, 2):
        a, b, c = (lax.slice_in_dim(x, k, x.shape[axis] - 2 + k, stride, axis) for k in range(3))
        x = combine(combine(a, b), c)
    return x


def _resize(images: jax.Array, *, half_pixel: bool) -> jax.Array:
    """[B,H,W,C] → [B,299,299,C], bilinear without smoothing."""
    rows, columns = (_interpolation(n, half_pixel) for n in images.shape[1:3])
    images = jnp.einsum("oh,bhwc->bowc", rows, images, precision=lax.Precision.HIGHEST)
    return jnp.einsum("pw,bowc->bopc", columns, images, precision=lax.Precision.HIGHEST)


def _interpolation(size: int, half_pixel: bool) -> np.ndarray:
    """f32[299,size]: what each output pixel takes of the inputs; coordinates are rounded to f32, as in both originals."""
    target, scale = np.arange(SIZE, dtype=np.float32), np.float32(size / SIZE)
    source = np.maximum(scale * (target + np.float32(0.5)) - np.float32(0.5), 0) if half_pixel else scale * target
    low = np.minimum(source.astype(np.int64), size - 1)
    share = source - low.astype(np.float32)
    matrix = np.zeros((SIZE, size), np.float32)
    np.add.at(matrix, (np.arange(SIZE), low), 1 - share)
    np.add.at(matrix, (np.arange(SIZE), np.minimum(low + 1, size - 1)), share)
    return matrix


def convert(arrays: Mapping[str, np.ndarray], origin: str) -> Weights:
    """The weights for `apply` from those of pytorch-fid's or torch-fidelity's file; batch norms are folded in f64.

    Args:
      arrays: by torch's names: `Mixed_5b.branch1x1.conv.weight`, `….bn.running_mean`, …, `fc.weight`.
      origin: the file, named in errors.

    Returns:
      {"{name}.w": f32[height,width,in,out], "{name}.b": f32[out], …, "fc.w": f32[2048,1008]} on the host.

    Raises:
      WeightsError: a tensor that is missing, of another shape, or not finite.
    """

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in arrays or arrays[name].shape != shape:
            has = f"has {name} of shape {arrays[name].shape}" if name in arrays else f"lacks {name}"
            raise WeightsError(f"{origin} {has}, so it is not FID's InceptionV3 (there it is {shape}); give pytorch-fid's file")
        if not np.isfinite(arrays[name]).all():
            raise WeightsError(f"{origin} holds numbers in {name} that are not finite; fetch it again")
        return arrays[name]

    weights: dict[str, np.ndarray] = {}
    for name, (inputs, outputs, height, width) in shapes().items():
        gamma, beta, mean, variance = (
            take(f"{name}.bn.{part}", (outputs,)).astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + EPSILON)
        kernel = take(f"{name}.conv.weight", (outputs, inputs, height, width)).transpose(2, 3, 1, 0)
        weights[f"{name}.w"] = np.ascontiguousarray(kernel * scale, np.float32)
        weights[f"{name}.b"] = (beta - mean * scale).astype(np.float32)
    weights["fc.w"] = np.ascontiguousarray(take("fc.weight", (LOGITS, 2048)).T, np.float32)
    return weights


@functools.cache
def shapes() -> dict[str, Shape]:
    """Every convolution by its name in torch: channels in, channels out, kernel height and width."""
    blocks = {f"Mixed_5{k}": _shapes_a(n, p) for k, n, p in (("b", 192, 32), ("c", 256, 64), ("d", 288, 64))}
    blocks["Mixed_6a"] = _rows(288, ("branch3x3", 384, 3, 3)) | _rows(288, *_double(96))
    blocks |= {f"Mixed_6{k}": _shapes_c(c) for k, c in (("b", 128), ("c", 160), ("d", 160), ("e", 192))}
    blocks["Mixed_7a"] = _rows(768, ("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3)) | _rows(
        768, ("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, 1, 7), ("branch7x7x3_3", 192, 7, 1), ("branch7x7x3_4", 192, 3, 3)
    )
    blocks |= {"Mixed_7b": _shapes_e(1280), "Mixed_7c": _shapes_e(2048)}
    return STEM | {f"{block}.{name}": shape for block, rows in blocks.items() for name, shape in rows.items()}


def _rows(inputs: int, *chain: tuple[str, int, int, int]) -> dict[str, Shape]:
    """A chain of convolutions (name, channels out, height, width), each of the one before it."""
    found: dict[str, Shape] = {}
    for name, outputs, height, width in chain:
        found[name] = (inputs, outputs, height, width)
        inputs = outputs
    return found


def _double(outputs: int) -> tuple[tuple[str, int, int, int], ...]:
    return (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", outputs, 3, 3), ("branch3x3dbl_3", outputs, 3, 3))


def _shapes_a(inputs: int, pool: int) -> dict[str, Shape]:
    singles = _rows(inputs, ("branch1x1", 64, 1, 1)) | _rows(inputs, ("branch_pool", pool, 1, 1))
    return singles | _rows(inputs, ("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5)) | _rows(inputs, *_double(96))


def _shapes_c(c: int) -> dict[str, Shape]:
    singles = _rows(768, ("branch1x1", 192, 1, 1)) | _rows(768, ("branch_pool", 192, 1, 1))
    sevens = _rows(768, ("branch7x7_1", c, 1, 1), ("branch7x7_2", c, 1, 7), ("branch7x7_3", 192, 7, 1))
    kernels = ((c, 1, 1), (c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7))
    return singles | sevens | _rows(768, *((f"branch7x7dbl_{i}", *kernel) for i, kernel in enumerate(kernels, 1)))


def _shapes_e(inputs: int) -> dict[str, Shape]:
    singles = _rows(inputs, ("branch1x1", 320, 1, 1)) | _rows(inputs, ("branch_pool", 192, 1, 1))
    first = _rows(inputs, ("branch3x3_1", 384, 1, 1)) | _rows(inputs, ("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 3))
    split = {f"{name}a": (384, 384, 1, 3) for name in ("branch3x3_2", "branch3x3dbl_3")}
    return singles | first | split | {f"{name}b": (384, 384, 3, 1) for name in ("branch3x3_2", "branch3x3dbl_3")}
