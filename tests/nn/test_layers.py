"""Linear and LayerNorm against NumPy, and what `weight` declares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vimlab.nn.layers import LayerNorm, Linear, product, weight
from vimlab.nn.transformer import REMAT_POLICIES


def init(module, *shape):
    boxed = jax.jit(nn.init(lambda module, x: module(x), module))(jax.random.key(0), jnp.zeros(shape))["params"]
    return nn.unbox(boxed), boxed


def test_linear():
    rng = np.random.default_rng(0)
    module = Linear(5, ("embed", "mlp"))
    params, boxed = init(module, 2, 3)
    assert {k: v.shape for k, v in params.items()} == {"w": (3, 5), "b": (5,)} and not params["b"].any()
    assert boxed["w"].names == ("embed", "mlp") and boxed["b"].names == ("mlp",)
    params = {k: jnp.asarray(rng.normal(size=v.shape), jnp.float32) for k, v in params.items()}
    x = rng.normal(size=(2, 4, 3))
    found = module.apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, x @ np.float64(params["w"]) + np.float64(params["b"]), rtol=1e-5, atol=1e-6)


SHAPES = [((4, 6), (6, 5), 1), ((2, 3, 6), (6, 5), 1), ((2, 3, 6), (6, 3, 2), 1), ((2, 3, 4, 2), (4, 2, 7), 2), ((6,), (6, 5), 1)]


@pytest.mark.parametrize("x, w, inputs", SHAPES)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_product_and_its_gradients_are_tensordots(x, w, inputs, platform, monkeypatch):
    """Also the gradient of a gradient's square; both ways of writing them."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, cpu: (cpu if platform == "cpu" else default)(*args))
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x, w))

    def both(multiply):
        value = lambda x, w: jnp.sin(multiply(x, w)).sum()
        slopes = lambda x, w: sum(jnp.square(g).sum() for g in jax.grad(value, (0, 1))(x, w))
        return multiply(x, w), jax.grad(value, (0, 1))(x, w), jax.grad(slopes, (0, 1))(x, w)

    found, expected = both(lambda x, w: product(x, w, inputs)), both(lambda x, w: jnp.tensordot(x, w, inputs))
    # Both sum at most 24 terms in f32, in their own orders.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_remat_keeps_what_a_product_gives():
    """A policy that keeps products makes none again, one that keeps nothing makes the one."""

    def products(policy):
        block = jax.checkpoint(lambda w: jnp.tanh(product(jnp.ones((2, 4)), w)), policy=REMAT_POLICIES[policy])
        return str(jax.make_jaxpr(jax.grad(lambda w: jnp.square(block(w)).sum()))(jnp.ones((4, 4)))).count("dot_general")

    assert products("dots") == products("full") - 1


def test_linears_initial_weights_are_glorots():
    w = init(Linear(300, ("embed", "mlp")), 1, 200)[0]["w"]
    limit = (6 / (200 + 300)) ** 0.5
    assert limit * 0.99 < float(jnp.abs(w).max()) <= limit
    assert float(w.std()) == pytest.approx(limit / 3**0.5, rel=0.02)


def test_linear_computes_in_its_dtype_with_f32_parameters():
    module = Linear(5, ("embed", "mlp"), dtype=jnp.bfloat16)
    params, _ = init(module, 2, 3)
    assert params["w"].dtype == jnp.float32
    assert module.apply({"params": params}, jnp.ones((2, 3))).dtype == jnp.bfloat16
    assert "b" not in init(Linear(5, ("embed", "mlp"), use_bias=False), 2, 3)[0]


@pytest.mark.parametrize("scale, bias", [(True, True), (False, False), (True, False)])
def test_layer_norm(scale, bias):
    rng = np.random.default_rng(1)
    x = rng.normal(3, 20, size=(2, 5, 8))
    module = LayerNorm(use_scale=scale, use_bias=bias)
    params, _ = init(module, 2, 5, 8) if scale or bias else ({}, None)
    params = {k: jnp.asarray(rng.normal(size=v.shape), jnp.float32) for k, v in params.items()}
    assert set(params) == {name for name, on in (("scale", scale), ("bias", bias)) if on}
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = expected * np.float64(params.get("scale", 1)) + np.float64(params.get("bias", 0))
    np.testing.assert_allclose(module.apply({"params": params}, jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_keeps_f32_statistics_in_bf16():
    """Around a mean of 1000, bf16 statistics would be off by whole units."""
    x = (1000 + jnp.arange(8.0)[None] * 8).astype(jnp.bfloat16)
    y = LayerNorm(use_scale=False, use_bias=False).apply({}, x)
    exact = np.float64(x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), (exact - exact.mean()) / exact.std(), atol=0.01)


def test_a_weight_needs_an_axis_for_each_dimension():
    class Wrong(nn.Module):
        @nn.compact
        def __call__(self):
            return weight(self, "w", (2, 3), ("embed",), nn.initializers.zeros)

    with pytest.raises(ValueError, match="'w' of shape \\(2, 3\\) needs 2 axes"):
        Wrong().init(jax.random.key(0))
