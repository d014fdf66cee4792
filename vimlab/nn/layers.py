"""Layers with every parameter's shape, axes and initialiser on one line. Parameters are f32; `dtype` is the compute type."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike

Initializer = Callable[..., jax.Array]


def weight(module: nn.Module, name: str, shape: Sequence[int], axes: Sequence[str | None], init: Initializer) -> jax.Array:
    """Declares an f32 parameter of `module` with its logical axes (one name a dimension)."""
    if len(shape) != len(axes):
        raise ValueError(f"parameter {name!r} of shape {tuple(shape)} needs {len(shape)} axes, not {tuple(axes)}")
    return module.param(name, nn.with_logical_partitioning(init, tuple(axes)), tuple(shape), jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x: jax.Array, w: jax.Array, inputs: int = 1, dtype: DTypeLike | None = None) -> jax.Array:
    """The last `inputs` dimensions of x summed against the first of w: [..., *in] x [*in, *out] → [..., *out].

    Summed in `dtype`, theirs by default. Differentiable in reverse mode, any number of times.
    """
    return _plain_product(x, w, inputs, dtype)


def _plain_product(x: jax.Array, w: jax.Array, inputs: int, dtype: DTypeLike | None) -> jax.Array:
    return _contract(x, range(x.ndim - inputs, x.ndim), w, range(inputs), dtype)


def _product_gradients(inputs: int, _, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Those of x and w, each in its own order: automatic differentiation writes that of w transposed, and CPUs then copy both
    what is summed and what comes of it. They also do where several dimensions are summed, so there these become one; elsewhere
    they stay, for a mesh may split them."""
    return lax.platform_dependent(*saved, dy, cpu=partial(_gradients_as_matrices, inputs), default=partial(_gradients, inputs))


def _gradients(inputs: int, x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows, outputs = range(x.ndim - inputs), w.ndim - inputs
    dx = _contract(dy, range(dy.ndim - outputs, dy.ndim), w, range(inputs, w.ndim), x.dtype)
    return dx, _contract(x, rows, dy, rows, w.dtype)


def _gradients_as_matrices(inputs: int, x: jax.Array, w: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = math.prod(w.shape[:inputs])
    dx, dw = _gradients(1, x.reshape(-1, size), w.reshape(size, -1), dy.reshape(-1, w.size // size))
    return dx.reshape(x.shape), dw.reshape(w.shape)


def _contract(a: jax.Array, of_a: Sequence[int], b: jax.Array, of_b: Sequence[int], dtype: DTypeLike | None) -> jax.Array:
    return lax.dot_general(a, b, ((tuple(of_a), tuple(of_b)), ((), ())), preferred_element_type=dtype)


# Not `product` itself at first: what the backward pass keeps is chosen by the name of the operation.
product.defvjp(lambda x, w, *options: (_plain_product(x, w, *options), (x, w)), _product_gradients)


class Linear(nn.Module):
    """`x @ w + b` on the last dimension: [..., in] → [..., features].

    Attributes:
      features: output width.
      axes: logical axes of the (in, out) weight; the bias has the second.
      kernel_init: of the weight; biases start at zero.
    """

    features: int
    axes: tuple[str, str]
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        w = weight(self, "w", (x.shape[-1], self.features), self.axes, self.kernel_init)
        y = product(x.astype(self.dtype), w.astype(self.dtype))
        if self.use_bias:
            y += weight(self, "b", (self.features,), self.axes[1:], initializers.zeros).astype(self.dtype)
        return y


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension with f32 statistics; scale and bias may be left out."""

    use_scale: bool = True
    use_bias: bool = True
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1:]
        x32 = x.astype(jnp.float32)
        mean = x32.mean(-1, keepdims=True)
        centred = x32 - mean
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        if self.use_scale:
            y *= weight(self, "scale", width, ("vector",), initializers.ones)
        if self.use_bias:
            y += weight(self, "bias", width, ("vector",), initializers.zeros)
        return y.astype(x.dtype)
