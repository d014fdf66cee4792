"""The Inception Score: how sure a classifier is of each image, and how evenly its classes are met."""

import numpy as np

from vimlab.config import ConfigError
from vimlab.evals.feature_sets import check_finite


def inception_score(logits: np.ndarray, *, splits: int = 10, seed: int | None = 2020) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) of each split; mean and standard deviation (population) over splits, in f64.

    "Improved Techniques for Training GANs" (Salimans et al., 2016). Split i holds the rows from i N // splits to
    (i + 1) N // splits.

    Args:
      logits: f32[N,K], in the set's order; may lie on disk (`np.memmap`).
      splits: into how many parts the set falls.
      seed: rows are first shuffled by np.random.RandomState(seed), as torch-fidelity does, so that a set in the order of its
        classes does not fall into splits of few classes; None keeps the order, as guided-diffusion does.

    Returns:
      (mean, standard deviation), each mean from 1 to K.

    Raises:
      ConfigError: fewer than two images a split, or logits that are not finite.
    """
    if logits.ndim != 2:
        raise ConfigError(f"the Inception Score takes logits [N,K], not an array of shape {logits.shape}")
    count = len(logits)
    if splits < 1 or count < 2 * splits:
        raise ConfigError(
            f"the Inception Score over {splits} splits needs at least {2 * max(splits, 1)} images, but was given {count}; "
            "give more, or ask for fewer splits"
        )
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    scores = [_score(logits[order[i * count // splits : (i + 1) * count // splits]]) for i in range(splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: np.ndarray) -> float:
    check_finite(logits, "the logits")
    x = np.asarray(logits, np.float64)
    x = x - x.max(1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    p = np.exp(log_p)
    # A class that no image can be of has p log p = 0, also where its mean probability is 0.
    mean = p.mean(0)
    log_mean = np.log(np.where(mean > 0, mean, 1))
    return float(np.exp((p * (log_p - log_mean)).sum(1).mean()))
