"""Nearest-code search in f32 at the highest precision, one block of scores at a time."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from vimlab.parallel.rules import RULES

# Scores held at once: this many latents against the whole codebook. On a CPU a block of 8192 x 128 f32 stays in the
# caches; accelerators want blocks that fill their matrix units.
CPU_ROWS, ACCELERATOR_ROWS = 128, 8192


def nearest_codes(latents: jax.Array, codebook: jax.Array) -> jax.Array:
    """The index of the code nearest to each latent in Euclidean distance; the lowest index among equals.

    The scores are walked over blocks of positions, never of examples, so that a batch that is sharded stays so.

    Args:
      latents: f32[B,N,C].
      codebook: f32[K,C].

    Returns:
      i32[B,N].
    """
    # By the platform that the program is compiled for, which need not be this process's.
    return lax.platform_dependent(latents, codebook, cpu=partial(_nearest, CPU_ROWS), default=partial(_nearest, ACCELERATOR_ROWS))


def _nearest(rows: int, latents: jax.Array, codebook: jax.Array) -> jax.Array:
    b, n, c = latents.shape
    # A device's share of the batch: blocks of its own size, whose sums do not depend on how many devices there are beside it.
    mesh = jax.sharding.get_abstract_mesh()
    share = -(-b // math.prod(mesh.shape.get(axis, 1) for axis in RULES["batch"]))
    block = max(1, min(n, rows // share))
    blocks = -(-n // block)
    padded = jnp.pad(latents, ((0, 0), (0, blocks * block - n), (0, 0)))
    padded = padded.reshape(b, blocks, block, c).transpose(1, 0, 2, 3)
    # argmin |z - e|^2 = argmax z·e - |e|^2 / 2, the last term as one more dimension: one pass over the scores less.
    codes = jnp.concatenate([codebook, -jnp.square(codebook).sum(-1, keepdims=True) / 2], -1)
    padded = jnp.concatenate([padded, jnp.ones_like(padded[..., :1])], -1)
    ids = jnp.arange(codebook.shape[0], dtype=jnp.int32)[:, None]

    def search(block_latents):
        # Codes are the rows of the scores: the best of a column is found in vector steps, that of a row is not.
        flat = block_latents.reshape(b * block, c + 1)
        scores = jnp.einsum("kc,nc->kn", codes, flat, precision=lax.Precision.HIGHEST)
        # Faster than argmax, which XLA does not vectorise on CPUs; the same result. A column of NaN gives K - 1.
        best = jnp.where(scores == scores.max(0), ids, codebook.shape[0] - 1).min(0)
        return best.reshape(b, block)

    found = lax.map(search, padded)
    return found.transpose(1, 0, 2).reshape(b, blocks * block)[:, :n]
