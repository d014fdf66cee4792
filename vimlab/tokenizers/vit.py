"""The ViT encoder and decoder of ViT-VQGAN (section 3.1 of the paper): patches to latents, code vectors to pixels."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike

from vimlab.nn.layers import LayerNorm, Linear, weight
from vimlab.nn.transformer import Stack, stack_flops, stack_params
from vimlab.parallel.rules import constrain

Positions = Literal["sincos", "learned"]


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """f[B,H,W,C] → f[B,(H/p)(W/p),p·p·C], patches in raster order."""
    b, h, w, c = images.shape
    x = images.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(patches: jax.Array, grid: tuple[int, int], patch: int) -> jax.Array:
    """The inverse of `patchify`: f[B,N,p·p·C] → f[B,H,W,C] for a grid of (H/p, W/p) patches."""
    b, (gh, gw) = patches.shape[0], grid
    x = patches.reshape(b, gh, gw, patch, patch, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, gh * patch, gw * patch, -1)


def sincos_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine embedding f32[N,width]: half of the width encodes the row, half the column."""
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {width}")
    frequencies = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    rows, columns = np.meshgrid(*[np.arange(n) for n in grid], indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (rows, columns)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1).astype(np.float32)


class Tower(nn.Module):
    """Positions, transformer blocks, a last LayerNorm, and the two-layer head with a tanh in the middle.

    f[B,N,in] → f[B,N,features].

    Attributes:
      grid: positions as (height, width).
      features: output width of the head; computed in f32.
      positions: fixed sine-cosine, or learned.
      in_axis, out_axis: logical axes of the outer ends of the input projection and of the head.
    """

    grid: tuple[int, int]
    depth: int
    width: int
    heads: int
    mlp: int
    features: int
    positions: Positions = "sincos"
    remat: str = "dots"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32
    in_axis: str = "pixels"
    out_axis: str = "code_dim"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Linear(self.width, (self.in_axis, "embed"), dtype=self.dtype, name="embed")(x)
        if self.positions == "sincos":
            positions = jnp.asarray(sincos_positions(self.grid, self.width))
        else:
            shape = (self.grid[0] * self.grid[1], self.width)
            positions = weight(self, "positions", shape, ("positions", "embed"), initializers.normal(0.02))
        x = constrain(x + positions.astype(self.dtype), "batch", "length", "act_embed")
        x = Stack(self.depth, self.heads, self.mlp, self.remat, self.unroll, self.dtype, name="stack")(x)
        x = LayerNorm(name="norm")(x)
        x = jnp.tanh(Linear(self.mlp, ("embed", "mlp"), dtype=self.dtype, name="head_in")(x))
        return Linear(self.features, ("mlp", self.out_axis), name="head_out")(constrain(x, "batch", "length", "act_mlp"))


def tower_params(grid: tuple[int, int], depth: int, width: int, mlp: int, inputs: int, features: int, positions: Positions) -> int:
    """Parameters of a Tower, in the order of its layers."""
    learned = grid[0] * grid[1] * width if positions == "learned" else 0
    head = width * mlp + mlp + mlp * features + features
    return (inputs + 1) * width + learned + stack_params(depth, width, mlp) + 2 * width + head


def tower_flops(grid: tuple[int, int], depth: int, width: int, mlp: int, inputs: int, features: int) -> int:
    """Forward FLOPs of a Tower on one image (2 a multiply-add, matrix products only)."""
    n = grid[0] * grid[1]
    return stack_flops(depth, width, mlp, n) + 2 * n * (inputs * width + width * mlp + mlp * features)
