"""Cross-entropy against NumPy in float64, whole and in chunks, its products in bf16, and what it holds at once."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimlab.losses.cross_entropy import cross_entropy, logits

BATCH, LENGTH, WIDTH, CODES = 3, 10, 8, 40


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(BATCH, LENGTH, WIDTH)), rng.normal(size=(WIDTH, CODES))
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(table, jnp.float32), jnp.asarray(rng.integers(0, CODES, (BATCH, LENGTH)), jnp.int32)


def reference(hidden, table, ids, weights):
    """Losses, and the gradients of their sum under `weights` with respect to hidden and table, in float64."""
    hidden, table = np.float64(hidden), np.float64(table)
    scores = hidden @ table
    scores -= scores.max(-1, keepdims=True)
    probabilities = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    losses = -np.log(np.take_along_axis(probabilities, np.asarray(ids)[..., None], -1)[..., 0])
    slope = (probabilities - np.eye(table.shape[1])[ids]) * weights[..., None]
    return losses, slope @ table.T, np.einsum("blw,blk->wk", hidden, slope)


@pytest.mark.parametrize("chunk", [1, 3, 5, 9, 1000])
def test_values_and_gradients_whatever_the_chunk(inputs, chunk):
    """Chunks that divide the length and chunks that do not; each position with a weight of its own."""
    hidden, table, ids = inputs
    weights = np.random.default_rng(1).normal(size=ids.shape)
    losses, *slopes = reference(hidden, table, ids, weights)

    @jax.jit
    def both(hidden, table):
        found, pull = jax.vjp(lambda *x: cross_entropy(*x, ids, chunk), hidden, table)
        return found, pull(jnp.asarray(weights, jnp.float32))

    found, found_slopes = both(hidden, table)
    assert found.shape == ids.shape and found.dtype == jnp.float32
    np.testing.assert_allclose(found, losses, rtol=2e-6, atol=2e-6)
    for a, b in zip(found_slopes, slopes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_large_logits_neither_overflow_nor_lose_the_answer():
    hidden, table = jnp.full((1, 2, 1), 1e4), jnp.asarray([[1.0, -1.0, 0.5]])
    found = cross_entropy(hidden, table, jnp.asarray([[0, 1]], jnp.int32), 1)
    np.testing.assert_allclose(found, [[0, 2e4]])
    uniform = cross_entropy(hidden * 0, table, jnp.asarray([[0, 1]], jnp.int32), 2)
    np.testing.assert_allclose(uniform, np.full((1, 2), math.log(3)), rtol=1e-6)


@pytest.mark.parametrize("chunk", [4, LENGTH])
def test_products_in_bf16_are_summed_and_read_in_f32(inputs, chunk):
    """The operands are rounded, nothing after them: against the exact product of the rounded numbers."""
    hidden, table, ids = inputs
    rounded = [np.float64(x.astype(jnp.bfloat16)) for x in (hidden, table)]
    scores = logits(hidden, table, jnp.bfloat16)
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, rounded[0] @ rounded[1], rtol=1e-5, atol=1e-5)
    found = cross_entropy(hidden, table, ids, chunk, jnp.bfloat16)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(*rounded, ids, np.zeros(ids.shape))[0], rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(found - cross_entropy(hidden, table, ids, chunk)).max()) > 1e-4, "nothing was rounded"


def largest(jaxpr) -> int:
    """Elements of the largest array that is computed in a program, its inner programs included."""
    sizes = [math.prod(v.aval.shape) for eqn in jaxpr.eqns for v in eqn.outvars]
    held = [value for eqn in jaxpr.eqns for param in eqn.params.values() for value in (param if isinstance(param, tuple) else [param])]
    return max([*sizes, *(largest(value) for value in held if hasattr(value, "eqns"))], default=0)


def test_only_a_chunk_of_logits_is_there_forward_and_backward():
    batch, length, codes, chunk = 2, 64, 512, 8
    abstract = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((batch, length, 4), (4, codes))]
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32)

    def program(chunk):
        loss = lambda hidden, table, ids: cross_entropy(hidden, table, ids, chunk).sum()
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

    traced = {n: program(n).trace(*abstract, ids) for n in (chunk, length)}
    assert largest(traced[length].jaxpr.jaxpr) == batch * length * codes
    assert largest(traced[chunk].jaxpr.jaxpr) == batch * chunk * codes
    held = {n: t.lower().compile().memory_analysis().temp_size_in_bytes for n, t in traced.items()}
    assert held[chunk] < held[length] / 3, held
