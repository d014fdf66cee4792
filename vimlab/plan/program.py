"""What a traced step does, whatever compiles it: FLOPs, the traffic of its products, the arrays alive at its worst moment.

Read from the jaxpr, so that recomputation, loops over layers and gradients are all in it. Sizes are global, before any
sharding; `Split` turns them into a chip's share.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.extend.core import Literal

# Made where they are read, inside the operation that reads them.
FUSED = {
    "broadcast_in_dim", "convert_element_type", "iota", "reshape", "squeeze", "expand_dims", "transpose", "select_n", "random_bits", "random_wrap",
    "random_unwrap", "random_fold_in", "shift_right_logical", "or", "and", "bitcast_convert_type", "copy", "eq", "lt", "gt", "ge", "le", "neg",
    "sharding_constraint", "optimization_barrier", "sub", "mul", "div", "exp", "max", "min", "integer_pow", "square", "abs", "sign", "stop_gradient",
    "reduce_precision", "erf", "tanh", "log", "rsqrt", "sqrt", "name", "pvary",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Work:
    """flops: of products and convolutions; bytes: that they read and write; unknown: loops of unknown length and opaque kernels."""

    flops: float = 0.0
    bytes: float = 0.0
    unknown: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.unknown + other.unknown)

    def times(self, count: float) -> "Work":
        return Work(self.flops * count, self.bytes * count, self.unknown)


def work(jaxpr: Any, rare: float = 1.0) -> Work:
    """The products of a jaxpr, each as often as it runs.

    Args:
      jaxpr: of a step.
      rare: how often a branch is taken whose alternative computes nothing; of other branches, the one with the most FLOPs counts.
    """
    total = Work()
    for eqn in jaxpr.eqns:
        name, inner = eqn.primitive.name, [work(j, rare) for j in subjaxprs(eqn)]
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += Work(2.0 * _size(eqn.outvars[0]) * math.prod(eqn.invars[0].aval.shape[d] for d in contracted), _traffic(eqn))
        elif name == "conv_general_dilated":
            total += Work(_conv_flops(eqn), _traffic(eqn))
        elif name == "pallas_call":
            estimate = eqn.params.get("cost_estimate")
            total += Work(estimate.flops, estimate.bytes_accessed) if estimate else Work(0, _traffic(eqn), 1)
        elif name == "cond":
            most = max(inner, key=lambda w: w.flops)
            total += most.times(rare) if min(w.flops for w in inner) == 0 else most
        elif name == "scan":
            total += inner[0].times(eqn.params["length"])
        elif name == "while":
            total += sum(inner, Work(unknown=1))
        elif name == "shard_map":
            mesh = eqn.params["mesh"]
            total += inner[0].times(math.prod(mesh.shape[a] for a in eqn.params.get("manual_axes", mesh.shape)))
        else:
            total += sum(inner, Work())
    return total


def _conv_flops(eqn: Any) -> float:
    kernel, numbers = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"]
    taps = math.prod(kernel) / kernel[numbers.rhs_spec[0]]  # Input channels and window of one output channel.
    return 2.0 * _size(eqn.outvars[0]) * taps / math.prod(eqn.params["lhs_dilation"])


def subjaxprs(eqn: Any) -> Iterator[Any]:
    """The programs inside an operation: bodies of loops, branches, calls. A kernel's is not one of them."""
    if eqn.primitive.name == "pallas_call":
        return
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


@dataclasses.dataclass(frozen=True)
class Alive:
    """An array at the worst moment. bytes: of a chip's share; shape, dtype: of the whole; name: of what made it."""

    bytes: float
    shape: tuple[int, ...]
    dtype: str
    name: str


@dataclasses.dataclass(frozen=True)
class Split:
    """A chip's share of an array, by its shape, for the partitioner's own choice is not known before it is made.

    Attributes:
      rows: examples worked on at once; an array with a dimension of a multiple of them is split over `batch` chips.
      batch: data-parallel chips.
      inner: sizes of the dimensions that are split over `tensor` chips, such as heads and hidden widths.
      tensor: see there.
      weights: chips that all other arrays are split over.
    """

    rows: int
    batch: int
    inner: frozenset[int]
    tensor: int
    weights: int

    def __call__(self, shape: tuple[int, ...]) -> int:
        if not any(n >= self.rows and n % self.rows == 0 for n in shape):
            return self.weights if len(shape) > 1 else 1
        return self.batch * (self.tensor if self.inner.intersection(shape) else 1)


def peak(jaxpr: Any, split: Callable[[tuple[int, ...]], int]) -> list[Alive]:
    """The arrays that are alive at the worst moment besides the program's arguments, largest first; an estimate from above.

    Cheap operations are taken to be fused into their readers, and nothing else to share its memory.
    """
    last = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars if not isinstance(v, Literal)}
    last |= {v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, Literal)}
    alive: dict[Any, Alive] = {}
    size, worst, record = 0.0, 0.0, []
    for i, eqn in enumerate(jaxpr.eqns):
        # Inside `shard_map` shapes are those of a device already.
        within = (lambda shape: 1) if eqn.primitive.name == "shard_map" else split
        inner = max((peak(j, within) for j in subjaxprs(eqn)), key=_total, default=[])
        for v, parts in zip(eqn.outvars, _parts(eqn, split), strict=True):
            if v in last and (eqn.primitive.name not in FUSED or last[v] == len(jaxpr.eqns)):
                alive[v] = _alive(v, eqn, parts)
                size += alive[v].bytes
        if size + _total(inner) > worst:
            worst, record = size + _total(inner), [*alive.values(), *inner]
        for v in {v for v in eqn.invars if not isinstance(v, Literal)}:
            if last.get(v) == i and v in alive:
                size -= alive.pop(v).bytes
    return sorted(record, key=lambda a: -a.bytes)


def _total(alive: list[Alive]) -> float:
    return sum(a.bytes for a in alive)


def _parts(eqn: Any, split: Callable[[tuple[int, ...]], int]) -> list[int]:
    """Into how many parts each output of an operation is split."""
    if eqn.primitive.name != "shard_map":
        return [split(tuple(v.aval.shape)) for v in eqn.outvars]
    axes = lambda spec: [a for entry in spec if entry for a in ((entry,) if isinstance(entry, str) else entry)]
    return [math.prod(eqn.params["mesh"].shape[a] for a in axes(spec)) for spec in eqn.params["out_specs"]]


def _alive(v: Any, eqn: Any, parts: int) -> Alive:
    shape = tuple(v.aval.shape)
    name = "/".join(filter(None, (str(eqn.source_info.name_stack), eqn.primitive.name)))
    return Alive(_bytes(v) / parts, shape, str(v.aval.dtype), name)


def _size(v: Any) -> int:
    return math.prod(v.aval.shape)


def _bytes(v: Any) -> int:
    try:
        return _size(v) * np.dtype(v.aval.dtype).itemsize
    except (TypeError, AttributeError):  # PRNG keys, tokens.
        return 0


def _traffic(eqn: Any) -> float:
    return float(sum(map(_bytes, (*eqn.invars, *eqn.outvars))))
