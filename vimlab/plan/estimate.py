"""What a step costs by arithmetic alone: a chip's share of memory, the traffic of its memory, the collectives of its mesh."""

import math
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from vimlab.generators.conditioners import TextCondition
from vimlab.plan.abstract import AbstractRun
from vimlab.plan.program import Split, Work
from vimlab.plan.volumes import Collective
from vimlab.tasks.generator_config import GeneratorRun


def share(tree: Any) -> float:
    """Bytes on one device of abstract arrays with shardings."""
    return float(sum(_share(x) for x in jax.tree.leaves(tree)))


def idle(jaxpr: Any, arguments: Any) -> float:
    """Bytes on one device of those arguments that a program does not read: the compiler leaves them out, the memory holds them."""
    read = {v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal)} | {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    return float(sum(_share(x) for v, x in zip(jaxpr.invars, jax.tree.leaves(arguments), strict=True) if v not in read))


def _share(x: Any) -> int:
    # The shape of a PRNG key's own words is not known to NumPy; it is a few bytes.
    itemsize = 8 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.dtype(x.dtype).itemsize
    return math.prod(x.sharding.shard_shape(x.shape)) * itemsize


def given(run: AbstractRun, images: int | None = None) -> dict[str, Any]:
    """What a training step is given, by name, or the decoding of some images."""
    weights = {"parameters": run.state.params, "average": run.state.ema, "frozen": run.frozen}
    return weights if images else weights | {"optimizer": run.state.opt_state, "statistics": run.state.extra, "batch": run.batch}


def _axes(x: Any) -> list[str]:
    """The mesh axes that an array is split over."""
    return [a for entry in x.sharding.spec if entry for a in ((entry,) if isinstance(entry, str) else entry)]


def largest(run: AbstractRun, images: int | None = None, count: int = 5) -> list[dict[str, Any]]:
    """The arrays that take the most of a device's memory before the step begins, and how each is split."""
    found = []
    for kind, tree in given(run, images).items():
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            parts = math.prod(x.shape) // max(math.prod(x.sharding.shard_shape(x.shape)), 1)
            found.append({"name": kind + name(path), "bytes": _share(x), "shape": list(x.shape), "dtype": str(x.dtype), "parts": parts})
    return sorted(found, key=lambda f: -f["bytes"])[:count]


def replicated(run: AbstractRun, images: int | None = None, floor: int = 64 << 20) -> list[dict[str, Any]]:
    """Large arrays of the state and of what is frozen that every device holds whole, where there are several devices."""
    whole = [a for a in largest(run, images, count=1000) if a["parts"] == 1 and a["bytes"] >= floor and not a["name"].startswith("batch")]
    return whole if run.mesh.size > 1 else []


def name(path: Any) -> str:
    """A path in a tree with dots: `.generator.backbone.blocks.mlp_in.w`."""
    return "".join(f".{getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))}" for k in path)


def ways(run: AbstractRun, *axes: str) -> int:
    """Devices along some axes of the mesh together."""
    return math.prod(run.mesh.shape[a] for a in axes)


def stacks(run: AbstractRun) -> list[tuple[int, int, int, int, int, int]]:
    """Depth, width, length, sums over `tensor` in a block, heads and hidden width of each stack of blocks."""
    model = run.config.model
    if not isinstance(run.config, GeneratorRun):
        return [(s.depth, s.width, run.task.spec.length, 2, s.heads, s.mlp) for s in (model.encoder, model.decoder)]
    text = isinstance(model.condition, TextCondition)
    decoder = (model.depth, model.width, run.task.spec.length, 3 if text else 2, model.heads, model.mlp)
    return [decoder, (model.condition.depth, model.width, run.task.text.length, 2, model.heads, model.mlp)] if text else [decoder]


def split(run: AbstractRun) -> Split:
    """How the arrays of a step are taken to be split over the mesh."""
    # Between products activations are split by position, within them by heads or hidden widths.
    inner = frozenset(n for _, _, length, _, heads, mlp in stacks(run) for n in (length, heads, mlp))
    rows = run.config.batch_size // run.config.accumulate
    return Split(rows, ways(run, "data", "stage", "fsdp"), inner, ways(run, "tensor"), ways(run, "fsdp", "tensor", "stage"))


def remat(run: AbstractRun) -> bool:
    """Whether blocks are computed again in the backward pass."""
    return run.config.model.remat != "none"


def rare(run: AbstractRun) -> float:
    """How often a step has what most steps leave out: the R1 penalty, once in `r1_every`."""
    gan = None if isinstance(run.config, GeneratorRun) else run.config.loss.adversarial
    return 1 / gan.r1_every if gan and gan.r1 and min(gan.train_start.count, gan.loss_start.count) == 0 else 1.0


def traffic(run: AbstractRun, work: Work) -> float:
    """Bytes that a device moves to and from its memory in a step.

    Operands and results of all products, each product on its share of the batch; weights are read whole (but for `tensor` and
    `stage`) in every pass, and the state is read and written once.
    """
    weights = sum(x.size for x in jax.tree.leaves(run.state.params)) * 2.0
    passes = (3 + remat(run)) * run.config.accumulate
    gathered = passes * weights * (1 / ways(run, "tensor", "stage") - 1 / run.mesh.size)
    return work.bytes / run.mesh.size + gathered + 2 * share(run.state)


def collectives(run: AbstractRun) -> list[Collective]:
    """The collectives that the mesh cannot do without: of gradients and weights, and of activations within layers.

    Matrices travel in bf16, gradients in f32; each part of an accumulated batch gathers and scatters anew.
    """
    data, fsdp, tensor = ways(run, "data"), ways(run, "stage", "fsdp"), ways(run, "tensor")
    parts, found = run.config.accumulate, []
    leaves = jax.tree.leaves(run.state.params)
    if fsdp > 1:
        split_up = [x for x in leaves if {"fsdp", "stage"} & set(_axes(x))]
        elements = sum(_share(x) / 4 * fsdp for x in split_up)
        gathers = (1 + remat(run)) * parts * len(split_up)
        found.append(Collective("all-gather", fsdp, gathers, 2 * elements * (1 + remat(run)) * parts))
        found.append(Collective("reduce-scatter", fsdp, parts * len(split_up), 4 * elements * parts))
    if data > 1:
        found.append(Collective("all-reduce", data, parts * len(leaves), share(run.state.params) * parts))
    if tensor > 1:
        rows = run.config.batch_size / ways(run, "data", "stage", "fsdp")
        # Forward and backward, and the forward pass again.
        passes = 2 + remat(run)
        sums = [(depth * each * passes, rows * length * width * 2.0) for depth, width, length, each, *_ in stacks(run)]
        found.append(Collective("all-reduce", tensor, sum(n for n, _ in sums) * parts, sum(n * b for n, b in sums)))
    for pipeline, (_, width, length, *_) in zip(pipelines(run), stacks(run), strict=False):
        # Two rings turn against each other, forward and backward.
        rows = run.config.batch_size / ways(run, "data", "fsdp") / pipeline.microbatches
        count = 2 * 2 * pipeline.iterations
        found.append(Collective("collective-permute", pipeline.stages, count, count * rows * length * width * 2.0))
    return sorted(found, key=lambda c: -c.wire)


def pipelines(run: AbstractRun) -> list[Any]:
    """The pipelines of a training step, in the order of `stacks`."""
    found = run.task.pipelines(run.mesh) if isinstance(run.config, GeneratorRun) else {}
    return [found[name] for name in ("decoder", "text encoder") if name in found]


def decoding(run: AbstractRun, images: int) -> tuple[float, float, list[Collective]]:
    """FLOPs of all devices, bytes that one moves, and collectives, of drawing images one position after the other.

    At each position all matrices are read, in bf16, and what the caches hold, on average half of what they will.
    """
    model, length, tensor = run.config.model, run.task.spec.length, ways(run, "tensor")
    branches = 2 if run.task.guided else 1
    rows = images * branches / ways(run, "data", "stage", "fsdp")
    weights = 2.0 * sum(x.size for x in jax.tree.leaves(run.state.params)) / tensor
    caches = rows * model.depth * 2 * (length / 2) * model.width * 2.0 / tensor
    flops = float(images * branches * model.flops(run.task.spec, run.task.text.length if run.task.text else 0))
    depth, width, _, each, *_ = stacks(run)[0]
    sums = [Collective("all-reduce", tensor, length * depth * each, length * depth * each * rows * width * 2.0)] if tensor > 1 else []
    return flops, length * (weights + caches), sums
