"""Guidance: its two fixed points, its line between them and beyond, and the schedules of its scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimlab.sampling.guidance import guide, scales


def some(seed, *shape):
    return jnp.asarray(3 * np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("jit", [False, True])
def test_one_is_conditional_to_the_last_bit_and_zero_unconditional(jit):
    conditional, unconditional = some(0, 4, 100), some(1, 4, 100) * jnp.asarray([[1e-3], [1], [1e3], [1e6]])
    run = jax.jit(guide) if jit else guide
    np.testing.assert_array_equal(run(conditional, unconditional, jnp.float32(1)), conditional)
    np.testing.assert_allclose(run(conditional, unconditional, jnp.float32(0)), unconditional, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run(conditional, conditional, jnp.float32(7)), conditional)


@pytest.mark.parametrize("scale", [0.5, 1.2, 2.0, 8.0, -1.0])
def test_the_papers_line(scale):
    c, u = some(2, 100), some(3, 100)
    expected = np.float64(u) + scale * (np.float64(c) - u)
    np.testing.assert_allclose(guide(c, u, jnp.float32(scale)), expected, rtol=1e-5, atol=1e-5)


def test_schedules():
    for schedule in ("constant", "linear", "cosine"):
        found = scales(4.0, schedule, 9)
        assert found.shape == (9,) and found.dtype == np.float32 and found[-1] == 4
        np.testing.assert_array_equal(scales(1.0, schedule, 9), np.ones(9))
    assert scales(4.0, "constant", 9).tolist() == [4.0] * 9
    np.testing.assert_allclose(scales(4.0, "linear", 4), [1, 2, 3, 4])
    cosine = scales(4.0, "cosine", 9)
    np.testing.assert_allclose(cosine, 1 + 3 * (1 - np.cos(np.pi * np.arange(9) / 8)) / 2, rtol=1e-6)
    assert cosine[0] == 1 and (np.diff(cosine) > 0).all() and cosine[4] == 2.5
    np.testing.assert_allclose(scales(0.0, "linear", 3), [1, 0.5, 0])
