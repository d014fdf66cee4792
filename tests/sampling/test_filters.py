"""Top-k and top-p against sorting in NumPy: ties, negative and infinite logits, the settings that filter nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimlab.sampling.filters import top_k, top_p

jit_k, jit_p = jax.jit(top_k), jax.jit(top_p)


def sorted_top_k(logits, k):
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    return np.where(logits >= -np.sort(-logits, -1)[..., k - 1 : k], logits, -np.inf)


def sorted_top_p(logits, p):
    """And how near the deciding sums come to p: in f32 a sum within rounding of p may fall on either side."""
    order = -np.sort(-np.float64(logits), -1)
    shares = np.exp(order - order.max(-1, keepdims=True))
    sums = (shares / shares.sum(-1, keepdims=True)).cumsum(-1)
    if p >= 1:
        return logits, 1.0
    last = (sums < p).sum(-1, keepdims=True)
    return np.where(logits >= np.take_along_axis(order, last, -1), logits, -np.inf), np.abs(sums - p).min()


def some(seed, *shape, scale=3.0, steps=None):
    x = scale * np.random.default_rng(seed).normal(size=shape)
    return np.float32(np.round(x * steps) / steps if steps else x) + np.float32(0)  # No -0, which sorts apart from 0.


LOGITS = {
    "one row": some(0, 50),
    "a batch": some(1, 4, 3, 33),
    "ties": some(2, 6, 40, steps=1),
    "negative": some(3, 5, 17) - np.float32(100),
    "tiny and huge": np.float32([[1e-37, -1e-37, 3e38, -3e38, 0.5, 2e-37, -2e-37, 7.0]]),
    "all equal": np.full((2, 9), -2.5, np.float32),
    "some are out": np.where(np.arange(20) % 3 == 0, -np.inf, some(4, 3, 20)).astype(np.float32),
    "one code": some(5, 3, 1),
}


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("k", [0, 1, 2, 5, 8, 10_000, -1])
def test_top_k_is_by_rank(name, k):
    np.testing.assert_array_equal(jit_k(LOGITS[name], jnp.int32(k)), sorted_top_k(LOGITS[name], k))


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("p", [1e-6, 0.1, 0.37, 0.5, 0.737, 0.95, 0.999, 1.0])
def test_top_p_is_the_smallest_set_that_has_the_share(name, p):
    expected, margin = sorted_top_p(LOGITS[name], p)
    if margin > 1e-6:
        np.testing.assert_array_equal(jit_p(LOGITS[name], jnp.float32(p)), expected)


def test_top_p_reaches_its_share_exactly():
    """Probabilities of powers of two: sums are exact, and a sum equal to p is enough."""
    logits = np.log(np.float32([[0.25, 0.5, 0.125, 0.0625, 0.0625]]))
    shares = np.asarray(jax.nn.softmax(logits))
    assert shares.tolist() == [[0.25, 0.5, 0.125, 0.0625, 0.0625]]
    count = lambda p: int(np.isfinite(jit_p(logits, jnp.float32(p))).sum())
    assert [count(p) for p in (0.4, 0.5, 0.51, 0.75, 0.76, 0.875, 0.9, 1.0)] == [1, 1, 2, 2, 3, 3, 5, 5]


def test_the_likeliest_code_always_stays():
    """Whatever is asked: a row in which nothing is left could not be drawn from."""
    for p in (0.0, -1.0, 1e-30):
        np.testing.assert_array_equal(np.isfinite(jit_p(LOGITS["one row"], jnp.float32(p))), LOGITS["one row"] == LOGITS["one row"].max())


def test_zero_has_one_sign():
    logits = np.float32([[0.0, -0.0, -1.0]])
    assert np.isfinite(jit_k(logits, jnp.int32(1))).tolist() == [[True, True, False]]
    assert np.isfinite(jit_p(logits, jnp.float32(0.3))).tolist() == [[True, True, False]]


def test_rows_are_filtered_for_themselves():
    logits = LOGITS["a batch"]
    for run, setting in ((jit_k, jnp.int32(4)), (jit_p, jnp.float32(0.6))):
        whole = np.asarray(run(logits, setting))
        for i, row in enumerate(logits.reshape(-1, 33)):
            np.testing.assert_array_equal(whole.reshape(-1, 33)[i], run(row, setting))


def test_one_after_the_other():
    """Top-p of what top-k leaves: shares are of those alone."""
    logits = np.log(np.float32([[0.4, 0.3, 0.2, 0.1]]))
    both = jit_p(jit_k(logits, jnp.int32(2)), jnp.float32(0.55))  # 0.4 of 0.7 is more.
    assert np.isfinite(both).tolist() == [[True, False, False, False]]
    assert int(np.isfinite(jit_p(logits, jnp.float32(0.55))).sum()) == 2


def test_one_program_for_all_settings():
    before = jit_k._cache_size(), jit_p._cache_size()
    for k, p in ((1, 0.2), (7, 0.8), (0, 1.0)):
        jit_k(LOGITS["one row"], jnp.int32(k))
        jit_p(LOGITS["one row"], jnp.float32(p))
    assert max(jit_k._cache_size() - before[0], jit_p._cache_size() - before[1]) <= 1
    text = jit_k.lower(LOGITS["one row"], jnp.int32(1)).compile().as_text()
    assert "sort" not in text
