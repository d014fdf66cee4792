"""Losses of vector quantization, per example: codebook, commitment, and the entropy of soft assignments."""

from typing import Literal

import jax
import jax.numpy as jnp

Reduction = Literal["mean", "sum"]


def codebook_loss(latents: jax.Array, codes: jax.Array, beta: float, reduction: Reduction) -> jax.Array:
    """`|sg[z] - e|^2 + beta |z - sg[e]|^2`, averaged over positions (section 3.2 of the ViT-VQGAN paper).

    Args:
      latents: f32[B,N,C], as they were compared with the codes (normalised where the codes are).
      codes: f32[B,N,C], the codes chosen.
      beta: weight of the commitment term.
      reduction: over the C dimensions; the paper leaves it open, public code takes the mean.

    Returns:
      f32[B].
    """
    reduce = jnp.mean if reduction == "mean" else jnp.sum
    distance = lambda a, b: reduce(jnp.square(a - b), axis=-1).mean(-1)
    return distance(jax.lax.stop_gradient(latents), codes) + beta * distance(latents, jax.lax.stop_gradient(codes))


def entropy_loss(latents: jax.Array, codebook: jax.Array, temperature: float) -> jax.Array:
    """Entropy of each latent's soft assignment less the entropy of the batch's mean assignment: f32[].

    Low when every latent is sure of its code and all codes are used alike. Materialises the B·N·K assignments.
    """
    logits = 2 * jnp.einsum("bnc,kc->bnk", latents, codebook) - jnp.square(codebook).sum(-1)
    log_p = jax.nn.log_softmax(logits / temperature)
    p = jnp.exp(log_p)
    mean = p.mean((0, 1))
    return -(p * log_p).sum(-1).mean() + (mean * jnp.log(mean + 1e-12)).sum()
