"""What the vimlab children of the benchmarks share: a training step as `vimlab train` makes it, and flat names of parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pair import Arrays


def flatten(tree: Any) -> Arrays:
    """{path joined by '/': array}."""
    return {_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def fill(tree: Any, arrays: Arrays) -> Any:
    """The tree with the arrays of its leaves' names; the inverse of `flatten`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(arrays[_name(path)]), tree)


def _name(path: Any) -> str:
    return "/".join(str(k.key) for k in path)


class Step:
    """Donated state, metrics, the guard against non-finite losses: a task's step from given weights.

    Args:
      task: as `vimlab train` would build it.
      batch: what it trains on.
      arrays: its parameters under their flat names.
    """

    def __init__(self, task: Any, batch: dict[str, jax.Array], arrays: Arrays) -> None:
        self.task, self.batch = task, batch
        fresh = jax.jit(task.init)(jax.random.key(0))
        self.initial = fresh.replace(params=fill(fresh.params, arrays))
        self.frozen, self.root = jax.device_put(task.frozen), jax.random.key(0)
        self.state, self._step = None, jax.jit(task.train_step, donate_argnums=0)

    def begin(self, step: int) -> Arrays:
        """The loss and the gradients of a first step, made as the one of this number."""
        self.state = jax.tree.map(jnp.copy, self.initial)
        loss, size = self.next(step)["loss"]
        # The first step's gradients, read from AdamW's first moments.
        moments = {name: _first_moments(optim) for name, optim in self.state.opt_state.items()}
        gradients = flatten(jax.tree.map(lambda m: m / (1 - self.task.config.optim.b1), moments))
        return {"loss": np.asarray(loss / size)} | {f"gradients of {k}": v for k, v in gradients.items()}

    def next(self, step: int) -> Any:
        """The metrics of a step made as the one of this number; waits for the whole of it."""
        state = self.state.replace(step=jnp.int32(step))
        self.state, metrics = self._step(state, self.frozen, self.batch, self.root)
        return jax.block_until_ready((self.state, metrics))[1]


def _first_moments(opt_state: Any) -> Any:
    """The first moments in an optax chain."""
    return next(part.mu for part in opt_state if hasattr(part, "mu"))
