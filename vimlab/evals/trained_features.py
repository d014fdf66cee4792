"""A small convolutional classifier trained on the labels of a data set at hand, whose features know that set's classes.

Where no public network fits (other pictures, other sizes, no file to be had), its Fréchet distance still tells better pictures from
worse ones. Figures of one file compare with one another; the file's hash stands beside each.
"""

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from vimlab import safetensors_io
from vimlab.config import ConfigError

VERSION = "trained-conv-v1"
WIDTHS = (32, 64, 128, 256)
LEAST_SIZE = 2 ** (len(WIDTHS) - 1)
SPATIAL = 16  # Channels of the last stage but one that make up the spatial features.
Weights = Mapping[str, jax.Array | np.ndarray]


def apply(weights: Weights, images: jax.Array) -> dict[str, jax.Array]:
    """f32[B,H,W,3] in [0,1] → "features" f32[B,256], "spatial" f32[B,16·H/4·W/4], "logits" f32[B,K]. Raises ConfigError where too small."""
    if min(images.shape[1:3]) < LEAST_SIZE:
        raise ConfigError(f"images of {images.shape[1]}x{images.shape[2]} are too small for {VERSION}, which needs {LEAST_SIZE} pixels a side")
    x, maps = 2 * images.astype(jnp.float32) - 1, []
    for i in range(len(WIDTHS)):
        x = _halve(x) if i else x
        x = lax.conv_general_dilated(x, weights[f"conv{i}.w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x - x.mean(-1, keepdims=True)
        x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * weights[f"norm{i}.g"] + weights[f"norm{i}.b"]
        x = jax.nn.relu(x)
        maps.append(x)
    features = x.mean((1, 2))
    spatial = maps[-2][..., :SPATIAL].reshape(len(images), -1)
    return {"features": features, "spatial": spatial, "logits": features @ weights["head.w"] + weights["head.b"]}


def _halve(x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def fresh(classes: int, seed: int) -> dict[str, np.ndarray]:
    """Weights to start from."""
    rng, found, inputs = np.random.default_rng(seed), {}, 3
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    for i, width in enumerate(WIDTHS):
        found |= {f"conv{i}.w": normal(3, 3, inputs, width) * np.float32((2 / (9 * inputs)) ** 0.5)}
        found |= {f"norm{i}.g": np.ones(width, np.float32), f"norm{i}.b": np.zeros(width, np.float32)}
        inputs = width
    return found | {"head.w": normal(inputs, classes) * np.float32(inputs**-0.5), "head.b": np.zeros(classes, np.float32)}


def train(
    batches: Iterator[tuple[np.ndarray, np.ndarray]], classes: int, steps: int, *, seed: int = 0, rate: float = 2e-3,
    progress: Callable[[int, float], None] | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Weights trained by AdamW on a one-cycle cosine with label smoothing of 0.1.

    Args:
      batches: endless, (uint8[B,H,W,3], i32[B]).
      progress: told every 50 steps, and after the last, how many were made and their mean loss.
    """
    optimiser = optax.adamw(optax.cosine_onecycle_schedule(steps, rate), weight_decay=0.05)
    weights = jax.device_put(fresh(classes, seed))
    state, losses = jax.jit(optimiser.init)(weights), []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(weights, state, images, labels):
        def loss(weights):
            shares = jax.nn.log_softmax(apply(weights, images.astype(jnp.float32) / 255)["logits"])
            return -0.9 * jnp.take_along_axis(shares, labels[:, None], 1).mean() - 0.1 * shares.mean()

        value, slopes = jax.value_and_grad(loss)(weights)
        updates, state = optimiser.update(slopes, state, weights)
        return optax.apply_updates(weights, updates), state, value

    for n in range(1, steps + 1):
        weights, state, value = step(weights, state, *next(batches))
        losses.append(value)
        if progress and (n % 50 == 0 or n == steps):
            progress(n, float(np.mean(jax.device_get(losses))))
            losses = []
    return jax.device_get(weights)


def accuracy(weights: Weights, batches: Iterator[tuple[np.ndarray, np.ndarray]], count: int) -> float:
    """Share of `count` pictures (uint8[B,H,W,3], i32[B]) whose likeliest class is their own; a label of -1 is nobody's."""
    guess = jax.jit(lambda weights, images: apply(weights, images.astype(jnp.float32) / 255)["logits"].argmax(-1))
    return sum(int((np.asarray(guess(weights, images)) == labels).sum()) for images, labels in batches) / count


def write(path: str | os.PathLike, weights: Weights, facts: Mapping[str, Any]) -> None:
    """Writes weights and what they were trained on (JSON values)."""
    safetensors_io.write(path, {k: np.asarray(v) for k, v in weights.items()}, {"format": VERSION, "facts": json.dumps(facts)})


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Weights that `write` wrote. Raises ConfigError where the file is absent, damaged or of another kind."""
    if not os.path.isfile(path):
        raise ConfigError(f"the extractor 'trained' needs a file of weights, but {str(path)!r} does not exist; `vimlab weights train` makes one")
    arrays, metadata = safetensors_io.read(path)
    if metadata.get("format") != VERSION:
        raise ConfigError(f"{path} holds no weights of {VERSION}; `vimlab weights train` makes such a file")
    return arrays
