"""Patches, positions and the towers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vimlab.tokenizers.vit import Tower, patchify, sincos_positions, tower_flops, tower_params, unpatchify

GRID, DEPTH, WIDTH, HEADS, MLP = (2, 3), 2, 16, 2, 24


def test_patches_are_in_raster_order_and_hold_their_pixels():
    images = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for n, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        square = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(patches[:, n], square.reshape(2, 12))


@pytest.mark.parametrize("height, width, patch, channels", [(8, 8, 4, 3), (4, 12, 2, 6), (3, 5, 1, 3)])
def test_unpatchify_is_the_inverse(height, width, patch, channels):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, height, width, channels)), jnp.float32)
    np.testing.assert_array_equal(unpatchify(patchify(images, patch), (height // patch, width // patch), patch), images)


def test_positions_are_sines_and_cosines_of_row_and_column():
    found = sincos_positions((3, 5), 16)
    assert found.shape == (15, 16) and found.dtype == np.float32
    for row in range(3):
        for column in range(5):
            w = [1 / 10_000 ** (i / 4) for i in range(4)]
            expected = [f(axis * v) for axis in (row, column) for f in (math.sin, math.cos) for v in w]
            np.testing.assert_allclose(found[row * 5 + column], expected, atol=1e-6)
    assert len(np.unique(found.round(5), axis=0)) == 15
    with pytest.raises(ValueError, match="multiple of 4, not 18"):
        sincos_positions((2, 2), 18)


def tower(positions="sincos", **options) -> Tower:
    return Tower(GRID, DEPTH, WIDTH, HEADS, MLP, features=10, positions=positions, **options)


def values(module, x):
    """Random parameters of about unit activations, and the output under them."""
    abstract = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), x)["params"]))
    draw = lambda i, leaf: jnp.asarray(0.2 * np.random.default_rng(i).normal(size=leaf.shape), jnp.float32)
    leaves, treedef = jax.tree.flatten(abstract)
    params = treedef.unflatten([draw(i, leaf) for i, leaf in enumerate(leaves)])
    return params, jax.jit(module.apply)({"params": params}, x)


X = jnp.asarray(np.random.default_rng(5).normal(size=(2, 6, 12)), jnp.float32)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_tower_is_embedding_positions_blocks_norm_and_tanh_head(positions):
    from vimlab.nn.transformer import Stack

    params, found = values(tower(positions), X)
    assert ("positions" in params) == (positions == "learned")
    p = jax.tree.map(np.float64, params)
    offset = p["positions"] if positions == "learned" else sincos_positions(GRID, WIDTH)
    x = np.float64(X) @ p["embed"]["w"] + p["embed"]["b"] + offset
    x = np.float64(Stack(DEPTH, HEADS, MLP).apply({"params": params["stack"]}, jnp.asarray(x, jnp.float32)))
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
    expected = np.tanh(x @ p["head_in"]["w"] + p["head_in"]["b"]) @ p["head_out"]["w"] + p["head_out"]["b"]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_head_is_f32_whatever_the_compute_type():
    module = tower(dtype=jnp.bfloat16)
    params = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), X)["params"]))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.eval_shape(module.apply, {"params": params}, X).dtype == jnp.float32


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_parameter_count(positions):
    shapes = jax.eval_shape(tower(positions).init, jax.random.key(0), X)
    assert tower_params(GRID, DEPTH, WIDTH, MLP, 12, 10, positions) == sum(x.size for x in jax.tree.leaves(shapes))


def test_flop_count_is_xlas():
    grid, depth, width, mlp, inputs, features = (8, 8), 1, 256, 1024, 48, 96
    module = Tower(grid, depth, width, 2, mlp, features, remat="none", unroll=depth)
    x = jax.ShapeDtypeStruct((1, 64, inputs), jnp.float32)
    params = jax.eval_shape(lambda x: nn.unbox(module.init(jax.random.key(0), x)), x)
    counted = jax.jit(module.apply).lower(params, x).compile().cost_analysis()["flops"]
    assert tower_flops(grid, depth, width, mlp, inputs, features) == pytest.approx(counted, rel=0.03)
