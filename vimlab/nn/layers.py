"""Layers with every parameter's shape, axes and initialiser on one line. Parameters are f32; `dtype` is the compute type."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike

Initializer = Callable[..., jax.Array]


def weight(module: nn.Module, name: str, shape: Sequence[int], axes: Sequence[str | None], init: Initializer) -> jax.Array:
    """Declares an f32 parameter of `module` with its logical axes (one name a dimension)."""
    if len(shape) != len(axes):
        raise ValueError(f"parameter {name!r} of shape {tuple(shape)} needs {len(shape)} axes, not {tuple(axes)}")
    return module.param(name, nn.with_logical_partitioning(init, tuple(axes)), tuple(shape), jnp.float32)


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
        y = jnp.matmul(x.astype(self.dtype), w.astype(self.dtype))
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
