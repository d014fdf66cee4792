"""Choosing among the images drawn for one prompt: scorers by name, and the best of each prompt."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vimlab.sampling.sampler import in_groups

Predict = Mapping[str, Callable[..., Any]]


@runtime_checkable
class Scorer(Protocol):
    """How well images fit their conditions."""

    def __call__(self, images: np.ndarray, ids: np.ndarray, conditions: np.ndarray) -> np.ndarray:
        """f32[M], higher is better, of uint8[M,H,W,3], their tokens i32[M,N], and labels i32[M] or text ids i32[M,T]."""


def likelihood(predict: Predict) -> Scorer:
    """The generator's own mean log-likelihood of the tokens under the condition, nats a token.

    It is the model's: neither temperature nor filters nor guidance, with which the images may have been drawn, enter it.
    Uses predict["nll"]: (ids i32[B,N], condition) → f32[B,N].
    """

    def score(images: np.ndarray, ids: np.ndarray, conditions: np.ndarray) -> np.ndarray:
        return -in_groups(predict["nll"], ids, conditions).mean(-1)

    return score


# Each makes a Scorer from the predict functions of the generator, bound to its weights.
SCORERS: dict[str, Callable[[Predict], Scorer]] = {"likelihood": likelihood}


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
