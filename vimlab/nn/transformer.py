"""A stack of pre-norm transformer blocks, scanned and rematerialised; the counts of its parameters and FLOPs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from vimlab.nn.attention import SelfAttention
from vimlab.nn.layers import LayerNorm, Linear
from vimlab.parallel.rules import constrain

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    # Keep the outputs of weight products, recompute what is cheap: norms, activations and the attention matrix.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Block(nn.Module):
    """Attention and a GELU perceptron, each behind a LayerNorm and a residual: f[B,N,width] → f[B,N,width]."""

    heads: int
    mlp: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = constrain(x, "batch", "length", "act_embed")
        x = x + SelfAttention(self.heads, self.dtype, name="attention")(LayerNorm(name="norm1")(x))
        y = Linear(self.mlp, ("embed", "mlp"), dtype=self.dtype, name="mlp_in")(LayerNorm(name="norm2")(x))
        y = constrain(jax.nn.gelu(y), "batch", "length", "act_mlp")
        x = x + Linear(x.shape[-1], ("mlp", "embed"), dtype=self.dtype, name="mlp_out")(y)
        return constrain(x, "batch", "length", "act_embed")


class Stack(nn.Module):
    """`depth` blocks under one scan, their parameters stacked on a leading 'layers' dimension.

    Attributes:
      depth, heads, mlp: blocks, heads and hidden width of each block.
      remat: what the backward pass keeps, a key of REMAT_POLICIES.
      unroll: blocks per step of the scan; `depth` is the unscanned program over the same parameters.
    """

    depth: int
    heads: int
    mlp: int
    remat: str = "dots"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        scanned = nn.scan(
            lambda module, carry, _: (module(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(block(self.heads, self.mlp, self.dtype, name="blocks"), x, None)[0]


def stack_params(depth: int, width: int, mlp: int) -> int:
    """Parameters of a Stack: the four attention matrices, two of the perceptron, their biases and two norms a block."""
    return depth * (4 * width * width + 2 * width * mlp + 9 * width + mlp)


def stack_flops(depth: int, width: int, mlp: int, length: int) -> int:
    """Forward FLOPs of a Stack on one sequence; matrix products only, 2 FLOPs a multiply-add, full attention."""
    return depth * (2 * length * (4 * width * width + 2 * width * mlp) + 4 * length * length * width)
