"""Where evaluators compute what is no model's business, the same on any devices and processes: rows spread evenly, or all on one device."""

import functools
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vimlab.sampling.sampler import batches, to_host

Arrays = dict[str, np.ndarray]
ROWS = 64  # Pictures that a device sees at a time, whatever the batch and the devices: XLA's sums depend on the shape in their last bits.


def alone() -> AbstractContextManager:
    """Work on one device of each process: under the model's mesh every device would do the whole of it beside the others."""
    return jax.set_mesh(Mesh(np.array(jax.local_devices()[:1]), ("rows",)))


def spread(apply: Callable[[Any, jax.Array], dict[str, jax.Array]], weights: Any, images: np.ndarray) -> Arrays:
    """`apply(weights, f32[B,H,W,3] in [0,1])` of pictures uint8[M,H,W,3], which it treats alike: f32[M,…] by name, on every process.

    Args:
      apply: the same object for the same function, so that it is compiled once.
      images: the same on every process.
    """
    # One device's worth is not sent around.
    devices = jax.local_devices()[:1] if len(images) <= ROWS else jax.devices()
    mesh = Mesh(np.array(devices), ("rows",))
    place = lambda x, *axes: jax.make_array_from_callback(np.shape(x), NamedSharding(mesh, PartitionSpec(*axes)), np.asarray(x).__getitem__)
    parts = []
    with jax.set_mesh(mesh):
        weights = jax.tree.map(place, weights)
        for count, (rows,) in batches(ROWS * len(devices), images):
            found = _apply(apply, mesh, weights, place(rows, "rows"))
            parts.append({name: to_host(x)[:count] for name, x in found.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(apply: Callable, mesh: Mesh, weights: Any, images: jax.Array) -> dict[str, jax.Array]:
    def local(weights: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {name: x.astype(jnp.float32) for name, x in apply(weights, images.astype(jnp.float32) / 255).items()}

    # Nothing here crosses devices, so there is nothing to check about what varies over them.
    split = jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("rows")), out_specs=PartitionSpec("rows"), check_vma=False)
    return split(weights, images)


def from_first(arrays: Arrays | None) -> Arrays | None:
    """What the first process has, on all of them, which call this together; whatever the others have counts for nothing."""
    if jax.process_count() == 1:
        return arrays
    from jax.experimental.multihost_utils import broadcast_one_to_all

    buffer = io.BytesIO()
    if arrays is not None and jax.process_index() == 0:
        np.savez(buffer, **arrays)
    data = buffer.getvalue()
    size = int(broadcast_one_to_all(np.int32(len(data))))
    if not size:
        return None
    words = np.zeros(-(-size // 4), np.uint32)  # Sums of smaller integers would be sent as these anyway.
    words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    with np.load(io.BytesIO(broadcast_one_to_all(words).tobytes()[:size])) as file:
        return {name: file[name] for name in file.files}
