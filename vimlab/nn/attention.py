"""Attention behind one function; softmax and its logits are f32 whatever the inputs are."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike

from vimlab.nn.layers import weight
from vimlab.parallel.rules import constrain


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention of every position to every position: f[B,H,T,D], f[B,H,S,D], f[B,H,S,D] → f[B,H,T,D]."""
    logits = jnp.einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases: f[B,N,width] → f[B,N,width].

    Attributes:
      heads: number of heads; must divide the width.
      dtype: compute type.
    """

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, h = x.shape[-1], self.heads
        if width % h:
            raise ValueError(f"a width of {width} does not divide into {h} heads")
        d = width // h
        # Query, key and value in one product; each head's columns are initialised as a (width, width) matrix's are.
        init = initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=0, out_axis=(2, 3), batch_axis=(1,))
        w = weight(self, "qkv", (width, 3, h, d), ("embed", None, "heads", "head_dim"), init)
        b = weight(self, "qkv_bias", (3, h, d), (None, "heads", "head_dim"), initializers.zeros)
        qkv = jnp.einsum("bld,dnhk->nbhlk", x.astype(self.dtype), w.astype(self.dtype)) + b.astype(self.dtype)[:, None, :, None]
        qkv = constrain(qkv, None, "batch", "act_heads", "length", "act_head_dim")
        y = attention(*qkv)
        init = initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1), out_axis=2)
        w = weight(self, "out", (h, d, width), ("heads", "head_dim", "embed"), init)
        b = weight(self, "out_bias", (width,), ("vector",), initializers.zeros)
        return jnp.einsum("bhlk,hkd->bld", y, w.astype(self.dtype)) + b.astype(self.dtype)
