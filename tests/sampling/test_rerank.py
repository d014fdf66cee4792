"""Choosing among images: the best of each prompt, and the likelihood that is the model's own."""

import jax
import numpy as np
import pytest

from vimlab.sampling.rerank import best, likelihood
from vimlab.sampling.sampler import GROUP


def test_the_best_of_each_prompt_come_first():
    scores = np.array([1, 3, 2, 0, 5, 4, 4, 6], np.float32)
    np.testing.assert_array_equal(best(scores, 4, 1), [[1], [7]])
    np.testing.assert_array_equal(best(scores, 4, 4), [[1, 2, 0, 3], [7, 4, 5, 6]])  # Of equals the earlier.
    np.testing.assert_array_equal(best(np.array([np.nan, -9], np.float32), 2, 2), [[1, 0]])
    np.testing.assert_array_equal(best(scores, 1, 1), np.arange(8)[:, None])


@pytest.mark.parametrize("count", [1, 8, 11])
def test_likelihood_is_the_models_own_and_depends_on_no_neighbour(count):
    shapes = []

    @jax.jit
    def nll(ids, condition):
        shapes.append(ids.shape)
        return ids * 0.5 + condition[:, None]

    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 50, (count, 6)).astype(np.int32), rng.integers(0, 9, count).astype(np.int32)
    score = likelihood({"nll": nll}, 2)
    scores = score(np.zeros((count, 2, 2, 3), np.uint8), ids, labels, [""] * count)
    assert scores.shape == (count,) and scores.dtype == np.float32
    np.testing.assert_allclose(scores, -(ids.mean(1) / 2 + labels), rtol=1e-6)
    assert shapes == [(2 * GROUP, 6)]
    again = score(np.zeros((1, 2, 2, 3), np.uint8), ids[-1:], labels[-1:], [""])
    assert again[0] == scores[-1] and nll._cache_size() == 1
