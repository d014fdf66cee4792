"""The plan of a run on a topology: memory, work, time, warnings and advice, as JSON values."""

import dataclasses
import importlib.metadata
import sys
from typing import Any

from jax.sharding import Mesh

import vimlab
from vimlab import run as runs
from vimlab.parallel.mesh import make_mesh
from vimlab.plan import compiling, estimate, hlo, program, roofline, volumes
from vimlab.plan.abstract import AbstractRun, Place, StandIns, abstract_run, portable
from vimlab.plan.chips import Topology
from vimlab.tasks.generator_config import GeneratorRun
from vimlab.tasks.task import RunConfig

Plan = dict[str, Any]
PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
GPUS = "GPUs are planned by arithmetic alone, with attention as a formula: a fused kernel would not hold its scores in memory"


def make_plan(
    config: RunConfig, where: Topology, stand_ins: StandIns, *, full: bool = False, compiles: bool = True, sample: int | None = None
) -> Plan:
    """Plans a run.

    Args:
      config, where, stand_ins: the run, the chips, and what is taken for granted.
      full: whether machine code is made too, whose size is then known.
      compiles: whether the step is compiled where that can be done; arithmetic alone otherwise.
      sample: images that are decoded at a time, to plan decoding in place of a training step; 0 is 8 for each data-parallel device.

    Raises:
      ConfigError, ShardingError: the config cannot run on this topology.
    """
    assumed = []
    if not where.chip.tpu:
        config, compiles, assumed = portable(config), False, [GPUS]
    elif compiles and not compiling.has_libtpu():
        compiles, assumed = False, [compiling.NO_LIBTPU]
    mesh = plan_mesh(config, where, compiles=compiles)
    run = abstract_run(config, mesh, "tpu" if where.chip.tpu else "cpu", stand_ins)
    images = None if sample is None else sample or 8 * estimate.ways(run, "data", "stage", "fsdp")
    traced = run.trace(images)
    compiled = compiling.compile_step(traced, mesh, full=full) if compiles else None
    module = hlo.parse(compiled.text) if compiled and compiled.text else None

    plan: Plan = {
        "what": "training step" if images is None else f"decoding of {images} images",
        "config": runs.to_dict(config),
        "topology": {"name": where.name, "chip": where.chip.kind, "chips": where.chips, "hosts": where.hosts, "memory": where.chip.memory},
        "mesh": dict(mesh.shape),
        "assumed": [*assumed, *run.assumed],
        "notes": [note for note in run.task.notes() if not note.startswith("tokenizer")],
        "memory": memory(run, where, traced, compiled, images),
        "step": step(run, where, traced, module, images),
        "pipeline": stages(run),
        "warnings": warnings(run, compiled, module, images),
    }
    if images is None:
        flops, best = plan["step"]["model_flops"], plan["step"]["roofline"]["seconds"]
        plan["run"] = {"steps": run.total_steps, "examples": run.total_steps * config.batch_size}
        plan["run"]["at"] = roofline.whole_run(where, flops, run.total_steps, best)
    if compiled:
        plan["compile"] = {"seconds": round(compiled.seconds, 1), "full": full}
    return plan | {"versions": versions()}


def plan_mesh(config: RunConfig, where: Topology, *, compiles: bool) -> Mesh:
    """The mesh of the config over the devices of a topology, or over as many that are only counted."""
    places = lambda: [Place(i, i // where.chip.host) for i in range(where.chips)]
    return make_mesh(config.mesh, compiling.devices(where) if compiles else places())


def memory(run: AbstractRun, where: Topology, traced: Any, compiled: compiling.Compiled | None, images: int | None = None) -> dict[str, Any]:
    """A chip's share of everything in bytes, and whether it fits: by the compiler's word, or else by the estimate."""
    given = {kind: estimate.share(tree) for kind, tree in estimate.given(run, images).items()}
    alive = program.peak(traced.jaxpr.jaxpr, estimate.split(run))
    activations, budget = sum(a.bytes for a in alive), where.chip.memory
    total = sum(given.values()) + activations
    found: dict[str, Any] = {"budget": budget, "given": given, "activations": activations, "estimate": total, "fits": total <= budget, "by": "estimate"}
    found["idle"] = estimate.idle(traced.jaxpr.jaxpr, run.arguments(images))
    found["largest_given"] = estimate.largest(run, images)
    found["largest_activations"] = [dataclasses.asdict(a) for a in alive[:5]]
    if compiled:
        found |= {"compiled": compiled.memory, "by": "compiler", "largest_compiled": compiled.largest}
        found["fits"] = bool(compiled.memory) and compiled.memory["total"] + found["idle"] <= budget
    if compiled and compiled.refusal:
        found |= {"refusal": compiled.refusal, "needs": compiling.required(compiled.refusal)}
    return found


def step(run: AbstractRun, where: Topology, traced: Any, module: hlo.Module | None, images: int | None = None) -> dict[str, Any]:
    """FLOPs, bytes, collectives and the roofline of a training step, or of the decoding of some images."""
    if images is None:
        work = program.work(traced.jaxpr.jaxpr, estimate.rare(run))
        if work.unknown:
            work = program.work(run.as_formula().trace().jaxpr.jaxpr, estimate.rare(run))
        model_flops, executed = run.task.flops_per_example() * run.config.batch_size, work.flops
        moved, sent = estimate.traffic(run, work), estimate.collectives(run)
    else:
        executed, moved, sent = estimate.decoding(run, images)
        model_flops = executed
    if module:
        rare = estimate.rare(run)
        moved, sent = volumes.traffic(module, rare), volumes.collectives(module, rare)
    roof = roofline.roofline(where, executed, moved, sent)
    return {
        "model_flops": model_flops,
        "executed_flops": executed,
        "bytes": moved,
        "collectives": [dataclasses.asdict(c) | {"wire": c.wire} for c in sent],
        "by": "compiler" if module else "estimate",
        "roofline": dataclasses.asdict(roof) | {"seconds": roof.seconds, "bound": roof.bound},
        "roofline_mfu": model_flops / (roof.seconds * where.chips * where.chip.peak),
    }


def stages(run: AbstractRun) -> dict[str, Any]:
    """Of each pipeline of a training step: its sizes, the share of time that a stage waits, the layers of each stage."""
    if not isinstance(run.config, GeneratorRun):
        return {}
    found = {}
    for name, p in run.task.pipelines(run.mesh).items():
        sizes = {"stages": p.stages, "microbatches": p.microbatches, "rounds": p.rounds}
        found[name] = sizes | {"bubble": p.bubble, "layers": [list(p.layers(stage)) for stage in range(p.stages)]}
    return found


def warnings(run: AbstractRun, compiled: compiling.Compiled | None, module: hlo.Module | None, images: int | None) -> list[str]:
    """What should be looked at before many chips are taken."""
    found = [f"the compiler makes an array whole on every device to lay it out anew: {line}" for line in (compiled.warnings if compiled else [])]
    if whole := estimate.replicated(run, images):
        size, named = sum(a["bytes"] for a in whole), ", ".join(f"{a['name']} ({a['bytes'] / (1 << 30):.2f} GiB)" for a in whole[:3])
        found.append(f"every chip holds {size / (1 << 30):.1f} GiB of large arrays whole, the largest {named}; --mesh fsdp=… would split them")
    if module and (count := hlo.unknown_loops(module)):
        found.append(f"{count} loops do not say how often they run: their bytes and collectives are counted once")
    return found


def versions() -> dict[str, str]:
    """Of what made the plan."""
    found = {"vimlab": vimlab.__version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
