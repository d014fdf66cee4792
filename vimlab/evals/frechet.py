"""The Fréchet distance between two sets of features: streaming moments in f64, and the distance between their Gaussians.

"GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium" (Heusel et al., 2017). It is FID only
where the features are those of the Inception network that published figures use; else it bears its extractor's name.
"""

import dataclasses

import numpy as np

from vimlab.config import ConfigError
from vimlab.evals.feature_sets import check_finite

# Rows gathered before they enter the second moment: an update touches all D x D numbers, whether it brings one row or many.
BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """What the distance knows of a set.

    Attributes:
      mean: f64[D].
      covariance: f64[D,D], of the sample (divided by count - 1).
    """

    mean: np.ndarray
    covariance: np.ndarray


class Moments:
    """Mean and covariance of features that come in batches.

    Rows enter in blocks of the set's order, so that the size of the batches does not touch the figures at all; parts of a
    set, summed apart and merged, agree with the whole to rounding.

    Args:
      dimensions: D.
    """

    def __init__(self, dimensions: int):
        self._mean, self._scatter = np.zeros(dimensions), np.zeros((dimensions, dimensions))
        self._folded, self._waiting = 0, 0
        self._block = np.empty((BLOCK, dimensions))

    @property
    def dimensions(self) -> int:
        """D."""
        return len(self._mean)

    @property
    def count(self) -> int:
        """Rows seen."""
        return self._folded + self._waiting

    def add(self, features: np.ndarray) -> None:
        """Adds rows f32[B,D]. Raises ConfigError where they have another length or are not finite."""
        if features.ndim != 2 or features.shape[1] != self.dimensions:
            raise ConfigError(f"features must be rows of {self.dimensions} numbers, not an array of shape {features.shape}")
        check_finite(features, f"the features after the first {self.count} images")
        while len(features):
            taken = features[: BLOCK - self._waiting]
            features = features[len(taken) :]
            self._block[self._waiting : self._waiting + len(taken)] = taken
            self._waiting += len(taken)
            if self._waiting == BLOCK:
                self._fold()

    def merge(self, other: "Moments") -> None:
        """Adds what another has seen. Raises ConfigError where its features have another length."""
        if other.dimensions != self.dimensions:
            raise ConfigError(f"moments of {other.dimensions} dimensions cannot be merged into those of {self.dimensions}")
        self._fold()
        other._fold()
        self._combine(other._folded, other._mean, other._scatter)

    @property
    def mean(self) -> np.ndarray:
        """f64[D]. Raises ConfigError before the second row."""
        return self.gaussian().mean

    @property
    def covariance(self) -> np.ndarray:
        """f64[D,D], divided by count - 1. Raises ConfigError before the second row."""
        return self.gaussian().covariance

    def gaussian(self) -> Gaussian:
        """Mean and covariance of all rows so far. Raises ConfigError before the second row."""
        self._fold()
        if self.count < 2:
            raise ConfigError(f"a covariance needs the features of at least 2 images, but was given {self.count}")
        return Gaussian(self._mean.copy(), self._scatter / (self.count - 1))

    def _fold(self) -> None:
        """Takes in the rows that wait."""
        if block := self._waiting:
            rows, self._waiting = self._block[:block], 0
            mean = rows.mean(0)
            rows -= mean
            self._combine(block, mean, rows.T @ rows)

    def _combine(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        """Chan, Golub and LeVeque's update (1979): moments of two parts from those of each, both centred on their own mean."""
        if not count:
            return
        total, shift = self._folded + count, mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(shift * (self._folded * (count / total)), shift)
        self._mean += shift * (count / total)
        self._folded = total


def frechet_distance(a: Gaussian | Moments, b: Gaussian | Moments) -> float:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½), in f64, never below 0.

    The last trace is the sum of the singular values of A'B, where S1 = AA' and S2 = BB' come from symmetric
    eigendecompositions. That takes no root of a rounding error: it is as exact for 50 images in 2048 dimensions, whose
    covariances are singular, as for 50,000, and has neither the imaginary parts nor the offsets of a general matrix root.

    Raises:
      ConfigError: fewer than 2 images, other dimensions, or numbers that are not finite.
    """
    a, b = (x.gaussian() if isinstance(x, Moments) else x for x in (a, b))
    for x in (a, b):
        if x.mean.ndim != 1 or x.covariance.shape != 2 * x.mean.shape:
            raise ConfigError(f"a covariance of shape {x.covariance.shape} does not belong to a mean of shape {x.mean.shape}")
        check_finite(x.mean, "the statistics")
        check_finite(x.covariance, "the statistics")
    if a.mean.shape != b.mean.shape:
        raise ConfigError(
            f"features of {len(a.mean)} and of {len(b.mean)} numbers have no Fréchet distance; extract both with the same network"
        )
    overlap = _factor(a.covariance).T @ _factor(b.covariance)
    cross = np.linalg.svd(overlap, compute_uv=False).sum() if overlap.size else 0.0
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(max(np.square(a.mean - b.mean).sum() + traces - 2 * cross, 0.0))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A f64[D,rank] with AA' = S; eigenvalues that are zero but for rounding are left out."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0)
    return vectors[:, kept] * np.sqrt(values[kept])
