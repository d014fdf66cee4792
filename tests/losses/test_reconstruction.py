"""Reconstruction losses against NumPy, and the logit-Laplace density against its integral and its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from vimlab.losses import reconstruction


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return jnp.float32(rng.uniform(size=(3, 4, 5, 3))), jnp.float32(rng.uniform(-0.2, 1.2, size=(3, 4, 5, 3)))


def test_l1_and_l2_are_means_per_example(pair):
    a, b = pair
    np.testing.assert_allclose(reconstruction.l2(a, b), [np.mean((x - y) ** 2) for x, y in zip(a, b, strict=True)], rtol=1e-6)
    np.testing.assert_allclose(reconstruction.l1(a, b), [np.mean(np.abs(x - y)) for x, y in zip(a, b, strict=True)], rtol=1e-6)


def test_psnr_clips_and_matches_a_known_figure(pair):
    a, b = pair
    expected = [10 * np.log10(1 / np.mean((x - np.clip(y, 0, 1)) ** 2)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(reconstruction.psnr(a, b), expected, rtol=1e-6)
    # ViT-VQGAN's table 4: a squared error of 3.09e-3 in [0,1] is 25.1 dB.
    grey = jnp.full((1, 8, 8, 3), 0.5)
    np.testing.assert_allclose(reconstruction.psnr(grey, grey + np.sqrt(3.09e-3)), [25.1], atol=0.005)
    np.testing.assert_allclose(reconstruction.psnr(grey, grey), [100.0], rtol=1e-6)


@pytest.mark.parametrize("mean, log_scale", [(0.0, 0.0), (1.3, -1.0), (-2.0, 0.5)])
def test_logit_laplace_density_integrates_to_one(mean, log_scale):
    # With epsilon 0 the image value is the variable itself, so exp(-nll) is a density on (0, 1).
    def density(v):
        cell = jnp.full((1, 1, 1, 1), v, jnp.float32)
        return float(np.exp(-reconstruction.logit_laplace_nll(cell, cell * 0 + mean, cell * 0 + log_scale, epsilon=0.0)[0]))

    peak = 1 / (1 + np.exp(-mean))
    total, _ = integrate.quad(density, 1e-5, 1 - 1e-5, points=[peak], limit=60, epsabs=1e-4)
    b = np.exp(log_scale)
    tails = 0.5 * np.exp(-(np.log(1e5) - mean) / b) + 0.5 * np.exp(-(np.log(1e5) + mean) / b)
    assert abs(total + tails - 1) < 2e-3


def test_logit_laplace_is_the_formula_of_the_paper():
    rng = np.random.default_rng(1)
    v, mu, s = rng.uniform(size=(2, 3, 4, 3)), rng.normal(size=(2, 3, 4, 3)), rng.normal(size=(2, 3, 4, 3))
    x, b = 0.8 * v + 0.1, np.exp(s)
    density = np.exp(-np.abs(np.log(x / (1 - x)) - mu) / b) / (2 * b * x * (1 - x))
    got = reconstruction.logit_laplace_nll(*(jnp.asarray(a, jnp.float32) for a in (v, mu, s)))
    np.testing.assert_allclose(got, -np.log(density).mean((1, 2, 3)), rtol=1e-5)


def test_logit_laplace_image_inverts_the_map_and_clips():
    v = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 2, 2, 3)
    x = 0.8 * v + 0.1
    np.testing.assert_allclose(reconstruction.logit_laplace_image(jnp.log(x / (1 - x))), v, atol=1e-6)
    np.testing.assert_array_equal(
        reconstruction.logit_laplace_image(jnp.array([[[[-50.0, 50.0, 0.0]]]])), [[[[0.0, 1.0, 0.5]]]]
    )


def test_logit_laplace_is_finite_with_gradients_at_black_and_white():
    images = jnp.stack([jnp.zeros((2, 2, 3)), jnp.ones((2, 2, 3))])
    gradient = jax.grad(lambda m, s: reconstruction.logit_laplace_nll(images, m, s).sum(), (0, 1))
    assert all(np.isfinite(g).all() for g in gradient(jnp.zeros_like(images), jnp.full(images.shape, -3.0)))
