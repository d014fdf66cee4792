"""Reconstruction losses and PSNR, one number an example: images f32[B,H,W,3] in [0,1] → f32[B].

Means run over pixels and channels, so that a weight means the same at every resolution.
"""

import jax
import jax.numpy as jnp


def _mean(x: jax.Array) -> jax.Array:
    return x.mean(axis=tuple(range(1, x.ndim)))


def l2(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Mean squared error. f32[B,H,W,3] twice → f32[B]."""
    return _mean(jnp.square(images.astype(jnp.float32) - reconstructions.astype(jnp.float32)))


def l1(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Mean absolute error. f32[B,H,W,3] twice → f32[B]."""
    return _mean(jnp.abs(images.astype(jnp.float32) - reconstructions.astype(jnp.float32)))


def psnr(images: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of images clipped to [0,1], for peak 1. f32[B,H,W,3] twice → f32[B].

    Equal images give 100 dB rather than infinity, so that means over a data set stay finite.
    """
    return -10.0 * jnp.log10(jnp.maximum(l2(jnp.clip(images, 0.0, 1.0), jnp.clip(reconstructions, 0.0, 1.0)), 1e-10))


def logit_laplace_nll(images: jax.Array, mean: jax.Array, log_scale: jax.Array, epsilon: float = 0.1) -> jax.Array:
    """Negative log-likelihood, in nats a value, of images under a Laplace distribution of their logits.

    An image value v in [0,1] becomes x = (1 - 2 epsilon) v + epsilon, which keeps its logit finite, and
    p(x) = exp(-|logit(x) - mean| / b) / (2 b x (1 - x)) with b = exp(log_scale): "Zero-Shot Text-to-Image Generation",
    appendix A.3. ViT-VQGAN (section 3.2) uses the loss and names no epsilon; 0.1 is the cited paper's.

    Args:
      images: f32[B,H,W,3] in [0,1].
      mean: f32[B,H,W,3], of the logit.
      log_scale: f32[B,H,W,3], ln b.
      epsilon: in (0, 0.5); the image range maps to [epsilon, 1 - epsilon].

    Returns:
      f32[B]; a density, so it may be negative.
    """
    x = (1.0 - 2.0 * epsilon) * images.astype(jnp.float32) + epsilon
    mean, log_scale = mean.astype(jnp.float32), log_scale.astype(jnp.float32)
    logit = jnp.log(x) - jnp.log1p(-x)
    return _mean(jnp.abs(logit - mean) * jnp.exp(-log_scale) + log_scale + jnp.log(2.0 * x * (1.0 - x)))


def logit_laplace_image(mean: jax.Array, epsilon: float = 0.1) -> jax.Array:
    """The image at a logit-Laplace mean: the map to [epsilon, 1 - epsilon] undone. f32[B,H,W,3] → f32[B,H,W,3] in [0,1]."""
    return jnp.clip((jax.nn.sigmoid(mean.astype(jnp.float32)) - epsilon) / (1.0 - 2.0 * epsilon), 0.0, 1.0)
