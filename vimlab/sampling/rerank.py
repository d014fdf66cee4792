"""Choosing among the images drawn for one prompt: scorers by name, and the best of each prompt."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vimlab.sampling.sampler import in_groups
from vimlab.scoring.scorers import SCORERS, ImageTextScorer, cosines

Predict = Mapping[str, Callable[..., Any]]


@runtime_checkable
class Scorer(Protocol):
    """How well images fit their conditions."""

    def __call__(self, images: np.ndarray, ids: np.ndarray, conditions: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """f32[M], higher is better.

        Args:
          images: uint8[M,H,W,3].
          ids: i32[M,N], their tokens.
          conditions: labels i32[M] or text ids i32[M,T].
          names: M texts or names of classes that the conditions stand for.
        """


def likelihood(predict: Predict, ways: int) -> Scorer:
    """The generator's own mean log-likelihood of the tokens under the condition, nats a token.

    It is the model's: neither temperature nor filters nor guidance, with which the images may have been drawn, enter it.
    Uses predict["nll"]: (ids i32[B,N], condition) → f32[B,N], on `ways` data-parallel devices.
    """

    def score(images: np.ndarray, ids: np.ndarray, conditions: np.ndarray, names: Sequence[str]) -> np.ndarray:
        return -in_groups(predict["nll"], ids, conditions, ways=ways).mean(-1)

    return score


def image_text(network: ImageTextScorer) -> Scorer:
    """The cosine of an image and its text, or the name of its class, in a pretrained network's space."""

    def score(images: np.ndarray, ids: np.ndarray, conditions: np.ndarray, names: Sequence[str]) -> np.ndarray:
        return cosines(network, images, names)

    return score


# What images may be ranked by; all but the first by files that the user has.
RANKINGS = ("likelihood", *SCORERS)


def best(scores: np.ndarray, per_prompt: int, keep: int) -> np.ndarray:
    """The places of the `keep` highest of each prompt's scores, best first; of equals the earlier, and NaN last.

    Args:
      scores: f32[P·per_prompt], prompt after prompt.
      per_prompt: images of one prompt.
      keep: at most `per_prompt`.

    Returns:
      i64[P,keep], into `scores`.
    """
    order = np.argsort(-scores.reshape(-1, per_prompt), axis=1, kind="stable")[:, :keep]
    return order + np.arange(len(order))[:, None] * per_prompt
