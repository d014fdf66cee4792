"""The device mesh: axes data, fsdp and tensor, from a config with at most one size left open."""

import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh

from vimlab.parallel.rules import MESH_AXES, ShardingError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Mesh sizes; -1 takes the devices that the other axes leave.

    Attributes:
      data: copies of the model, each with its share of the batch.
      fsdp: the batch is split over this axis too, and parameters and optimizer state are sharded along it.
      tensor: heads and hidden widths are split over this axis.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Builds the mesh over all devices (or those given). Raises ShardingError where the sizes do not fit."""
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    open_axes = [a for a in MESH_AXES if sizes[a] == -1]
    if len(open_axes) > 1 or any(s < 1 and s != -1 for s in sizes.values()):
        raise ShardingError(f"config.mesh is {sizes}: sizes are positive, and at most one may be -1")
    fixed = math.prod(s for s in sizes.values() if s != -1)
    if open_axes:
        sizes[open_axes[0]] = max(len(devices) // fixed, 1)
    if math.prod(sizes.values()) != len(devices):
        raise ShardingError(f"config.mesh is {sizes}, which is {math.prod(sizes.values())} devices, but there are {len(devices)}; "
                            "set one axis to -1 or choose sizes whose product is the number of devices")
    # Explicit axis types are JAX's default; models here are written for the automatic partitioner.
    return jax.make_mesh(tuple(sizes[a] for a in MESH_AXES), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Raises ShardingError unless the global batch divides over the data-parallel devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % ways:
        raise ShardingError(f"config.batch_size is {batch_size}, which {ways} data-parallel devices (mesh data x fsdp) do not divide; "
                            f"use a multiple of {ways}")
