"""Cross-entropy over a codebook, in f32, without holding all logits where they would not fit."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vimlab.nn.layers import product


def logits(hidden: jax.Array, table: jax.Array, dtype: DTypeLike) -> jax.Array:
    """f[...,width] x f32[width,K] → f32[...,K]: multiplied in `dtype`, summed in f32."""
    return product(hidden.astype(dtype), table.astype(dtype), 1, jnp.float32)


def cross_entropy(hidden: jax.Array, table: jax.Array, ids: jax.Array, chunk: int, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """-log softmax(hidden @ table)[id] at every position.

    Args:
      hidden: f[B,L,width].
      table: f32[width,K].
      ids: i32[B,L], each in [0,K).
      chunk: positions whose logits f32[B,chunk,K] are held at once, forward and backward; L or more holds all.
      dtype: of the product; logits and loss are f32.

    Returns:
      f32[B,L], in nats.
    """
    b, length, width = hidden.shape

    def some(hidden, ids):
        scores = logits(hidden, table, dtype)
        # Picked by comparison: the gradient of an index would be scattered into an array as large as the logits.
        chosen = jnp.where(jnp.arange(scores.shape[-1]) == ids[..., None], scores, 0).sum(-1)
        return jax.nn.logsumexp(scores, axis=-1) - chosen

    if chunk >= length:
        return some(hidden, ids)
    parts = -(-length // chunk)
    pad = parts * chunk - length
    split = lambda x: jnp.pad(x, ((0, 0), (0, pad)) + ((0, 0),) * (x.ndim - 2)).reshape(b, parts, chunk, *x.shape[2:]).swapaxes(0, 1)
    # Recomputed in the backward pass: only one chunk's logits are ever there.
    _, losses = jax.lax.scan(lambda _, part: (None, jax.checkpoint(some)(*part)), None, (split(hidden), split(ids)))
    return losses.swapaxes(0, 1).reshape(b, -1)[:, :length]
