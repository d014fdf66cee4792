"""Filters of logits whose settings are arrays: top-k and top-p by bisection for a threshold, without a sort.

A threshold is searched for among the bit patterns of f32 numbers in their order, one bit at a time, so that it is exact
after 32 counts; a sort of 8192 logits costs many times that on every device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def top_k(logits: jax.Array, k: jax.Array) -> jax.Array:
    """-inf for all but the k largest of f32[...,K]; those equal to the k-th stay. k: i32[], none or all are filtered at 0."""
    keys = _ordered(logits)
    enough = lambda threshold: (keys >= threshold).sum(-1, keepdims=True) >= k
    return jnp.where((keys >= _largest(enough, keys)) | (k <= 0), logits, -jnp.inf)


def top_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """-inf for all but the fewest largest of f32[...,K] whose probabilities sum to p, f32[], at least; 1 filters nothing."""
    keys, shares = _ordered(logits), jax.nn.softmax(logits, axis=-1)
    enough = lambda threshold: jnp.where(keys >= threshold, shares, 0).sum(-1, keepdims=True) >= p
    return jnp.where((keys >= _largest(enough, keys)) | (p >= 1), logits, -jnp.inf)


def _ordered(x: jax.Array) -> jax.Array:
    """u32 in the order of the f32 numbers x, the two zeros equal."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, jnp.float32(0), x), jnp.uint32)
    return jnp.where(bits >> 31, ~bits, bits | jnp.uint32(1 << 31))


def _largest(enough: Callable[[jax.Array], jax.Array], keys: jax.Array) -> jax.Array:
    """The largest u32[...,1] threshold that still lets enough pass, and the largest key."""

    def narrow(bit, threshold):
        higher = threshold | jnp.uint32(1) << (31 - bit).astype(jnp.uint32)
        return jnp.where(enough(higher), higher, threshold)

    return jnp.minimum(jax.lax.fori_loop(0, 32, narrow, jnp.zeros_like(keys[..., :1])), keys.max(-1, keepdims=True))
