"""The Inception Score: how sure a classifier is of each image, and how evenly its classes are met."""

from collections.abc import Iterable

import numpy as np

from vimlab.config import ConfigError
from vimlab.evals.feature_sets import check_finite


def inception_score(logits: Iterable[np.ndarray], count: int, *, splits: int = 10, seed: int | None = 2020) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) of each split; mean and standard deviation (population) over splits, in f64.

    "Improved Techniques for Training GANs" (Salimans et al., 2016). Split i holds the rows from i N // splits to
    (i + 1) N // splits.

    Args:
      logits: f32[B,K] each, in the set's order; one part is in memory at a time.
      count: N, rows in all.
      splits: into how many parts the set falls.
      seed: rows are first shuffled by np.random.RandomState(seed), as torch-fidelity does, so that a set in the order of its
        classes does not fall into splits of few classes; None keeps the order, as guided-diffusion does.

    Returns:
      (mean, standard deviation), each mean from 1 to K.

    Raises:
      ConfigError: fewer than two images a split, another count than said, or logits that are not finite.
    """
    check_count(count, splits)
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    split_of, sizes = np.empty(count, np.int64), np.diff([i * count // splits for i in range(splits + 1)])
    split_of[order] = np.repeat(np.arange(splits), sizes)
    seen, entropies, shares = 0, np.zeros(splits), None
    for part in logits:
        if part.ndim != 2 or seen + len(part) > count:
            raise ConfigError(f"the Inception Score of {count} images takes as many logits [N,K], not an array of shape {part.shape} after {seen}")
        check_finite(part, "the logits")
        x = part.astype(np.float64)
        x -= x.max(1, keepdims=True)
        log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
        p, mine = np.exp(log_p), split_of[seen : seen + len(part)]
        shares = np.zeros((splits, p.shape[1])) if shares is None else shares
        np.add.at(shares, mine, p)
        np.add.at(entropies, mine, (p * log_p).sum(1))
        seen += len(part)
    if seen != count:
        raise ConfigError(f"the Inception Score of {count} images was given the logits of {seen}")
    mean = shares / sizes[:, None]
    # A class that no image can be of has p log p = 0.
    scores = np.exp(entropies / sizes - (mean * np.log(np.where(mean > 0, mean, 1))).sum(1))
    return float(scores.mean()), float(scores.std())


def check_count(count: int, splits: int) -> None:
    """Raises ConfigError where there are too few images for the splits."""
    if splits < 1 or count < 2 * splits:
        raise ConfigError(
            f"the Inception Score over {splits} splits needs at least {2 * max(splits, 1)} images, but was given {count}; "
            "give more, or ask for fewer splits"
        )
