"""What a task is, and what the configs of all tasks share."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from vimlab.checkpoint import CheckpointConfig
from vimlab.config import ConfigError, Duration
from vimlab.data.pipeline import DataConfig
from vimlab.data.text import TextTokenizer
from vimlab.evals import EvalsConfig
from vimlab.metrics import LogConfig
from vimlab.parallel.mesh import MeshConfig
from vimlab.paths import Path
from vimlab.state import TrainState
from vimlab.tokens import TokenSpec

Metrics = dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The keys that every run has, whatever its task.

    Attributes:
      seed: of the parameters, of every random stream and of the data order.
      duration: of the whole run.
      batch_size: examples per step, over all devices.
      accumulate: the batch is worked through in this many equal parts, one after the other; the step is the same.
      precision: of matrix products: 'f32', 'bf16', or 'auto', which is bf16 on accelerators and f32 on CPUs.
      data, mesh, log, checkpoint, evals: see their classes.
      init_from: a workdir, checkpoint or export whose weights the run starts from; nothing else is taken from it.
      max_nonfinite: consecutive steps with a loss or gradient that is not finite before the run stops.
    """

    duration: Duration
    batch_size: int
    data: DataConfig
    seed: int = 0
    accumulate: int = 1
    precision: Literal["auto", "f32", "bf16"] = "auto"
    mesh: MeshConfig = MeshConfig()
    log: LogConfig = LogConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evals: EvalsConfig = EvalsConfig()
    init_from: str | None = None
    max_nonfinite: int = 10

    def __post_init__(self) -> None:
        for key in ("batch_size", "accumulate", "max_nonfinite"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}, but must be at least 1")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")

    def within(self, workdir: Path) -> "RunConfig":
        """The config as the run in `workdir` uses it, its own copies in place of what it was started from."""
        return self


@runtime_checkable
class Task(Protocol):
    """What one training step does: pure functions over an explicit state, all of them to be traced by `jax.jit`.

    Made from (config, total steps, Duration → steps, type of matrix products, SourceInfo of the training data).
    """

    image_size: int
    spec: TokenSpec  # Of the tokens that "encode" returns.
    text: TextTokenizer | None  # How captions become ids, where the model reads them.
    identity: dict[str, str]  # Fingerprints of what its checkpoints cannot do without, by name.
    inference_networks: tuple[str, ...]  # Names in `TrainState.params` that a trained model consists of.
    frozen: Any  # Arrays that steps read and none changes, such as a pretrained network's weights.

    def notes(self) -> list[str]:
        """What the user should know before a long run."""

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state from a PRNG key."""

    def shardings(self, mesh: Mesh) -> TrainState:
        """The layout of every array of the state. Raises ShardingError where too much would be replicated."""

    def train_step(
        self, state: TrainState, frozen: Any, batch: dict[str, jax.Array], root: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """One step on a global batch; randomness comes from `root`'s named streams at `state.step`."""

    def predict_fns(self) -> dict[str, Callable[..., Any]]:
        """What evaluators and commands may call, each `fn(state, frozen, …)`."""

    def rates(self, step: int) -> dict[str, float]:
        """Learning rates at a step, by metric name."""

    def flops_per_example(self) -> float:
        """Analytic FLOPs of a training step per example, averaged over steps; recomputation not counted."""

    def write_companions(self, workdir: Path) -> None:
        """Writes into a workdir what its checkpoints cannot do without, where it is not there yet."""
