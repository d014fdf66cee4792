"""Convolutions on NHWC pictures with an optional equalised learning rate, and StyleGAN2's low-pass filter."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

from vimlab.nn.layers import Initializer, weight

FILTER = (1.0, 3.0, 3.0, 1.0)
BLOCK = 1024  # Positions in a block of the weight gradient on CPU: patches of 64 channels then fill 2.4 MB.
Padding = Sequence[tuple[int, int]]


def conv2d(x: jax.Array, w: jax.Array, stride: int = 1, padding: Padding = ((0, 0), (0, 0))) -> jax.Array:
    """Cross-correlation of pictures with kernels, zeros outside. Differentiable in reverse mode, any number of times.

    Args:
      x: [B,H,W,C].
      w: [kernel height, kernel width, C, O], of x's dtype.
      stride: of both dimensions.
      padding: (before, after) of height and of width.

    Returns:
      [B,H',W',O] of x's dtype.
    """
    padding = tuple(map(tuple, padding))
    if padding == ((0, 0), (0, 0)) and w.shape[:2] == x.shape[1:3]:
        return jnp.matmul(x.reshape(len(x), -1), w.reshape(-1, w.shape[-1]))[:, None, None]
    return _conv(x, w, _Window(stride, padding, x.shape[1:3], w.shape[:2]))


class _Window(NamedTuple):
    """The static part of a convolution: what its two transposes need besides their arrays."""

    stride: int
    padding: tuple[tuple[int, int], ...]
    size: tuple[int, int]
    kernel: tuple[int, int]


# y = conv(x, w) is linear in each of x and w, so <dy, conv(x, w)> is a form in three arguments whose derivatives are the
# convolution and its two transposes. Stated so, a gradient of a gradient (R1) is made of the same three operations, where
# automatic differentiation of the transposes gives dilated convolutions that have no fast code.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, w: jax.Array, window: _Window) -> jax.Array:
    return _plain_conv(x, w, window)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _input_gradient(dy: jax.Array, w: jax.Array, window: _Window) -> jax.Array:
    x = jax.ShapeDtypeStruct((len(dy), *window.size, w.shape[2]), dy.dtype)
    return jax.linear_transpose(lambda x: _plain_conv(x, w, window), x)(dy)[0]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _weight_gradient(x: jax.Array, dy: jax.Array, window: _Window) -> jax.Array:
    blocks = partial(_weight_gradient_in_blocks, window=window)
    return lax.platform_dependent(x, dy, cpu=blocks, default=partial(_weight_gradient_transposed, window=window))


_conv.defvjp(
    lambda x, w, window: (_conv(x, w, window), (x, w)),
    lambda window, saved, dy: (_input_gradient(dy, saved[1], window), _weight_gradient(saved[0], dy, window)),
)
_input_gradient.defvjp(
    lambda dy, w, window: (_input_gradient(dy, w, window), (dy, w)),
    lambda window, saved, dx: (_conv(dx, saved[1], window), _weight_gradient(dx, saved[0], window)),
)
_weight_gradient.defvjp(
    lambda x, dy, window: (_weight_gradient(x, dy, window), (x, dy)),
    lambda window, saved, dw: (_input_gradient(saved[1], dw, window), _conv(saved[0], dw, window)),
)


def _plain_conv(x: jax.Array, w: jax.Array, window: _Window) -> jax.Array:
    strides = (window.stride, window.stride)
    return lax.conv_general_dilated(x, w, strides, window.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _weight_gradient_transposed(x: jax.Array, dy: jax.Array, window: _Window) -> jax.Array:
    w = jax.ShapeDtypeStruct((*window.kernel, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda w: _plain_conv(x, w, window), w)(dy)[0]


def _weight_gradient_in_blocks(x: jax.Array, dy: jax.Array, window: _Window) -> jax.Array:
    """Sums, over blocks of rows that fit the cache, dy's block times the patches of x that its positions read.

    On CPU 1.3 to 2 times as fast as XLA's transposed convolution, which takes the whole picture for a kernel.
    """
    (kernel_h, kernel_w), stride, (batch, height, width, features) = window.kernel, window.stride, dy.shape
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    channels, rows = x.shape[-1], max(r for r in range(1, height + 1) if height % r == 0 and (r * width <= BLOCK or r == 1))
    read = (rows - 1) * stride + kernel_h

    def add(total, block):
        example, row = block // (height // rows), block % (height // rows) * rows
        picture = lax.dynamic_slice(x, (example, row * stride, 0, 0), (1, read, x.shape[2], channels))[0]
        shifts = [
            (slice(i, i + read - kernel_h + 1, stride), slice(j, j + (width - 1) * stride + 1, stride))
            for i in range(kernel_h)
            for j in range(kernel_w)
        ]
        patches = jnp.concatenate([picture[s] for s in shifts], -1).reshape(rows * width, -1)
        slopes = lax.dynamic_slice(dy, (example, row, 0, 0), (1, rows, width, features)).reshape(rows * width, features)
        # The narrower operand first: XLA's matrix product of a transposed left side is faster so.
        return total + jnp.einsum("po,pk->ok", slopes, patches, preferred_element_type=jnp.float32), None

    total = jnp.zeros((features, kernel_h * kernel_w * channels), jnp.float32)
    total, _ = lax.scan(add, total, jnp.arange(batch * height // rows))
    return total.reshape(features, kernel_h, kernel_w, channels).transpose(1, 2, 3, 0).astype(x.dtype)


def blur(x: jax.Array, padding: tuple[int, int], stride: int = 1) -> jax.Array:
    """Low-pass filter [1,3,3,1]/8 along height and width, zeros outside: [B,H,W,C] → [B,H',W',C], in f32.

    H' = floor((H + sum(padding) - 4) / stride) + 1. Written as shifted sums: a depthwise convolution is far slower on
    every back end.
    """
    taps = [t / sum(FILTER) for t in FILTER]
    y = x.astype(jnp.float32)
    for axis in (1, 2):
        widths = [padding if a == axis else (0, 0) for a in range(4)]
        y = jnp.pad(y, widths)
        count = (y.shape[axis] - len(taps)) // stride + 1
        limit = (count - 1) * stride + 1
        y = sum(t * lax.slice_in_dim(y, i, i + limit, stride, axis) for i, t in enumerate(taps))
    return y.astype(x.dtype)


def blur_downsample(x: jax.Array) -> jax.Array:
    """Halves height and width after the low-pass filter: [B,H,W,C] → [B,H/2,W/2,C]."""
    return blur(x, (1, 1), stride=2)


class Conv(nn.Module):
    """Convolution [B,H,W,in] → [B,H',W',features], optionally at half the resolution after a low-pass filter.

    Attributes:
      features: output channels.
      kernel: side of the square kernel.
      padding: zeros on each side; None keeps the size (odd kernels).
      downsample: filters and then takes every second position (StyleGAN2, section 2 and its code); for even heights and
        widths and odd kernels, with `padding` None.
      equalised: weights are drawn from N(0, 1) and multiplied by 1 / sqrt(fan in) at run time, so that Adam moves every
        layer at the same relative speed (Progressive GAN, section 4.1); otherwise they are drawn at that scale.
      axes: logical axes of the inputs and outputs of the kernel.
      dtype: of the computation; parameters are f32, the low-pass filter always computes in f32.
    """

    features: int
    kernel: int = 3
    padding: int | None = None
    downsample: bool = False
    use_bias: bool = True
    equalised: bool = False
    axes: tuple[str | None, str] = ("conv_in", "conv_out")
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        init = initializers.normal(1.0) if self.equalised else self.kernel_init
        w = weight(self, "w", shape, ("kernel", "kernel", *self.axes), init)
        if self.equalised:
            w *= 1.0 / math.sqrt(math.prod(shape[:3]))
        pad = self.kernel // 2 if self.padding is None else self.padding
        x, w = x.astype(self.dtype), w.astype(self.dtype)
        if not self.downsample:
            y = conv2d(x, w, 1, ((pad, pad), (pad, pad)))
        elif self.kernel == 1:
            y = conv2d(blur_downsample(x), w)
        else:
            y = conv2d(blur(x, (pad + 1, pad + 1)), w, 2)
        if self.use_bias:
            y += weight(self, "b", (self.features,), ("vector",), initializers.zeros).astype(self.dtype)
        return y
