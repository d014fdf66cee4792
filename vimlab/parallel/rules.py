"""Logical axes to mesh axes: one table, `spec()` and `constrain()` that raise, shardings of whole states.

Every parameter and every constrained activation names its axes in the model's words ('embed', 'mlp', 'batch', …); the
table says which mesh axis each is split over. Weights and activations have separate names.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vimlab.config import UserError

RULES: dict[str, tuple[str, ...]] = {
    # Weights.
    "layers": (),
    "embed": ("fsdp", "stage"),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "head_dim": (),
    "pixels": (),
    "positions": (),
    "codes": (),
    "vocabulary": ("tensor",),
    "code_dim": (),
    "conv_in": ("fsdp",),
    "conv_out": ("tensor",),
    "conv_out_only": ("fsdp", "tensor"),
    "kernel": (),
    "vector": (),
    # Activations.
    "batch": ("data", "stage", "fsdp"),
    "length": (),
    "act_length": ("tensor",),
    "act_embed": (),
    "act_mlp": ("tensor",),
    "act_heads": ("tensor",),
    "act_head_dim": (),
    # Of networks of convolutions: their kernels are far smaller than what they make, so `tensor` splits the batch there, too.
    "pictures": ("data", "stage", "fsdp", "tensor"),
    "height": (),
    "width": (),
    "channels": (),
}
# From the axis that speaks least to the one that speaks most: the last have the shortest ways on the machine.
MESH_AXES = ("data", "stage", "fsdp", "tensor")
# Dimensions of weights that must divide; small odd ones, such as the patches' or the discriminator's first, may stay whole.
MUST_DIVIDE = {"embed": "width", "mlp": "hidden width", "heads": "number of heads"}
# What is not laid out unevenly, as a lone position decoded would be: the last mesh axes are left out until the others divide it.
GIVE_WAY = ("act_length", "pictures")
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


def open_spec(shape: Sequence[int], axes: Axes, mesh: AbstractMesh) -> PartitionSpec:
    """The spec of an activation as the compiler may be asked for it inside `mesh`: without the axes that are in manual hands."""
    entries = []
    for size, name, entry in zip(shape, axes, spec(axes), strict=True):
        free = [m for m in _names(entry) if m not in mesh.manual_axes]
        while name in GIVE_WAY and size % axes_size(free, mesh):
            free.pop()
        entries.append(tuple(free) if len(free) > 1 else free[0] if free else None)
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the compiler to lay an activation out along its logical axes; outside a mesh it only checks the names."""
    if x.ndim != len(axes):
        raise ShardingError(f"an array of shape {x.shape} was given {len(axes)} axes: {axes}")
    spec(axes)
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, open_spec(x.shape, axes, mesh))


def logical_axes(boxed: Any) -> Any:
    """The tree of axis names of parameters as `Module.init` returns them (boxed); None for an unnamed leaf's axes."""
    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
    return jax.tree.map(lambda x: tuple(x.names) if is_box(x) else (None,) * x.ndim, boxed, is_leaf=is_box)


def fit(partition: PartitionSpec, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Drops from a spec the entries that do not divide their dimension, so that small odd sizes stay whole."""
    entries = tuple(partition) + (None,) * (len(shape) - len(partition))
    return PartitionSpec(*[e if size % axes_size(e, mesh) == 0 else None for e, size in zip(entries, shape, strict=True)])


def _names(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def axes_size(entry: str | Sequence[str] | None, mesh: Mesh | AbstractMesh) -> int:
    """How many ways one entry of a PartitionSpec splits its dimension."""
    return math.prod(mesh.shape[n] for n in _names(entry))


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts a batch is split over the devices."""
    return axes_size(RULES["batch"], mesh)


def param_shardings(mesh: Mesh, params: Any, axes: Any) -> Any:
    """NamedShardings for (abstract, unboxed) parameters from their logical axes, `logical_axes(boxed)`.

    Raises:
      ShardingError: a mesh axis does not divide a width or a number of heads; the message proposes a mesh that does.
    """
    leaves, treedef = jax.tree.flatten(params)
    names = treedef.flatten_up_to(axes)
    _check_divides(mesh, [(path, p.shape, n) for (path, p), n in zip(jax.tree_util.tree_leaves_with_path(params), names, strict=True)])
    return treedef.unflatten([NamedSharding(mesh, fit(spec(n), p.shape, mesh)) for p, n in zip(leaves, names, strict=True)])


def _check_divides(mesh: Mesh, leaves: Sequence[tuple[Any, tuple[int, ...], tuple[str | None, ...]]]) -> None:
    must = [(path, size, name) for path, shape, names in leaves for size, name in zip(shape, names, strict=True) if name in MUST_DIVIDE]
    ways = lambda sizes, name: math.prod(sizes[m] for m in RULES[name])
    for path, size, name in must:
        if size % ways(mesh.shape, name):
            split = " x ".join(f"{m}={mesh.shape[m]}" for m in RULES[name] if mesh.shape[m] > 1)
            other = nearest(mesh.shape, mesh.size, lambda sizes: all(size % ways(sizes, name) == 0 for _, size, name in must))
            raise ShardingError(f"config.mesh has {split}, which does not divide the {MUST_DIVIDE[name]}, {size}, of {dotted(path)}; "
                                f"a mesh such as {show(other)} does")


def nearest(sizes: Mapping[str, int], devices: int, fits: Callable[[dict[str, int]], bool] = lambda sizes: True) -> dict[str, int] | None:
    """The mesh of so many devices that `fits` and has sizes nearest to these by their ratios, -1 being any; None where none fits."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    found = []
    for data in divisors:
        for stage, fsdp in itertools.product(divisors, divisors):
            if devices % (data * stage * fsdp) == 0:
                found.append(dict(zip(MESH_AXES, (data, stage, fsdp, devices // (data * stage * fsdp)), strict=True)))
    # Where an axis has to give, the copies of the model take what it leaves.
    far = lambda s: sum(abs(math.log(s[a] / max(sizes[a], 1))) * (0.5 if a == "data" else 1) for a in MESH_AXES if sizes[a] != -1)
    return min(filter(fits, found), key=far, default=None)


def show(sizes: Mapping[str, int]) -> str:
    """Mesh sizes as in a config: `data=4, fsdp=2`; those of 1 are left out, but for data."""
    return ", ".join(f"{a}={sizes[a]}" for a in MESH_AXES if sizes[a] != 1 or a == "data")


def dotted(path: Any) -> str:
    """A parameter's path in a tree as one name."""
    return re.sub(r"[\[\]']+", ".", jax.tree_util.keystr(path)).strip(".").replace("..", ".")


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
    """Fails where parameters that ought to be split over `fsdp`, `tensor` or `stage` are mostly whole on every device.

    Raises:
      ShardingError: more than `tolerance` of the parameter bytes, and more than `floor` bytes, are replicated over all of
        those axes while one of them is larger than 1; the message names the largest such parameters.
    """
    if mesh.shape["fsdp"] * mesh.shape["tensor"] * mesh.shape["stage"] == 1:
        return
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sizes = [leaf.size * leaf.dtype.itemsize for _, leaf in leaves]
    whole = []
    for (path, _), size, sharding in zip(leaves, sizes, jax.tree.leaves(shardings), strict=True):
        if all(axes_size(entry, mesh) == 1 for entry in sharding.spec):
            whole.append((size, dotted(path)))
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

