"""Layers in a pipeline over the mesh's `stage` axis: the forward and backward passes of `schedule`'s circular schedule."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from vimlab.parallel.rules import RULES, spec
from vimlab.parallel.schedule import Pipeline

ROWS = P(RULES["batch"])  # Outside of the ring every device, those of `stage` too, has rows of its own: embedding and softmax are data-parallel.
SHARES = ("data", "fsdp")  # Inside it these devices have shares of each microbatch.


def stages_here() -> int:
    """Size of the `stage` axis of the mesh around; 1 without one."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("stage", 1)


def run_pipeline(
    pipeline: Pipeline, visit: Callable[..., Any], weights: Any, axes: Any, x: Any, fixed: Any, key: jax.Array | None, dtype: DTypeLike
) -> Any:
    """Takes a batch through all layers; differentiable in `weights` and `x`. To be called within a mesh that has stages.

    Between steps weights lie spread over `stage` by their widths, as all parameters do, so that a state is the same on every mesh. A
    pass begins with fetching each stage its layers; gradients return the same way. The backward pass computes each visit again from
    what it began with, which is all that is kept of it.

    Args:
      visit: `visit(weights [per_visit,…], layers i32[per_visit], x, fixed, key) → y`, y like x's first element; the layers' work.
      weights: tree of f32[depth,…].
      axes: the logical axes of each, as `rules.logical_axes` has them.
      x: (f[B,…] that the layers change, tree of f[B,…] that goes along unchanged, such as a memory).
      fixed: tree of [B,…] that goes along and has no gradient, such as lengths.
      key: of dropout; each microbatch and share of it has its own.
      dtype: that matrices are multiplied in, and therefore travel in.

    Returns:
      f[B,…], what the last layer makes of x's first element.
    """
    names = tuple(map(tuple, jax.tree.structure(weights).flatten_up_to(axes)))
    return _run((pipeline, visit, names, jnp.dtype(dtype)), weights, x, fixed, None if key is None else jax.random.key_data(key))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(static, weights, x, fixed, key):
    return _forward(static, weights, x, fixed, key)[0]


def _forward(static, weights, x, fixed, key):
    pipeline, visit, names, dtype = static
    held = _fetch(pipeline, names, weights, dtype)
    body, specs = functools.partial(_forward_local, pipeline, visit), (P(None, "stage"), ROWS, ROWS, P())
    out, inputs = _local(body, specs, (ROWS, _INPUTS))(*_places(pipeline), held, x, fixed, key)
    return out, (held, inputs, key)


def _backward(static, saved, dy):
    pipeline, visit, names, _ = static
    held, inputs, key = saved
    body, specs = functools.partial(_backward_local, pipeline, visit), (P(None, "stage"), _INPUTS, P(), ROWS)
    grads, dx = _local(body, specs, (P(SHARES, None, "stage"), ROWS))(*_places(pipeline), held, inputs, key, dy)
    return _return(pipeline, names, grads), dx, None, None


_run.defvjp(_forward, _backward)
# What visits began with: [T, stage, share, …], so that each device keeps its own.
_INPUTS = P(None, "stage", SHARES)


# ---- weights: spread between steps, at their stages within one ----


def _at_stages(axes: tuple[str | None, ...]) -> tuple:
    """How [rounds, stages, per_visit,…] lies while the stages compute: whole in all but its heads or hidden width."""
    return None, "stage", None, *(RULES[a][0] if a and RULES[a] == ("tensor",) else None for a in axes[1:])


def _fetch(pipeline: Pipeline, names: tuple, weights: Any, dtype: DTypeLike) -> Any:
    """Each stage's layers, [rounds, stages, per_visit,…], from what every device holds of all layers."""

    def fetch(w, axes):
        w = w.reshape(pipeline.rounds, pipeline.stages, pipeline.per_visit, *w.shape[1:])
        if "embed" not in axes:
            return jax.lax.dynamic_slice_in_dim(w, jax.lax.axis_index("stage"), 1, 1)
        width = axes.index("embed") + 2
        w = jax.lax.all_to_all(w, "stage", 1, width, tiled=True)  # The parts of `stage` are within those of `fsdp`.
        return jax.lax.all_gather(w, "fsdp", axis=width, tiled=True)

    def move(w, axes):
        w = w.astype(dtype) if w.ndim > 2 else w
        return jax.shard_map(functools.partial(fetch, axes=axes), in_specs=spec(axes), out_specs=P(*_at_stages(axes)), check_vma=False)(w)

    return _by_names(move, weights, names)


def _return(pipeline: Pipeline, names: tuple, grads: Any) -> Any:
    """The transpose of `_fetch`: gradients [share, rounds, stages, per_visit,…] summed over the shares, and spread as weights are."""

    def back(g, axes):
        g = g[0]
        if "embed" not in axes:
            whole = jnp.zeros((g.shape[0], pipeline.stages, *g.shape[2:]), g.dtype)
            g = jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(whole, g, jax.lax.axis_index("stage"), 1), ("data", "fsdp", "stage"))
        else:
            width = axes.index("embed") + 2
            g = jax.lax.psum_scatter(jax.lax.psum(g, "data"), "fsdp", scatter_dimension=width, tiled=True)
            g = jax.lax.all_to_all(g, "stage", width, 1, tiled=True)
        return g.reshape(-1, *g.shape[3:])

    def move(g, axes):
        specs = dict(in_specs=P(SHARES, *_at_stages(axes)), out_specs=spec(axes))
        return jax.shard_map(functools.partial(back, axes=axes), **specs, check_vma=False)(g)

    return _by_names(move, grads, names)


def _by_names(fn: Callable, tree: Any, names: tuple) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(map(fn, leaves, names))


def _places(pipeline: Pipeline) -> tuple[jax.Array, jax.Array]:
    """Each device's stage and share of a microbatch, as arrays: asking for them by `axis_index` needs a mesh that is manual throughout."""
    mesh = jax.sharding.get_abstract_mesh()
    return jnp.arange(pipeline.stages), jnp.arange(mesh.shape["data"] * mesh.shape["fsdp"])


def _local(body: Callable, in_specs: tuple, out_specs: tuple) -> Callable:
    """`body(stage, share, …)` on each device's own part; the `tensor` axis is left to the compiler."""
    specs = (P("stage"), P(SHARES), *in_specs)
    return jax.shard_map(body, in_specs=specs, out_specs=out_specs, axis_names={"data", "fsdp", "stage"}, check_vma=False)


def _right(pipeline: Pipeline, tree: Any) -> Any:
    """From each stage to the next, and from the last to the first."""
    ways = [(s, (s + 1) % pipeline.stages) for s in range(pipeline.stages)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, "stage", ways), tree)


def _left(pipeline: Pipeline, tree: Any) -> Any:
    ways = [((s + 1) % pipeline.stages, s) for s in range(pipeline.stages)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, "stage", ways), tree)


def _swap(condition: jax.Array, a: Any, b: Any) -> tuple[Any, Any]:
    """(a, b), exchanged where the condition holds."""
    choose = lambda a, b: jax.tree.map(lambda a, b: jnp.where(condition, b, a), a, b)
    return choose(a, b), choose(b, a)


class _Stage:
    """One device's part in a pass.

    Two rings turn, one against the other. `ring` takes microbatches from stage to stage. `feed` brings those that wait, one on
    each stage at the start of a group, to the first stage, which in their stead puts what comes out of its last round; after S
    iterations the group's outputs are on the stages where its predecessor's inputs were.
    """

    def __init__(self, pipeline: Pipeline, visit: Callable, stage: jax.Array, share: jax.Array, weights: Any, key: jax.Array | None) -> None:
        self.pipeline, self._visit, self.stage, self._share = pipeline, visit, stage, share
        self.weights = jax.tree.map(lambda w: w[:, 0], weights)
        self._key = None if key is None else jax.random.fold_in(jax.random.wrap_key_data(key), self._share)

    def exchanges(self, iteration: jax.Array) -> jax.Array:
        """Whether the first stage takes what waits, here and now."""
        return (self.stage == 0) & (iteration % (self.pipeline.rounds * self.pipeline.stages) < self.pipeline.stages)

    def round(self, iteration: jax.Array) -> jax.Array:
        return self.pipeline.visit(self.stage, iteration)[1]

    def compute(self, weights: Any, x: Any, fixed: Any, iteration: jax.Array) -> Any:
        """The visit that this iteration is, with the weights of its round."""
        per, (microbatch, turn) = self.pipeline.per_visit, self.pipeline.visit(self.stage, iteration)
        layers = (turn * self.pipeline.stages + self.stage) * per + jnp.arange(per)
        key = None if self._key is None else jax.random.fold_in(self._key, microbatch)
        return self._visit(weights, layers, x, fixed, key)

    def of_round(self, turn: jax.Array) -> Any:
        return jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, turn, keepdims=False), self.weights)


def _groups(pipeline: Pipeline, tree: Any) -> Any:
    """A device's rows [n,…] → [M / S, n S / M,…]: the microbatches that wait on it."""
    parts = pipeline.microbatches // pipeline.stages
    return jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), tree)


def _forward_local(pipeline, visit, stage, share, held, x, fixed, key):
    me = _Stage(pipeline, visit, stage[0], share[0], held, key)
    stages, circle = pipeline.stages, pipeline.rounds * pipeline.stages
    waiting = _groups(pipeline, (x, fixed))
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), waiting)

    def step(rings, iteration):
        ring, feed = rings
        here, feed = _swap(me.exchanges(iteration), ring, feed)
        (changed, along), fixed = here
        y = me.compute(me.of_round(me.round(iteration)), (changed, along), fixed, iteration)
        return (_right(pipeline, ((y, along), fixed)), _left(pipeline, feed)), here

    def group(ring, numbered):
        number, feed = numbered
        (ring, feed), inputs = jax.lax.scan(step, (ring, feed), number * circle + jnp.arange(circle))
        return ring, (feed[0][0], inputs)

    groups = pipeline.microbatches // stages
    ring, (outputs, inputs) = jax.lax.scan(group, nothing, (jnp.arange(groups), waiting))
    (ring, feed), last_inputs = jax.lax.scan(step, (ring, nothing), groups * circle + jnp.arange(stages - 1))
    _, last = _swap(me.stage == 0, ring[0][0], feed[0][0])
    out = jnp.concatenate([outputs[1:], _left(pipeline, last)[None]])
    one = lambda a: a[:, None, None]  # Dimensions for stage and share.
    inputs = jax.tree.map(lambda a, b: one(jnp.concatenate([a.reshape(-1, *a.shape[2:]), b])), inputs, last_inputs)
    return out.reshape(-1, *out.shape[2:]), inputs


def _backward_local(pipeline, visit, stage, share, held, inputs, key, dy):
    me = _Stage(pipeline, visit, stage[0], share[0], held, key)
    stages, circle, groups = pipeline.stages, pipeline.rounds * pipeline.stages, pipeline.microbatches // pipeline.stages
    inputs = jax.tree.map(lambda a: a[:, 0, 0], inputs)
    nothing = jax.tree.map(lambda a: jnp.zeros_like(a[0]), inputs[0])
    douts = _groups(pipeline, dy)

    def step(carry, numbered):
        dring, dfeed, grads = carry
        iteration, (x, fixed) = numbered
        dfeed, (dy, passed) = _right(pipeline, dfeed), _left(pipeline, dring)
        turn = me.round(iteration)
        _, pull = jax.vjp(lambda w, x: me.compute(w, x, fixed, iteration), me.of_round(turn), x)
        dw, (dx, dalong) = pull(dy)
        add = lambda total, g: total.at[turn].add(g.astype(total.dtype))
        grads = jax.tree.map(add, grads, dw)
        dhere = dx, jax.tree.map(jnp.add, dalong, passed)
        dring, dfeed = _swap(me.exchanges(iteration), dhere, dfeed)
        return (dring, dfeed, grads), None

    split = lambda a: (jax.tree.map(lambda a: a[: groups * circle].reshape(groups, circle, *a.shape[1:]), a), jax.tree.map(lambda a: a[groups * circle :], a))
    main, tail = split(inputs)
    grads = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), me.weights)
    # The last group's outputs leave after the last iteration, from the first stage, through `feed`.
    last = _right(pipeline, douts[-1])
    dring, dfeed = _swap(me.stage == 0, jnp.zeros_like(last), last)
    carry = (dring, nothing[1]), (dfeed, nothing[1]), grads
    (dring, _, grads), _ = jax.lax.scan(step, carry, (groups * circle + jnp.arange(stages - 1), tail), reverse=True)

    def group(carry, numbered):
        dring, grads = carry
        number, inputs, dout = numbered
        iterations = number * circle + jnp.arange(circle)
        (dring, dfeed, grads), _ = jax.lax.scan(step, (dring, (dout, nothing[1]), grads), (iterations, inputs), reverse=True)
        return (dring, grads), dfeed

    # What leaves `feed` at the end of a group are the outputs of the group before; the first has none before it.
    before = jnp.concatenate([jnp.zeros_like(douts[:1]), douts[:-1]])
    (_, grads), dx = jax.lax.scan(group, (dring, grads), (jnp.arange(groups), main, before), reverse=True)
    return jax.tree.map(lambda g: g[None, :, None], grads), jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), dx)
