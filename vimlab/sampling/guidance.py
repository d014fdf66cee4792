"""Classifier-free guidance, `u + s (c - u)`: s = 1 is the conditional model, s = 0 the unconditional one (Parti, section 2.1)."""

from typing import Literal

import jax
import numpy as np

Schedule = Literal["constant", "linear", "cosine"]


def guide(conditional: jax.Array, unconditional: jax.Array, scale: jax.Array) -> jax.Array:
    """The guided logits, f32[...]. Written so that a scale of 1 gives the conditional ones to the last bit."""
    return conditional + (scale - 1) * (conditional - unconditional)


def scales(scale: float, schedule: Schedule, length: int) -> np.ndarray:
    """The scale at each position, f32[length]: the same everywhere, or rising from 1 at the first to `scale` at the last."""
    progress = np.linspace(0, 1, length, dtype=np.float32)
    share = {"constant": np.ones_like(progress), "linear": progress, "cosine": (1 - np.cos(np.pi * progress)) / 2}[schedule]
    return (1 + (scale - 1) * share).astype(np.float32)
