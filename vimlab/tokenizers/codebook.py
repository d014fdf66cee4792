"""The life of a codebook during training: which codes are used, and new places for those that are not.

A code that no latent chooses gets no gradient and stays where it is for good: this is how codebooks collapse. Such
codes are moved onto latents of the current batch, inside the compiled step, as a pure function of (state, batch, key).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vimlab.config import Duration

NEVER_USED = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReseedConfig:
    """When unused codes are moved.

    Attributes:
      every: steps between two rounds of re-seeding; a code counts as unused if no latent chose it since the last.
        Step 0 is the first round, so that the codebook starts from data.
      until: no re-seeding from this point of training on, so that the last codes settle.
    """

    every: Duration = Duration(25)
    until: Duration | None = None


def count_codes(ids: jax.Array, codes: int) -> jax.Array:
    """How often each code occurs: i32[...] → i32[codes]."""
    return jnp.zeros(codes, jnp.int32).at[ids.reshape(-1)].add(1)


def idle_steps(idle: jax.Array, counts: jax.Array) -> jax.Array:
    """Steps since each code was last used, after a step with these counts: i32[K], i32[K] → i32[K]."""
    return jnp.where(counts > 0, 0, jnp.minimum(idle, NEVER_USED) + 1)


def perplexity(counts: jax.Array) -> jax.Array:
    """exp of the entropy (nats) of the codes' frequencies: i32[K] → f32[]."""
    p = counts / jnp.maximum(counts.sum(), 1)
    return jnp.exp(-jnp.where(p > 0, p * jnp.log(jnp.maximum(p, 1e-30)), 0.0).sum())


def reseed(key: jax.Array, dead: jax.Array, latents: jax.Array, codebook: jax.Array) -> jax.Array:
    """Moves dead codes onto latents drawn from the batch, without replacement where there are enough.

    Args:
      key: PRNG key of this round.
      dead: bool[K].
      latents: f32[B,N,C] of the global batch, so that the result is the same on every mesh.
      codebook: f32[K,C].

    Returns:
      f32[K,C].
    """
    flat = latents.reshape(-1, latents.shape[-1])
    chosen = jax.random.choice(key, flat.shape[0], (codebook.shape[0],), replace=flat.shape[0] < codebook.shape[0])
    return jnp.where(dead[:, None], flat[chosen], codebook)


def forget_moments(opt_state: Any, dead: jax.Array, name: str) -> Any:
    """Zeroes the optimizer moments that belong to dead codes, found by the parameter's name at the end of their path.

    Args:
      opt_state: any optax state over parameters that hold the codebook.
      dead: bool[K].
      name: the parameter's key.
    """

    def forget(path, leaf):
        mine = path and getattr(path[-1], "key", None) == name and leaf.ndim and leaf.shape[0] == dead.size
        return jnp.where(dead.reshape((-1,) + (1,) * (leaf.ndim - 1)), 0, leaf) if mine else leaf

    return jax.tree_util.tree_map_with_path(forget, opt_state)
