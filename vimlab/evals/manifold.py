"""Two sets of features as manifolds: precision, recall, density and coverage by balls around each image.

"Improved Precision and Recall Metric for Assessing Generative Models" (Kynkäänniemi et al., 2019) and "Reliable Fidelity and
Diversity Metrics for Generative Models" (Naeem et al., 2020).
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from vimlab.config import ConfigError
from vimlab.evals.devices import alone
from vimlab.evals.feature_sets import check

# Rows compared with as many others at a time. The blocks follow the set's order, so no size of batches enters a figure.
BLOCK = 4096


def manifold_metrics(
    samples: np.ndarray, reference: np.ndarray, *, neighbours: int = 3, density_neighbours: int = 5, block: int = BLOCK
) -> dict[str, float]:
    """How the samples lie among the reference, and the reference among the samples.

    The ball of an image reaches to its k-th nearest neighbour in its own set, itself not counted.

    Args:
      samples: f32[N,D]; may lie on disk (`np.memmap`): block x block distances and two blocks of rows are in memory at a time.
      reference: f32[M,D], the same.
      neighbours: k of precision and recall (the paper's is 3).
      density_neighbours: k of density and coverage (the paper's is 5).
      block: rows at a time.

    Returns:
      "precision": share of samples in a ball of the reference, its surface included.
      "recall": share of the reference in a ball of the samples, the same.
      "density": balls of the reference that hold a sample, surface excluded, mean over samples, divided by k; may exceed 1.
      "coverage": share of the reference whose ball, surface excluded, holds a sample.

    Raises:
      ConfigError: no more images than neighbours, other dimensions, or numbers that are not finite.
    """
    if min(neighbours, density_neighbours) < 1:
        raise ConfigError(f"a ball needs at least 1 neighbour, not {min(neighbours, density_neighbours)}")
    name = f"precision, recall, density and coverage with {neighbours} and {density_neighbours} neighbours"
    check(name, samples, reference, at_least=(neighbours + 1, max(neighbours, density_neighbours) + 1))
    # Distances come from norms and products; off a common centre these are smaller and f32 loses less.
    centre = reference.mean(0, dtype=np.float64)
    block = min(block, max(len(samples), len(reference)))
    ours, theirs = _Blocks(samples, centre, block), _Blocks(reference, centre, block)
    within, balls = np.zeros(ours.padded, bool), np.zeros(ours.padded, np.int64)
    reached, nearest = np.zeros(theirs.padded, bool), np.full(theirs.padded, np.inf, np.float32)
    with alone():
        recall_radii = _radii(ours, (neighbours,))[0]
        precision_radii, density_radii = _radii(theirs, (neighbours, density_neighbours))
        for i, rows in ours:
            for j, others in theirs:
                found = _meet(rows, others, recall_radii[i], precision_radii[j], density_radii[j])
                in_ball, held, held_by, least = (np.asarray(x) for x in found)
                within[i] |= in_ball
                balls[i] += held
                reached[j] |= held_by
                nearest[j] = np.minimum(nearest[j], least)
    count, others_count = len(samples), len(reference)
    return {
        "precision": float(within[:count].mean()),
        "recall": float(reached[:others_count].mean()),
        "density": float(balls[:count].mean() / density_neighbours),
        "coverage": float((nearest < density_radii)[:others_count].mean()),
    }


class _Blocks:
    """(place, (rows f32[block,D], squared norms f32[block])) over a set; rows that fill the last block up lie infinitely far."""

    def __init__(self, features: np.ndarray, centre: np.ndarray, block: int):
        self._features, self._centre, self._block = features, centre, block
        self.padded = -(-len(features) // block) * block

    def __iter__(self) -> Iterator[tuple[slice, tuple[np.ndarray, np.ndarray]]]:
        return self.after(0)

    def after(self, start: int) -> Iterator[tuple[slice, tuple[np.ndarray, np.ndarray]]]:
        """From the block at `start` on."""
        for first in range(start, self.padded, self._block):
            given = self._features[first : first + self._block]
            rows = np.zeros((self._block, len(self._centre)), np.float32)
            rows[: len(given)] = given - self._centre
            norms = np.full(self._block, np.inf, np.float32)
            norms[: len(given)] = np.square(rows[: len(given)], dtype=np.float64).sum(1)
            yield slice(first, first + self._block), (rows, norms)


def _radii(blocks: _Blocks, neighbours: tuple[int, ...]) -> list[np.ndarray]:
    """Squared distances f32[padded] to the k-th neighbour for each k; -1 for the rows that fill up."""
    nearest = np.full((blocks.padded, max(neighbours) + 1), np.inf, np.float32)
    for i, rows in blocks:
        for j, others in blocks.after(i.start):
            nearest[i], swapped = _nearest(nearest[i], nearest[j], rows, others)
            if i != j:
                nearest[j] = swapped
    # A row's own distance, 0, is the first of its k + 1 smallest.
    return [np.where(np.isfinite(nearest[:, k]), nearest[:, k], -1) for k in neighbours]


def _squared(rows: tuple[jax.Array, jax.Array], others: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Squared distances f32[N,M]."""
    (x, x_norms), (y, y_norms) = rows, others
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(x_norms[:, None] + y_norms[None] - 2 * product, 0)


@jax.jit
def _nearest(mine, theirs, rows, others):
    """The k + 1 smallest squared distances of each side so far, f32[N,k+1] and f32[M,k+1], after both blocks have met."""
    squared = _squared(rows, others)
    smallest = lambda known, new: -jax.lax.top_k(-jnp.concatenate([known, new], 1), known.shape[1])[0]
    return smallest(mine, squared), smallest(theirs, squared.T)


@jax.jit
def _meet(rows, others, recall_radii, precision_radii, density_radii):
    """Of each row, whether a ball of the others holds it, and how many do; of each other, whether a row's ball holds it, and
    the squared distance to the nearest row."""
    squared = _squared(rows, others)
    within = (squared <= precision_radii[None]).any(1)
    balls = (squared < density_radii[None]).sum(1)
    return within, balls, (squared <= recall_radii[:, None]).any(0), squared.min(0)
