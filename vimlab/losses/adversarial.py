"""Adversarial losses of generator and discriminator, and the R1 gradient penalty, one number an example.

Two forms: `softplus` (non-saturating logistic, StyleGAN2's) and `hinge`. All take logits f32[B], larger meaning "real".
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Form = Literal["softplus", "hinge"]


def generator_loss(fake_logits: jax.Array, form: Form = "softplus") -> jax.Array:
    """What the generator minimises: softplus(-D(fake)), or -D(fake) for hinge. f32[B] → f32[B]."""
    fake = fake_logits.astype(jnp.float32)
    return jax.nn.softplus(-fake) if form == "softplus" else -fake


def discriminator_loss(real_logits: jax.Array, fake_logits: jax.Array, form: Form = "softplus") -> jax.Array:
    """What the discriminator minimises: its loss on real pictures plus its loss on fake ones. f32[B] twice → f32[B].

    softplus: softplus(-D(real)) + softplus(D(fake)); hinge: max(0, 1 - D(real)) + max(0, 1 + D(fake)).
    """
    real, fake = real_logits.astype(jnp.float32), fake_logits.astype(jnp.float32)
    if form == "softplus":
        return jax.nn.softplus(-real) + jax.nn.softplus(fake)
    return jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)


def r1_penalty(logits_fn: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Squared norm of the logits' gradient with respect to each real picture's pixels: f32[B,H,W,3] in [0,1] → f32[B].

    The gradient is of the *sum* of the logits (a vjp with ones), so a picture's penalty does not shrink with the batch
    as it would under their mean. Where the discriminator couples pictures (minibatch-std), row b also holds b's effect
    on the other logits of its group, as in StyleGAN2. Summed over pixels and channels, never averaged.

    Convention: the discriminator's loss adds `gamma / 2 * mean(r1) * every` on every `every`-th step and nothing on the
    others ("lazy" regularisation). The norm is per unit of the pixel range [0,1]: for pictures in [-1,1] it would be a
    quarter of that, so a gamma from such a code base is divided by 4. Gradients pass through the discriminator twice;
    give `logits_fn` an f32 compute type.
    """
    logits, vjp = jax.vjp(logits_fn, images.astype(jnp.float32))
    (gradient,) = vjp(jnp.ones_like(logits))
    return jnp.square(gradient.astype(jnp.float32)).sum(axis=tuple(range(1, images.ndim)))
