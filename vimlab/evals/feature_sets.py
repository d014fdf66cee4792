"""What metrics between two sets of features ask of their input, said in one sentence where it is not so."""

import numpy as np

from vimlab.config import ConfigError

# Rows looked at at a time, so that a set on disk (`np.memmap`) stays there.
ROWS = 4096


def check(metric: str, samples: np.ndarray, reference: np.ndarray, *, at_least: tuple[int, int]) -> None:
    """Refuses sets that a metric cannot compare.

    Args:
      metric: its name, for the message.
      samples, reference: [N,D] and [M,D].
      at_least: how many of each the metric needs.

    Raises:
      ConfigError: features that are not rows of the same length, are too few, or are not finite.
    """
    for name, features, needed in zip(("samples", "reference"), (samples, reference), at_least, strict=True):
        if features.ndim != 2:
            raise ConfigError(f"{metric}: the features of the {name} must be rows [N,D], not an array of shape {features.shape}")
        if len(features) < needed:
            raise ConfigError(f"{metric} needs the features of at least {needed} images in the {name}, but was given {len(features)}")
    if samples.shape[1] != reference.shape[1]:
        raise ConfigError(
            f"{metric}: the samples have features of {samples.shape[1]} numbers and the reference of {reference.shape[1]}; "
            "extract both with the same network"
        )
    for name, features in (("samples", samples), ("reference", reference)):
        for start in range(0, len(features), ROWS):
            check_finite(features[start : start + ROWS], f"{metric}: the features of the {name}")


def check_finite(features: np.ndarray, what: str) -> None:
    """Raises ConfigError where a number is not finite."""
    if not np.isfinite(features).all():
        raise ConfigError(f"{what} hold numbers that are not finite; look at the images and at the extractor's weights")
