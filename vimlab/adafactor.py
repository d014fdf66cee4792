"""Adafactor's parts: the factored second moment with clipped updates, and a first moment in int8; layer by layer.

A scanned stack keeps one array [layers, ...] in place of its layers' tensors. Each part is written for one tensor and mapped
over the layers where `stacked` says so: a scanned and an unscanned model take the same steps. What a state averages over
some dimensions keeps them with size 1, so that its layout follows from the parameter's (`vimlab.parallel.rules`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

STEPS = 127  # Of int8 on either side of zero; -128 is not used.

Stacked = Callable[[Any], Any]  # From a tree of parameters to one of bools: whose first dimension is that of the layers?


class FactoredState(NamedTuple):
    """The second moment. count: i32[]; rows, columns: trees like the parameters'.

    A factored tensor's rows are the average of its squared gradient over the largest dimension, its columns over the second
    largest, f32. One that is not factored has the whole in `rows`, and in `columns` one number that nothing reads.
    """

    count: jax.Array
    rows: Any
    columns: Any


class Int8State(NamedTuple):
    """The first moment, values times scales. values: int8, shaped like the parameters; scales: f32, axis 0 of a tensor is 1."""

    values: Any
    scales: Any


def scale_by_factored_rms(b2: float, epsilon: float, clip: float, min_dim: int, stacked: Stacked) -> optax.GradientTransformation:
    """Gradients over the root of their factored second moment, each tensor's clipped to a root mean square of `clip`.

    Args:
      b2: decay of the second moment. Adam's bias correction is part of it, in place of Adafactor's power of the step.
      epsilon: added to squared gradients.
      min_dim: tensors are factored, over their two largest dimensions, where both have at least this size.
    """

    def init(params):
        def one(p):
            axes = _factored_axes(p.shape, min_dim)
            shapes = [_reduced(p.shape, a) for a in axes] if axes else [p.shape, (1,) * p.ndim]
            return tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)

        return FactoredState(jnp.int32(0), *_by_layer(one, 2, stacked, params))

    def update(grads, state, params=None):
        decay = b2 * (1 - b2**state.count) / (1 - b2 ** (state.count + 1))

        def one(g, rows, columns):
            square = jnp.square(g) + epsilon
            if axes := _factored_axes(g.shape, min_dim):
                rows, columns = (decay * v + (1 - decay) * square.mean(a, keepdims=True) for v, a in zip((rows, columns), axes, strict=True))
                # Not rsqrt(rows / mean): that ratio underflows where a row's gradients are zero and others' are large.
                u = g * jax.lax.rsqrt(rows) * jax.lax.rsqrt(columns) * jnp.sqrt(rows.mean(axes[1], keepdims=True))
            else:
                rows = decay * rows + (1 - decay) * square
                u = g * jax.lax.rsqrt(rows)
            return u / jnp.maximum(1, jnp.sqrt(jnp.square(u).mean()) / clip), rows, columns

        updates, rows, columns = _by_layer(one, 3, stacked, grads, state.rows, state.columns)
        return updates, FactoredState(optax.safe_increment(state.count), rows, columns)

    return optax.GradientTransformation(init, update)


def int8_ema(decay: float, stacked: Stacked) -> optax.GradientTransformation:
    """The exponential moving average of updates, without bias correction, kept in int8 between steps.

    The step itself is the average before it is rounded. Its error does not add up: a step forgets 1 - decay of the past ones.
    """

    def init(params):
        return Int8State(*_by_layer(lambda p: quantize(jnp.zeros(p.shape, jnp.float32)), 2, stacked, params))

    def update(updates, state, params=None):
        def one(u, values, scales):
            average = decay * (values * scales) + (1 - decay) * u
            return average, *quantize(average)

        averages, *moment = _by_layer(one, 3, stacked, updates, *state)
        return averages, Int8State(*moment)

    return optax.GradientTransformation(init, update)


def quantize(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest int8 values of f32[n,...], and the f32[1,...] that they are multiples of: the largest |x| of a column is 127."""
    scale = jnp.abs(x).max(tuple(range(x.ndim))[:1], keepdims=True) / STEPS
    return jnp.round(x / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale


def _factored_axes(shape: Sequence[int], min_dim: int) -> tuple[int, int] | None:
    """The largest and the second largest dimension, the later of equals first; None where a tensor is not factored."""
    axes = sorted(range(len(shape)), key=lambda a: (shape[a], a), reverse=True)[:2]
    return (axes[0], axes[1]) if len(axes) == 2 and shape[axes[1]] >= min_dim else None


def _reduced(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _by_layer(one: Callable, results: int, stacked: Stacked, tree: Any, *rest: Any) -> list[Any]:
    """Maps a function of one tensor over trees and, where these stack layers, over the layers; a tree for each of its results."""
    out = jax.tree.map(lambda layers, *x: (jax.vmap(one) if layers else one)(*x), stacked(tree), tree, *rest)
    return [jax.tree.map(lambda _, o: o[i], tree, out) for i in range(results)]  # noqa: B023
