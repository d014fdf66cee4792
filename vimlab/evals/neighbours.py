"""Whether a generator repeats its training pictures: the nearest of them to each drawn one, in an extractor's features."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vimlab import pictures
from vimlab.evals.devices import alone
from vimlab.evals.evaluator import Subject
from vimlab.evals.features import Pass

BLOCK = 512
SHOWN, NEAREST = 8, 4


def nearest(rows: np.ndarray, others: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest of others f32[M,D] to each of rows f32[N,D]: Euclidean distances f32[N,count] and places i32[N,count]."""
    centre = others.mean(0)
    with alone():
        others = jnp.asarray(others - centre)
        found = [_nearest(rows[i : i + BLOCK] - centre, others, count) for i in range(0, len(rows), BLOCK)]
        squared, places = (np.concatenate(x) for x in zip(*jax.device_get(found), strict=True))
    return np.sqrt(np.maximum(squared, 0)), places


@functools.partial(jax.jit, static_argnums=2)
def _nearest(rows: jax.Array, others: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    product = jnp.matmul(rows, others.T, precision=jax.lax.Precision.HIGHEST)
    negative, places = jax.lax.top_k(2 * product - jnp.square(others).sum(-1) - jnp.square(rows).sum(-1)[:, None], count)
    return -negative, places


def ratio(drawn: np.ndarray, real: np.ndarray, training: np.ndarray) -> float:
    """Mean distance of drawn pictures to their nearest training picture over that of unseen real ones; well below 1 is copying."""
    mean = lambda rows: float(nearest(rows, training)[0].astype(np.float64).mean())
    return mean(drawn) / max(mean(real), 1e-12)


def grid(subject: Subject, count: int, shown: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Drawn pictures uint8[n,H,W,3], each beside the training pictures at places i32[n,k] among `count` of them, nearest first."""
    return pictures.grid([np.concatenate([image[None], beside]) for image, beside in zip(shown, _training(subject, count, places), strict=True)])


def _training(subject: Subject, count: int, places: np.ndarray) -> Sequence[np.ndarray]:
    rows, found = Pass(subject.training(count)[1]), {}
    for place in np.unique(places):
        found[int(place)] = rows.take(int(place), int(place) + 1)["image"][0]
    return [np.stack([found[int(p)] for p in row]) for row in places]
