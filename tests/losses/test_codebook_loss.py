"""Codebook, commitment and entropy losses against NumPy: values, and who feels which gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimlab.losses.codebook import codebook_loss, entropy_loss


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("reduction, divisor", [("mean", 4), ("sum", 1)])
def test_value_is_per_example(reduction, divisor):
    z, e = normal(0, 3, 5, 4), normal(1, 3, 5, 4)
    squares = ((z - e) ** 2).sum(-1) / divisor
    found = codebook_loss(jnp.asarray(z), jnp.asarray(e), 0.25, reduction)
    np.testing.assert_allclose(found, 1.25 * squares.mean(1), rtol=1e-5)


@pytest.mark.parametrize("reduction, divisor", [("mean", 4), ("sum", 1)])
def test_codes_feel_the_first_term_and_latents_beta_times_the_second(reduction, divisor):
    z, e = normal(0, 3, 5, 4), normal(1, 3, 5, 4)
    total = lambda z, e: codebook_loss(z, e, 0.25, reduction).sum()
    to_z, to_e = jax.grad(total, (0, 1))(jnp.asarray(z), jnp.asarray(e))
    np.testing.assert_allclose(to_e, 2 * (e - z) / 5 / divisor, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_z, 0.25 * 2 * (z - e) / 5 / divisor, rtol=1e-5, atol=1e-6)


def test_entropy_of_soft_assignments():
    z, book, temperature = normal(0, 2, 3, 4), normal(1, 6, 4), 0.5
    distances = ((z.reshape(-1, 1, 4).astype(np.float64) - book) ** 2).sum(-1)
    p = np.exp(-distances / temperature)
    p /= p.sum(1, keepdims=True)
    entropy = lambda p: -(p * np.log(p)).sum(-1)
    expected = entropy(p).mean() - entropy(p.mean(0))
    np.testing.assert_allclose(entropy_loss(jnp.asarray(z), jnp.asarray(book), temperature), expected, rtol=1e-4)


def test_entropy_is_lowest_for_sure_and_even_use_and_zero_for_one_code():
    book = jnp.eye(8)
    sure_and_even = entropy_loss(book[None], book, 0.01)
    assert float(sure_and_even) == pytest.approx(-np.log(8), rel=1e-4)
    assert float(entropy_loss(jnp.tile(book[:1], (8, 1))[None], book, 0.01)) == pytest.approx(0.0, abs=1e-5)
    assert float(entropy_loss(jnp.zeros((1, 8, 8)), book, 0.01)) == pytest.approx(0.0, abs=1e-5)
