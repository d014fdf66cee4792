"""Other meshes and policies for a run: the next one to try where a plan does not fit, and a table of those that do."""

import dataclasses
from collections.abc import Iterator

from vimlab.config import UserError
from vimlab.parallel.mesh import MeshConfig
from vimlab.parallel.rules import MESH_AXES
from vimlab.plan import estimate
from vimlab.plan.abstract import StandIns, abstract_run
from vimlab.plan.chips import Topology
from vimlab.plan.plan import memory, plan_mesh, step
from vimlab.plan.report import size
from vimlab.tasks.task import RunConfig

MARGIN = 0.7  # Of the chip's memory: the compiler needs more than the estimate says.
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run.

    Attributes:
      config: with other settings.
      overrides: what differs, as on the command line.
      memory: estimated bytes on a chip.
      seconds: of the roofline, estimated.
    """

    config: RunConfig
    overrides: tuple[str, ...]
    memory: float
    seconds: float


def candidates(config: RunConfig, where: Topology, stand_ins: StandIns) -> Iterator[Candidate]:
    """Settings that fit by the estimate, mildest first: parts of the batch, then recomputation, then meshes that split weights further."""
    for mesh in meshes(config, where):
        for remat in REMAT[REMAT.index(config.model.remat) :]:
            other = dataclasses.replace(config, mesh=mesh, model=dataclasses.replace(config.model, remat=remat))
            if found := in_parts(other, config, where, stand_ins):
                yield found


def meshes(config: RunConfig, where: Topology) -> Iterator[MeshConfig]:
    """The config's mesh, then some whose copies of the model are fewer and share its weights: more fsdp, then more tensor."""
    sizes = dict(plan_mesh(config, where, compiles=False).shape)
    yield config.mesh
    data = sizes["data"]
    splits = [(2**n, 1) for n in (1, 2, 3, 4)] + [(data, 1), (1, 2), (max(data // 2, 1), 2), (1, 4), (max(data // 4, 1), 4)]
    for fsdp, tensor in dict.fromkeys(splits):
        if fsdp * tensor > 1 and data % (fsdp * tensor) == 0:
            changed = sizes | {"data": data // (fsdp * tensor), "fsdp": sizes["fsdp"] * fsdp, "tensor": sizes["tensor"] * tensor}
            yield dataclasses.replace(config.mesh, **{a: changed[a] for a in MESH_AXES})


def in_parts(config: RunConfig, original: RunConfig, where: Topology, stand_ins: StandIns) -> Candidate | None:
    """The config with the fewest accumulated parts that fit by the estimate; None where none do, or it cannot run at all."""
    parts = 1
    while config.batch_size % (config.accumulate * parts) == 0 and parts <= 256:
        tried = dataclasses.replace(config, accumulate=config.accumulate * parts)
        try:
            mesh = plan_mesh(tried, where, compiles=False)
            run = abstract_run(tried, mesh, "tpu" if where.chip.tpu else "cpu", stand_ins)
            traced = run.trace()
        except UserError:
            return None
        need = memory(run, where, traced, None)
        given, budget = sum(need["given"].values()), MARGIN * where.chip.memory
        if need["estimate"] <= budget:
            seconds = step(run, where, traced, None)["roofline"]["seconds"]
            return Candidate(tried, overrides(original, tried), need["estimate"], seconds)
        if given >= budget:
            return None
        # Activations shrink with the parts, gradients do not: the next try is a guess, and tried like every other.
        wanted = need["activations"] / (budget - given)
        parts *= max(2, 1 << max(int(wanted).bit_length() - 1, 0))
    return None


def overrides(old: RunConfig, new: RunConfig) -> tuple[str, ...]:
    """What turns one config into the other, as on the command line; nothing where they are the same."""
    found = [f"--config.model.remat={new.model.remat}"] if new.model.remat != old.model.remat else []
    found += [f"--config.accumulate={new.accumulate}"] if new.accumulate != old.accumulate else []
    if new.mesh != old.mesh:
        found.insert(0, "--mesh " + ",".join(f"{a}={getattr(new.mesh, a)}" for a in MESH_AXES if getattr(new.mesh, a) != 1))
    return tuple(found)


def advise(config: RunConfig, where: Topology, stand_ins: StandIns) -> str:
    """What to try next where a plan does not fit."""
    for found in candidates(config, where, stand_ins):
        if found.overrides:
            return f"try {' '.join(found.overrides)} (estimate {size(found.memory)} a chip)"
    run = abstract_run(config, plan_mesh(config, where, compiles=False), "tpu" if where.chip.tpu else "cpu", stand_ins)
    least = size(estimate.share(run.state))
    return f"no mesh, recomputation or accumulation that was tried fits by the estimate; the state alone takes {least} a chip: take more chips"
