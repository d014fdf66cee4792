"""CLIP's two towers as pure functions: images and texts to vectors of one space, whose cosine says how well they fit.

"Learning Transferable Visual Models From Natural Language Supervision" (Radford et al., 2021), the vision transformers of any
size. What the weights' shapes do not tell, the width of a head and the activation, is the same in all that OpenAI published.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from vimlab.nn import masks
from vimlab.nn.attend import attention
from vimlab.scoring.bicubic import resize_and_crop

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EPSILON = 1e-5
HEAD_DIM = 64
Activation = Literal["quick_gelu", "gelu"]
ACTIVATIONS = {"quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x), "gelu": lambda x: jax.nn.gelu(x, approximate=False)}
Tower = Mapping[str, Any]


def resolution(tower: Tower) -> int:
    """The side of the images that an image tower sees, in pixels."""
    return math.isqrt(len(tower["positions"]) - 1) * patch(tower)


def patch(tower: Tower) -> int:
    """The side of an image tower's patches, in pixels."""
    return math.isqrt(len(tower["patch"]) // 3)


def image_features(tower: Tower, images: jax.Array, *, head_dim: int = HEAD_DIM, activation: Activation = "quick_gelu") -> jax.Array:
    """The projected class token of each image, not brought to unit length.

    All products are in f32 on every device. Pass the weights into a compiled function as an argument.

    Args:
      tower: `load(path)["image"]` of vimlab.scoring.clip_weights.
      images: f32[B,H,W,3] in [0,1] of any size; rounded to 8 bits, resized and cropped as CLIP does.
      head_dim: width of an attention head.
      activation: between the layers of an MLP.

    Returns:
      f32[B,D].
    """
    side, size = resolution(tower), patch(tower)
    x = (resize_and_crop(images, side) - jnp.array(MEAN)) / jnp.array(STD)
    grid = side // size
    x = x.reshape(-1, grid, size, grid, size, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), grid * grid, -1)
    with jax.default_matmul_precision("highest"):
        x = x @ tower["patch"]
        x = jnp.concatenate([jnp.broadcast_to(tower["class"], (len(x), 1, x.shape[-1])), x], 1) + tower["positions"]
        x = _norm(x, tower, "before")
        x = _blocks(x, tower["blocks"], head_dim, activation, causal=False)
        return _norm(x[:, 0], tower, "after") @ tower["projection"]


def text_features(tower: Tower, ids: jax.Array, *, head_dim: int = HEAD_DIM, activation: Activation = "quick_gelu") -> jax.Array:
    """The projected state at each text's end, not brought to unit length.

    Args:
      tower: `load(path)["text"]`.
      ids: i32[B,T], T at most the tower's positions (77); a text ends at its first largest id, which is the vocabulary's end.
      head_dim, activation: as of `image_features`.

    Returns:
      f32[B,D].
    """
    with jax.default_matmul_precision("highest"):
        x = jnp.take(tower["tokens"], ids, axis=0) + tower["positions"][: ids.shape[1]]
        x = _blocks(x, tower["blocks"], head_dim, activation, causal=True)
        ends = jnp.take_along_axis(x, ids.argmax(1)[:, None, None], axis=1)[:, 0]
        return _norm(ends, tower, "after") @ tower["projection"]


def unit(x: jax.Array) -> jax.Array:
    """Vectors f32[B,D] at unit length."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _blocks(x: jax.Array, blocks: Mapping[str, jax.Array], head_dim: int, activation: Activation, *, causal: bool) -> jax.Array:
    """Transformer blocks that norm first: f32[B,N,W] → f32[B,N,W]; their weights are stacked, [layers,…]."""
    batch, length, width = x.shape
    heads = (batch, length, width // head_dim, head_dim)
    mask = masks.causal(length) if causal else None

    def block(x, w):
        q, k, v = jnp.split(_norm(x, w, "norm1") @ w["qkv.w"] + w["qkv.b"], 3, axis=-1)
        q, k, v = (y.reshape(heads).transpose(0, 2, 1, 3) for y in (q, k, v))
        mixed = attention(q, k, v, mask=mask).transpose(0, 2, 1, 3).reshape(x.shape)
        x = x + mixed @ w["out.w"] + w["out.b"]
        inner = ACTIVATIONS[activation](_norm(x, w, "norm2") @ w["up.w"] + w["up.b"])
        return x + inner @ w["down.w"] + w["down.b"], None

    return jax.lax.scan(block, x, blocks)[0]


def _norm(x: jax.Array, weights: Mapping[str, jax.Array], name: str) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)
    return y * weights[f"{name}.scale"] + weights[f"{name}.bias"]
