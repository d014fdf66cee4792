"""A trained generator opened from its workdir, without the data that it was trained on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vimlab.checkpoint import Checkpointer, CheckpointError
from vimlab.config import ConfigError
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import batch_ways
from vimlab.paths import Path
from vimlab.run import check_identity, dtype_of, info_of, read_config, restore_weights
from vimlab.tasks.generator_config import GeneratorRun
from vimlab.tasks.generator_task import GeneratorTask


@dataclasses.dataclass(frozen=True)
class Trained:
    """A generator to draw from.

    Attributes:
      workdir: of its run.
      config: the run's, with the workdir's own copies.
      task: built from it.
      mesh: of all devices.
      step: of the checkpoint, whose checksums hold.
    """

    workdir: Path
    config: GeneratorRun
    task: GeneratorTask
    mesh: Mesh
    step: int

    @property
    def ways(self) -> int:
        """Data-parallel devices."""
        return batch_ways(self.mesh)

    @functools.cached_property
    def predict(self) -> dict[str, Callable[..., Any]]:
        """The task's predict functions, jitted and bound to the weights, which the first use reads; to be called within the mesh."""
        with Checkpointer(self.workdir / "checkpoints") as checkpoints:
            state, _ = restore_weights(checkpoints, self.task, self.task.shardings(self.mesh), self.step)
        frozen = jax.device_put(self.task.frozen, NamedSharding(self.mesh, PartitionSpec()))
        return {name: functools.partial(jax.jit(fn), state, frozen) for name, fn in self.task.predict_fns().items()}


def open_trained(workdir: Path, step: int | None = None) -> Trained:
    """The generator of a workdir; of the newest good step if none is given.

    Raises:
      ConfigError: not a generator's workdir, or its tokenizer or vocabulary is not what it was trained with.
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    config = read_config(workdir).within(workdir)
    if not isinstance(config, GeneratorRun):
        raise ConfigError(f"{workdir} is the workdir of a {config.NAME}, which draws no images; give that of a generator")
    with Checkpointer(workdir / "checkpoints") as checkpoints:
        step = checkpoints.find(step)
        if step is None:
            raise CheckpointError(f"{checkpoints.directory} holds no finished checkpoint yet; wait for the run's first one")
        meta = checkpoints.read_meta(step)
    task = GeneratorTask(config, 1, lambda duration: 0, dtype_of(config.precision), info_of(meta["data"]))
    check_identity(task, meta, workdir)
    return Trained(workdir, config, task, make_mesh(MeshConfig()), step)
