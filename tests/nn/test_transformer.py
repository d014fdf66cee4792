"""Attention and the stack of blocks: against NumPy, scanned against unrolled, every remat policy, the counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vimlab.nn.attend import attention
from vimlab.nn.attention import SelfAttention
from vimlab.nn.transformer import REMAT_POLICIES, Block, Stack, stack_flops, stack_params
from vimlab.parallel.mesh import MeshConfig, make_mesh

pytestmark = pytest.mark.usefixtures("compiled_quickly")

DEPTH, WIDTH, HEADS, MLP, LENGTH = 2, 32, 4, 48, 6


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def numpy_self_attention(x, p):
    """Head by head, in float64."""
    out = np.zeros_like(x) + p["out_bias"]
    for h in range(p["qkv"].shape[2]):
        q, k, v = (x @ p["qkv"][:, i, h] + p["qkv_bias"][i, h] for i in range(3))
        out += softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v @ p["out"][h]
    return out


def numpy_block(x, p):
    x = x + numpy_self_attention(layer_norm(x, p["norm1"]), p["attention"])
    hidden = gelu(layer_norm(x, p["norm2"]) @ p["mlp_in"]["w"] + p["mlp_in"]["b"])
    return x + hidden @ p["mlp_out"]["w"] + p["mlp_out"]["b"]


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_params(module, x):
    """Parameters with random biases and scales too: those of `init` would hide a missing bias."""
    abstract = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), x)["params"]))
    leaves, treedef = jax.tree.flatten(abstract)
    return treedef.unflatten([0.3 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


@pytest.fixture(scope="module")
def stack():
    """Input, parameters, and the values and gradients of the plain program: unrolled, without remat."""
    x = normal(100, 2, LENGTH, WIDTH)
    params = random_params(Stack(DEPTH, HEADS, MLP), x)
    return x, params, values_and_gradients(Stack(DEPTH, HEADS, MLP, "none", DEPTH), params, x)


def values_and_gradients(module, params, x):
    @jax.jit
    def both(params, x):
        values, pull = jax.vjp(lambda params, x: module.apply({"params": params}, x), params, x)
        return values, pull(values**2)

    return both(params, x)


def assert_close(found, expected, tolerance=2e-5):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(jnp.abs(b).max()))

    jax.tree.map(close, found, expected)


def test_attention_is_softmax_attention():
    q, k, v = normal(0, 2, 3, 5, 8), normal(1, 2, 3, 7, 8), normal(2, 2, 3, 7, 4)
    expected = softmax(np.float64(q) @ np.float64(k).swapaxes(-1, -2) / math.sqrt(8)) @ np.float64(v)
    np.testing.assert_allclose(attention(q, k, v), expected, rtol=1e-5, atol=1e-6)


def test_attention_survives_large_logits_and_keeps_f32_softmax():
    q = k = jnp.full((1, 1, 4, 8), 100.0, jnp.bfloat16)
    v = jnp.arange(32.0).reshape(1, 1, 4, 8).astype(jnp.bfloat16)
    out = attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32)[0, 0, 0], np.arange(32.0).reshape(4, 8).mean(0), rtol=0.01)


def test_self_attention_and_its_initial_scale():
    x, module = normal(3, 2, LENGTH, WIDTH), SelfAttention(WIDTH, HEADS)
    params = random_params(module, x)
    expected = numpy_self_attention(np.float64(x), jax.tree.map(np.float64, params))
    np.testing.assert_allclose(module.apply({"params": params}, x)[0], expected, rtol=1e-4, atol=1e-4)
    # Each of the four matrices is drawn as a (width, width) matrix would be.
    params = nn.unbox(jax.jit(SelfAttention(128, 4).init)(jax.random.key(0), jnp.zeros((1, 2, 128)))["params"])
    limit = math.sqrt(6 / (128 + 128))
    for name in ("qkv", "out"):
        assert 0.98 * limit < float(jnp.abs(params[name]).max()) <= limit, name
    with pytest.raises(ValueError, match="a width of 32 does not divide into 5 heads"):
        SelfAttention(WIDTH, 5).init(jax.random.key(0), x)


def test_stack_is_the_blocks_one_after_the_other(stack):
    x, params, (values, _) = stack
    expected = np.float64(x)
    for i in range(DEPTH):
        expected = numpy_block(expected, jax.tree.map(lambda p: np.float64(p[i]), params["blocks"]))  # noqa: B023
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_means_are_over_positions_of_each_blocks_output(stack):
    x, params, (values, _) = stack
    last, means = jax.jit(lambda p: Stack(DEPTH, HEADS, MLP).apply({"params": p}, x, means=True))(params)
    np.testing.assert_allclose(last, values, rtol=1e-4, atol=1e-4)
    first = numpy_block(np.float64(x), jax.tree.map(lambda p: np.float64(p[0]), params["blocks"]))
    assert means.dtype == jnp.float32
    np.testing.assert_allclose(means, np.stack([first.mean(1), values.mean(1)]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("remat, unroll", [("none", 1), ("dots", 1), ("dots", DEPTH), ("full", 1)])
def test_scan_and_remat_change_nothing(stack, remat, unroll):
    x, params, expected = stack
    assert_close(values_and_gradients(Stack(DEPTH, HEADS, MLP, remat, unroll), params, x), expected)


def test_remat_keeps_less(stack):
    """What is saved between the passes: everything, then the products of weights, then the blocks' inputs alone."""
    x, params, _ = stack
    sizes = {}
    for remat in REMAT_POLICIES:
        out = jax.eval_shape(lambda p, r=remat: jax.vjp(lambda p: Stack(DEPTH, HEADS, MLP, r).apply({"params": p}, x), p)[1], params)
        sizes[remat] = sum(leaf.size for leaf in jax.tree.leaves(out))
    assert sizes["none"] > sizes["dots"] > sizes["full"], sizes


def test_each_block_starts_from_weights_of_its_own():
    params = nn.unbox(jax.jit(Stack(2, HEADS, MLP).init)(jax.random.key(0), jnp.zeros((1, LENGTH, WIDTH)))["params"])
    first, second = params["blocks"]["mlp_in"]["w"]
    assert not np.allclose(first, second)


def test_parameters_name_their_axes():
    boxed = jax.eval_shape(Stack(2, HEADS, MLP).init, jax.random.key(0), jnp.zeros((1, LENGTH, WIDTH)))["params"]["blocks"]
    assert boxed["attention"]["qkv"].names == ("layers", "embed", None, "heads", "head_dim")
    assert boxed["attention"]["out"].names == ("layers", "heads", "head_dim", "embed")
    assert boxed["mlp_in"]["w"].names == ("layers", "embed", "mlp") and boxed["mlp_out"]["w"].names == ("layers", "mlp", "embed")


def test_sharded_is_unsharded(stack):
    x, params, expected = stack
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))):
        assert_close(values_and_gradients(Stack(DEPTH, HEADS, MLP), params, x), expected)


def test_bf16_is_near(stack):
    x, params, (values, _) = stack
    small = jax.tree.map(lambda p: p / 3, params)
    exact = jax.jit(Stack(DEPTH, HEADS, MLP).apply)({"params": small}, x)
    rough = jax.jit(Stack(DEPTH, HEADS, MLP, dtype=jnp.bfloat16).apply)({"params": small}, x.astype(jnp.bfloat16))
    assert rough.dtype == jnp.bfloat16
    assert float(jnp.abs(rough.astype(jnp.float32) - exact).max() / jnp.abs(exact).max()) < 0.03


@pytest.mark.parametrize("depth, width, heads, mlp", [(3, 32, 4, 48), (1, 64, 2, 256)])
def test_parameter_count(depth, width, heads, mlp):
    shapes = jax.eval_shape(Stack(depth, heads, mlp).init, jax.random.key(0), jnp.zeros((1, 4, width)))
    assert stack_params(depth, width, mlp) == sum(x.size for x in jax.tree.leaves(shapes))


def test_flop_count_is_xlas():
    """XLA also counts norms, softmax and GELU; at width 256 they are small beside the products."""
    depth, width, heads, mlp, length = 2, 256, 2, 1024, 64
    module = Stack(depth, heads, mlp, "none", depth)
    x = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    counted = jax.jit(module.apply).lower(nn.unbox(params), x).compile().cost_analysis()["flops"]
    assert stack_flops(depth, width, mlp, length) == pytest.approx(counted, rel=0.03)


def test_block_alone():
    x = normal(4, 1, LENGTH, WIDTH)
    params = random_params(Block(WIDTH, HEADS, MLP), x)
    expected = numpy_block(np.float64(x), jax.tree.map(np.float64, params))
    np.testing.assert_allclose(Block(WIDTH, HEADS, MLP).apply({"params": params}, x)[0], expected, rtol=1e-4, atol=1e-4)
