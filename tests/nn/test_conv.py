"""Convolutions and the low-pass filter against SciPy and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import ndimage, signal

from vimlab.nn import conv

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def correlate(x, w, stride, padding):
    """Convolution as networks mean it, by SciPy in float64."""
    x = np.pad(np.asarray(x, np.float64), ((0, 0), *padding, (0, 0)))
    channel = lambda b, o: sum(signal.correlate2d(x[b, :, :, c], w[:, :, c, o], "valid") for c in range(x.shape[-1]))
    full = np.stack([np.stack([channel(b, o) for o in range(w.shape[-1])], -1) for b in range(len(x))])
    return full[:, ::stride, ::stride]


CASES = [
    (3, 1, ((1, 1), (1, 1))),
    (3, 2, ((0, 0), (0, 0))),
    (1, 1, ((0, 0), (0, 0))),
    (4, 1, ((0, 0), (0, 0))),
    (3, 1, ((2, 0), (1, 3))),
]


@pytest.mark.parametrize("kernel, stride, padding", CASES)
def test_conv2d_matches_scipy(kernel, stride, padding):
    rng = np.random.default_rng(0)
    x, w = jnp.float32(rng.normal(size=(2, 7, 9, 3))), jnp.float32(rng.normal(size=(kernel, kernel, 3, 4)))
    np.testing.assert_allclose(conv.conv2d(x, w, stride, padding), correlate(x, w, stride, padding), atol=2e-5)


def test_a_kernel_as_large_as_the_picture_is_a_dense_layer():
    x, w = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)), jax.random.normal(jax.random.key(1), (4, 4, 3, 5))
    np.testing.assert_allclose(conv.conv2d(x, w), correlate(x, np.asarray(w), 1, ((0, 0), (0, 0))), atol=2e-5)


@pytest.mark.parametrize("kernel, stride, padding", CASES)
def test_first_and_second_gradients_match_automatic_differentiation(kernel, stride, padding):
    """The convolution's own transposes, and theirs, against JAX's derivatives of the plain operation."""
    rng = np.random.default_rng(0)
    x, w = jnp.float32(rng.normal(size=(2, 8, 10, 3))), jnp.float32(rng.normal(size=(kernel, kernel, 3, 4)))
    plain = lambda x, w: jax.lax.conv_general_dilated(x, w, (stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gradients(convolve):
        loss = lambda x, w: jnp.tanh(convolve(x, w)).sum()
        slopes = jax.grad(loss, (0, 1))
        second = jax.grad(lambda x, w: sum(jnp.square(g).sum() for g in slopes(x, w)), (0, 1))
        return jax.jit(lambda x, w: (slopes(x, w), second(x, w)))(x, w)

    got = jax.tree.leaves(gradients(lambda x, w: conv.conv2d(x, w, stride, padding)))
    for a, b in zip(got, jax.tree.leaves(gradients(plain)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("block", [1, 24, 1000])
def test_weight_gradient_in_blocks_equals_the_transposed_convolution(block, monkeypatch):
    monkeypatch.setattr(conv, "BLOCK", block)
    x, dy = jax.random.normal(jax.random.key(0), (2, 13, 11, 3)), jax.random.normal(jax.random.key(1), (2, 6, 6, 4))
    window = conv._Window(2, ((1, 0), (1, 2)), (13, 11), (3, 4))
    blocks, whole = conv._weight_gradient_in_blocks(x, dy, window), conv._weight_gradient_transposed(x, dy, window)
    np.testing.assert_allclose(blocks, whole, atol=1e-4)
    rough = conv._weight_gradient_in_blocks(x.astype(jnp.bfloat16), dy.astype(jnp.bfloat16), window)
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), whole, atol=0.3)


@pytest.mark.parametrize("padding, stride", [((2, 2), 1), ((1, 1), 2), ((1, 1), 1), ((2, 1), 1)])
def test_blur_matches_ndimage(padding, stride):
    x = jax.random.normal(jax.random.key(0), (2, 8, 10, 3))
    y = np.pad(x, ((0, 0), padding, padding, (0, 0)))
    for axis in (1, 2):  # `origin` puts the window's start at the output position, so the valid part is a prefix.
        y = ndimage.correlate1d(y, np.array([1, 3, 3, 1]) / 8, axis, mode="constant", origin=-2)
        y = np.take(y, range(0, y.shape[axis] - 3, stride), axis)
    np.testing.assert_allclose(conv.blur(x, padding, stride), y, atol=1e-6)


def test_blur_keeps_f32_inside_bf16():
    x = jax.random.normal(jax.random.key(0), (1, 8, 8, 4), jnp.bfloat16)
    exact = conv.blur(x.astype(jnp.float32), (1, 1), 2)
    np.testing.assert_array_equal(conv.blur(x, (1, 1), 2), exact.astype(jnp.bfloat16))
    assert conv.blur_downsample(x).shape == (1, 4, 4, 4)


def test_downsampling_convolution_is_filter_then_stride():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    for kernel in (1, 3):
        module = conv.Conv(5, kernel, downsample=True, use_bias=False)
        params = nn.unbox(module.init(jax.random.key(1), x))
        w = np.asarray(params["params"]["w"])
        wide = conv.blur(x, (kernel // 2 + 1,) * 2)
        np.testing.assert_allclose(module.apply(params, x), correlate(wide, w, 2, ((0, 0), (0, 0))), atol=1e-5)


def test_equalised_weights_are_unit_normal_and_scaled_at_run_time():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 64))
    module = conv.Conv(32, 3, equalised=True)
    params = nn.unbox(module.init(jax.random.key(1), x))
    w = params["params"]["w"]
    assert w.shape == (3, 3, 64, 32) and abs(float(w.std()) - 1) < 0.02
    expected = correlate(x, np.asarray(w) / np.sqrt(3 * 3 * 64), 1, ((1, 1), (1, 1)))
    np.testing.assert_allclose(module.apply(params, x), expected, atol=1e-4)


def test_parameters_are_f32_and_named_by_axes():
    boxed = conv.Conv(4, 3, dtype=jnp.bfloat16).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    assert boxed["w"].names == ("kernel", "kernel", "conv_in", "conv_out") and boxed["b"].names == ("vector",)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nn.unbox(boxed)))
