"""Multinomial logistic regression on device: one well-defined optimum, found by L-BFGS on the full batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

STEPS, TOLERANCE = 500, 1e-4


def objective(params: dict[str, jax.Array], x: jax.Array, labels: jax.Array, weights: jax.Array, decay: ArrayLike) -> jax.Array:
    """Weighted mean cross-entropy in nats + decay/2 · |w|², the bias left alone: f32[].

    Args:
      params: {"w": f32[D,C], "b": f32[C]}.
      x: f32[N,D].
      labels: i32[N].
      weights: f32[N], at least 0.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(x @ params["w"] + params["b"], labels)
    return (weights * losses).sum() / weights.sum() + decay / 2 * jnp.square(params["w"]).sum()


@functools.partial(jax.jit, static_argnames="classes")
def fit(x: jax.Array, labels: jax.Array, weights: jax.Array, decay: ArrayLike, classes: int) -> dict[str, jax.Array]:
    """The parameters that minimise `objective`, from zeros, until its gradient's norm is at most TOLERANCE or for STEPS steps."""
    with jax.default_matmul_precision("highest"):  # Accelerators multiply f32 numbers more coarsely unless told.
        value = lambda params: objective(params, x, labels, weights, decay)
        params = {"w": jnp.zeros((x.shape[1], classes)), "b": jnp.zeros(classes)}
        solver, both = optax.lbfgs(), optax.value_and_grad_from_state(value)

        def step(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            params, state, n = carry
            loss, grad = both(params, state=state)
            updates, state = solver.update(grad, state, params, value=loss, grad=grad, value_fn=value)
            return optax.apply_updates(params, updates), state, n + 1

        def unfinished(carry: tuple[Any, Any, Any]) -> jax.Array:
            _, state, n = carry
            return (n == 0) | ((n < STEPS) & (optax.tree.norm(optax.tree.get(state, "grad")) > TOLERANCE))

        return jax.lax.while_loop(unfinished, step, (params, solver.init(params), jnp.int32(0)))[0]


@jax.jit
def predict(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """The likeliest class of each of f32[N,D]: i32[N]."""
    with jax.default_matmul_precision("highest"):
        return (x @ params["w"] + params["b"]).argmax(-1).astype(jnp.int32)
