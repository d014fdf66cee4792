"""A small convolutional network with fixed random weights, whose features need no file and are the same on every machine.

Random features order sets of pictures much as trained ones do ("Reliable Fidelity and Diversity Metrics for Generative Models",
Naeem et al., 2020, section 4), but know nothing of what is in a picture.
"""

import hashlib
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vimlab.config import ConfigError

VERSION = "random-conv-v1"
WIDTHS = (32, 64, 64, 96)
DEFINITION = (
    f"{VERSION}: 2x - 1, then stages of 3x3 convolution with stride 2 and zeros 1 pixel around, bias, ReLU, of widths {WIDTHS}; "
    "the mean over positions of each channel of each stage, then its standard deviation"
)
LEAST_SIZE = 2 ** len(WIDTHS)
Weights = Mapping[str, jax.Array | np.ndarray]


def weights() -> dict[str, np.ndarray]:
    """{"conv{i}.w": f32[3,3,in,out], "conv{i}.b": f32[out]}, uniform: kernels of He's variance 2 / fan-in, biases in ±0.1."""
    seed = int.from_bytes(hashlib.sha256(VERSION.encode()).digest()[:8], "little")
    # The raw numbers of a generator are the same in every version of NumPy; its distributions need not be.
    bits = np.random.PCG64(seed)
    uniform = lambda shape: (bits.random_raw(math.prod(shape)) >> np.uint64(11)).reshape(shape) * 2.0**-52 - 1
    found, inputs = {}, 3
    for i, width in enumerate(WIDTHS):
        found[f"conv{i}.w"] = (uniform((3, 3, inputs, width)) * math.sqrt(6 / (9 * inputs))).astype(np.float32)
        found[f"conv{i}.b"] = (uniform((width,)) * 0.1).astype(np.float32)
        inputs = width
    return found


def apply(weights: Weights, images: jax.Array) -> dict[str, jax.Array]:
    """f32[B,H,W,3] in [0,1] with sides of at least 16 → "features" f32[B,512]; features of other sizes do not compare. Raises ConfigError."""
    if min(images.shape[1:3]) < LEAST_SIZE:
        raise ConfigError(
            f"images of {images.shape[1]}x{images.shape[2]} are too small for the extractor {VERSION}, which needs {LEAST_SIZE} pixels a side; "
            "choose another extractor"
        )
    x, features = 2 * images.astype(jnp.float32) - 1, []
    for i in range(len(WIDTHS)):
        x = lax.conv_general_dilated(
            x, weights[f"conv{i}.w"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=lax.Precision.HIGHEST
        )
        x = jax.nn.relu(x + weights[f"conv{i}.b"])
        features += [x.mean((1, 2)), x.std((1, 2))]
    return {"features": jnp.concatenate(features, -1)}
