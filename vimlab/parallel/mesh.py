"""The device mesh: axes data, stage, fsdp and tensor, over one slice or several; sizes that do not fit are refused with some that do."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from vimlab.config import ConfigError
from vimlab.parallel.rules import MESH_AXES, ShardingError, nearest, show


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Mesh sizes; -1 takes the devices that the other axes leave. None of these keys changes what is computed, but for the masks
    of dropout in a pipeline.

    Attributes:
      data: copies of the model, each with its share of the batch.
      fsdp: the batch is split over this axis too, and parameters and optimizer state are sharded along it.
      tensor: heads and hidden widths are split over this axis, and the length of the sequence around the norms.
      stage: a generator's layers are worked through in a pipeline of this many stages; elsewhere this axis is as fsdp.
      microbatches: parts that a pipeline takes the batch in, a multiple of `stage`; as many as there are stages by default.
      rounds: times that each part passes the stages of the decoder, each time through other layers (a text encoder has one round).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    stage: int = 1
    microbatches: int | None = None
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1 or (self.microbatches is not None and self.microbatches < 1):
            raise ConfigError(f"microbatches is {self.microbatches} and rounds {self.rounds}, but both must be at least 1")
        if self.stage == 1 and (self.microbatches, self.rounds) != (None, 1):
            raise ConfigError("microbatches and rounds are of a pipeline, but stage is 1; set stage, or leave the two out")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh over all devices, or those given: also those of a topology that is only described.

    Over several slices the data axis, or else the stage axis, crosses the network between them; each slice holds whole parts of
    the others.

    Raises:
      ShardingError: sizes that are not those of the devices, or that would lay another axis across slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {a: getattr(config, a) for a in MESH_AXES}
    open_axes = [a for a in MESH_AXES if sizes[a] == -1]
    if len(open_axes) > 1 or any(s < 1 and s != -1 for s in sizes.values()):
        raise ShardingError(f"config.mesh is {show(sizes)}: sizes are positive, and at most one may be -1")
    fixed = math.prod(s for s in sizes.values() if s != -1)
    if open_axes:
        sizes[open_axes[0]] = max(len(devices) // fixed, 1)
    if math.prod(sizes.values()) != len(devices):
        raise ShardingError(f"config.mesh is {show(sizes)}, which is {math.prod(sizes.values())} devices, but there are {len(devices)}; "
                            f"set one axis to -1, or choose sizes such as {show(nearest(sizes, len(devices)))}")
    # Explicit axis types are JAX's default; models here are written for the automatic partitioner.
    return Mesh(_lay_out(sizes, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _lay_out(sizes: Mapping[str, int], devices: list[Any]) -> np.ndarray:
    """The devices in the order of the mesh, neighbours on the machine being neighbours on the axes that speak most."""
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    shape = [sizes[a] for a in MESH_AXES]
    if slices == 1:
        return _split_where_needed(lambda split: mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=split))
    outer = next((a for a in ("data", "stage") if sizes[a] % slices == 0), None)
    if outer is None:
        fits = lambda s: s["data"] % slices == 0 or s["stage"] % slices == 0
        raise ShardingError(f"config.mesh is {show(sizes)} over {slices} slices, which neither data nor stage can be divided among; choose "
                            f"sizes such as {show(nearest(sizes, len(devices), fits))}")
    across = [slices if a == outer else 1 for a in MESH_AXES]
    within = [s // n for s, n in zip(shape, across, strict=True)]
    build = lambda split: mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=split)
    return _split_where_needed(build)


def _split_where_needed(build: Callable[[bool], np.ndarray]) -> np.ndarray:
    """A mesh whose axes are whole axes of the machine, or, where there is none, one that cuts them."""
    try:
        return build(False)
    except NotImplementedError:
        return build(True)


def check_batch(mesh: Mesh, batch_size: int, *, accumulate: int = 1, microbatches: int | None = None) -> None:
    """Raises ShardingError unless the global batch divides over the devices: in its accumulated parts, and in a pipeline's microbatches."""
    sizes, stages, rows = dict(mesh.shape), mesh.shape["stage"], batch_size // accumulate
    microbatches = microbatches or stages
    if microbatches % stages:
        raise ShardingError(f"config.mesh.microbatches is {microbatches}, which the {stages} stages do not divide; use a multiple of {stages}, "
                            f"such as {-(-microbatches // stages) * stages}")
    ways = lambda sizes: sizes["data"] * sizes["fsdp"] * (microbatches if sizes["stage"] > 1 else 1)
    if rows % ways(sizes) == 0:
        return
    split = f" in {accumulate} accumulated parts" if accumulate > 1 else ""
    split += f"{' and' if split else ''} in {microbatches} microbatches" if stages > 1 else ""
    other = nearest(sizes, mesh.size, lambda s: rows % ways(s) == 0 and s["stage"] in (1, stages))
    raise ShardingError(
        f"config.batch_size is {batch_size}{split}, which {sizes['data'] * sizes['fsdp']} data-parallel devices (mesh data x fsdp) do not divide; "
        f"use a multiple of {ways(sizes) * accumulate}" + (f", or a mesh such as {show(other)}" if other else "")
    )
