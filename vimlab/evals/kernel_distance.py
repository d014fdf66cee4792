"""The kernel distance between two sets of features (KID with Inception's): a squared MMD without bias, over random subsets.

"Demystifying MMD GANs" (Binkowski et al., 2018). Subsets are drawn as torch-fidelity draws them, so that the same features
give the same figure there.
"""

import numpy as np

from vimlab.config import ConfigError
from vimlab.evals.feature_sets import check

# For protocols, beside the numbers of subsets, images and the seed.
RULE = (
    "mean over subsets of the unbiased squared MMD under (x·y/D + 1)^3; each subset is drawn without replacement from the samples, "
    "then from the reference, by one np.random.RandomState(seed) (torch-fidelity)"
)


def kernel_distance(
    samples: np.ndarray, reference: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and standard deviation (population) over subsets of the squared maximum mean discrepancy, in f64.

    The mean has no bias whatever the size of the sets, so it may fall below 0 where they are alike.

    Args:
      samples: f32[N,D]; may lie on disk (`np.memmap`).
      reference: f32[M,D], the same.
      subsets: how many pairs of subsets.
      subset_size: images in each, at most N and M.
      seed: of the draw of subsets.

    Raises:
      ConfigError: too few images, other dimensions, or numbers that are not finite.
    """
    if subsets < 1 or subset_size < 2:
        raise ConfigError(f"the kernel distance needs at least 1 subset of at least 2 images, not {subsets} of {subset_size}")
    check(f"the kernel distance with subsets of {subset_size}", samples, reference, at_least=(subset_size, subset_size))
    generator, distances = np.random.RandomState(seed), []
    for _ in range(subsets):
        x, y = (
            np.asarray(features[generator.choice(len(features), subset_size, replace=False)], np.float64)
            for features in (samples, reference)
        )
        distances.append(_within(x) + _within(y) - 2 * _kernel(x, y).mean())
    return float(np.mean(distances)), float(np.std(distances))


def _within(x: np.ndarray) -> float:
    """Mean of the kernel over all pairs of different rows."""
    kernel = _kernel(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x·y/D + 1)³, f64[N,M]."""
    inner = x @ y.T
    inner /= x.shape[1]
    inner += 1
    return inner * inner * inner
