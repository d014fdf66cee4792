"""Logical axes to mesh axes: one table, `spec()` and `constrain()` that raise, shardings of whole states.

Every parameter and every constrained activation names its axes in the model's words ('embed', 'mlp', 'batch', …); the
table says which mesh axis each is split over. Weights and activations have separate names.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vimlab.config import UserError

RULES: dict[str, tuple[str, ...]] = {
    # Weights.
    "layers": (),
    "embed": ("fsdp",),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "head_dim": (),
    "pixels": (),
    "positions": (),
    "codes": (),
    "vocabulary": (),
    "code_dim": (),
    "conv_in": ("fsdp",),
    "conv_out": ("tensor",),
    "conv_out_only": ("fsdp", "tensor"),
    "kernel": (),
    "vector": (),
    # Activations.
    "batch": ("data", "fsdp"),
    "length": (),
    "act_embed": (),
    "act_mlp": ("tensor",),
    "act_heads": ("tensor",),
    "act_head_dim": (),
    "height": (),
    "width": (),
    "channels": (),
}
MESH_AXES = ("data", "fsdp", "tensor")
Axes = Sequence[str | None]


class ShardingError(UserError):
    """A layout that cannot be, or is not what was asked for; the message says which axis or array and what to do."""


def spec(axes: Axes) -> PartitionSpec:
    """The PartitionSpec of logical axes. Raises ShardingError on an unknown axis or a mesh axis used twice."""
    unknown = [a for a in axes if a is not None and a not in RULES]
    if unknown:
        raise ShardingError(f"unknown logical axes {unknown}; vimlab.parallel.rules.RULES knows {sorted(RULES)}")
    entries = [RULES[a] if a else () for a in axes]
    used = [m for entry in entries for m in entry]
    if len(set(used)) != len(used):
        raise ShardingError(f"axes {tuple(axes)} would use a mesh axis twice: {entries}")
    return PartitionSpec(*[e if len(e) > 1 else (e[0] if e else None) for e in entries])


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the compiler to lay an activation out along its logical axes; outside a mesh it only checks the names."""
    if x.ndim != len(axes):
        raise ShardingError(f"an array of shape {x.shape} was given {len(axes)} axes: {axes}")
    partition = spec(axes)
    return x if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, partition)


def logical_axes(boxed: Any) -> Any:
    """The tree of axis names of parameters as `Module.init` returns them (boxed); None for an unnamed leaf's axes."""
    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
    return jax.tree.map(lambda x: tuple(x.names) if is_box(x) else (None,) * x.ndim, boxed, is_leaf=is_box)


def fit(partition: PartitionSpec, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Drops from a spec the mesh axes that do not divide their dimension, so that odd sizes stay whole."""
    entries = tuple(partition) + (None,) * (len(shape) - len(partition))
    return PartitionSpec(*[e if size % axes_size(e, mesh) == 0 else None for e, size in zip(entries, shape, strict=True)])


def axes_size(entry: str | Sequence[str] | None, mesh: Mesh) -> int:
    """How many ways one entry of a PartitionSpec splits its dimension."""
    names = () if entry is None else (entry,) if isinstance(entry, str) else entry
    return int(np.prod([mesh.shape[n] for n in names], dtype=int))


def param_shardings(mesh: Mesh, params: Any, axes: Any) -> Any:
    """NamedShardings for (abstract, unboxed) parameters from their logical axes, `logical_axes(boxed)`."""
    leaves, treedef = jax.tree.flatten(params)
    names = treedef.flatten_up_to(axes)
    return treedef.unflatten([NamedSharding(mesh, fit(spec(n), p.shape, mesh)) for p, n in zip(leaves, names, strict=True)])


def opt_shardings(mesh: Mesh, tx: optax.GradientTransformation, params: Any, shardings: Any) -> Any:
    """Shardings of `tx.init(params)`: moments like their parameter, but whole in the dimensions that they reduce to size 1.

    Optax's zeros do not inherit a layout, so the state's shardings are derived and pinned by the caller.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def like(leaf, sharding, param):
        if leaf.ndim != param.ndim or any(n not in (1, size) for n, size in zip(leaf.shape, param.shape, strict=True)):
            return replicated
        return NamedSharding(mesh, fit(sharding.spec, leaf.shape, mesh))

    abstract = jax.eval_shape(tx.init, params)
    return optax.tree_map_params(tx, like, abstract, shardings, params, transform_non_params=lambda _: replicated)


def check_sharded(mesh: Mesh, params: Any, shardings: Any, tolerance: float = 0.02, floor: int = 1 << 24) -> None:
    """Fails where parameters that ought to be split over `fsdp` or `tensor` are mostly whole on every device.

    Raises:
      ShardingError: more than `tolerance` of the parameter bytes, and more than `floor` bytes, are replicated over both of
        those axes while one of them is larger than 1; the message names the largest such parameters.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sizes = [leaf.size * leaf.dtype.itemsize for _, leaf in leaves]
    whole = []
    for (path, _), size, sharding in zip(leaves, sizes, jax.tree.leaves(shardings), strict=True):
        if all(axes_size(entry, mesh) == 1 for entry in sharding.spec):
            whole.append((size, re.sub(r"[\[\]']+", ".", jax.tree_util.keystr(path)).strip(".").replace("..", ".")))
    share = sum(s for s, _ in whole) / max(sum(sizes), 1)
    if share > tolerance and sum(s for s, _ in whole) > floor:
        worst = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for size, name in sorted(whole, reverse=True)[:3])
        raise ShardingError(
            f"{share:.0%} of the parameter bytes would be replicated over a mesh of {dict(mesh.shape)} (at most {tolerance:.0%} "
            f"is allowed); the largest are {worst}: choose mesh sizes that divide the model's widths, or use config.mesh.data"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of a batch: its first dimension over every data-parallel axis."""
    return NamedSharding(mesh, spec(("batch",)))



def rows_here(mesh: Mesh, batch_size: int) -> list[int]:
    """Which rows of a global batch the devices of this process hold, ascending; devices that split no batch hold the same."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for (rows,) in held for row in range(*rows.indices(batch_size))})
