"""From a resolved config to what training and evaluation stand on: data sources, step counts, mesh, task."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

import vimlab
from vimlab import config as configs
from vimlab import paths
from vimlab.checkpoint import Checkpointer, CheckpointError
from vimlab.config import ConfigError, Duration
from vimlab.data.base import Source, SourceInfo, Subset, held_out
from vimlab.data.cache import check_cache
from vimlab.data.formats.tokens import TokenRecords
from vimlab.data.images import DECODER
from vimlab.data.pipeline import EvalPipeline, open_eval, open_train_eval
from vimlab.evals.evaluator import Subject
from vimlab.parallel.mesh import check_batch, make_mesh
from vimlab.parallel.multihost import PACKAGES
from vimlab.parallel.rules import batch_sharding, batch_ways, rows_here
from vimlab.sampling.sampler import GROUP
from vimlab.state import TrainState
from vimlab.tasks.generator_config import GeneratorRun
from vimlab.tasks.generator_task import GeneratorTask
from vimlab.tasks.task import RunConfig, Task
from vimlab.tasks.tokenizer_config import TokenizerRun
from vimlab.tasks.tokenizer_task import TokenizerTask

TASKS: dict[str, tuple[type[RunConfig], type[Task]]] = {
    TokenizerRun.NAME: (TokenizerRun, TokenizerTask),
    GeneratorRun.NAME: (GeneratorRun, GeneratorTask),
}
# What may differ between a run and its continuation, because it does not change what is computed.
FREE_KEYS = ("log.", "checkpoint.", "evals.", "mesh.", "data.threads", "data.prefetch", "data.max_bad", "max_nonfinite")


def resolve(config: Mapping[str, Any] | ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Builds the run's config by its `task`. Raises ConfigError."""
    tree = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    name = tree.pop("task", None) or tree.get("name")
    if name not in TASKS:
        raise ConfigError(f"config.task is {name!r}, but must be one of {sorted(TASKS)}")
    return configs.resolve(TASKS[name][0], tree | {"name": name}, overrides)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as JSON values; `resolve(to_dict(config)) == config`."""
    tree = configs.to_dict(config)
    return {"task": tree.pop("name")} | tree


def read_config(workdir: paths.Path) -> RunConfig:
    """The config that a workdir's run was started with. Raises ConfigError where there is none."""
    paths.check(workdir)
    path = workdir / "config.json"
    if not path.is_file():
        raise ConfigError(f"{workdir} holds no config.json, so it is not the workdir of a run")
    return resolve(json.loads(path.read_text()))


def trained_on(workdir: paths.Path) -> SourceInfo:
    """What a run's training data was when it started. Raises ConfigError where its workdir does not say."""
    path = workdir / "run.json"
    try:
        return info_of(json.loads(path.read_text())["data"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}, which tells of the data that the run was trained on, is absent or damaged; bring it back") from None


def info_of(data: Mapping[str, Any]) -> SourceInfo:
    """What `Run.environment` wrote of the training data."""
    return SourceInfo(**data | {"class_names": tuple(data["class_names"]) if data["class_names"] else None})


def check_identity(task: Task, meta: Mapping[str, Any], workdir: paths.Path) -> None:
    """Raises ConfigError where the tokenizer or the vocabulary is not what a checkpoint was trained with."""
    for name, now in task.identity.items():
        if meta["identity"][name] != now:
            raise ConfigError(f"{workdir} was trained with another {name} (fingerprint {meta['identity'][name]}) than the one it finds now "
                              f"({now}); bring back the one it was trained with")


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Differences between two configs as lines: those that change what is computed, and the others."""
    lines = {key: f"config.{key}: {a!r} → {b!r}" for key, (a, b) in configs.diff(old, new).items()}
    free = {key for key in lines if key.startswith(FREE_KEYS)}
    return [v for k, v in lines.items() if k not in free], [v for k, v in lines.items() if k in free]


class Run:
    """Everything of a run that is fixed before its first step.

    Args:
      config: the run's config.
      training: whether steps will be made; evaluation takes any batch.
      trained_on: for evaluation, what the training data was; it and a cache of its tokens need not be there then.

    Attributes:
      config: the run's config.
      train_source, eval_source: the data; the latter may be None, as is the former where `trained_on` tells of it.
      train_info: of the training data.
      total_steps: of the whole run.
      mesh: over all devices.
      task: built for them.
      shardings: the state's.

    Raises:
      ConfigError, DataError, ShardingError: whatever can be known to be wrong before the first step, in one sentence.
    """

    def __init__(self, config: RunConfig, *, training: bool = True, trained_on: SourceInfo | None = None) -> None:
        self.config = config
        self.mesh = make_mesh(config.mesh)
        if training:
            check_batch(self.mesh, config.batch_size, accumulate=config.accumulate, microbatches=config.mesh.microbatches)
        if trained_on is None:
            if config.data.tokens:
                paths.refuse_bucket(config.data.tokens, "config.data.tokens", "token caches are read from folders of this machine; copy it to each host")
            self.train_source, self.eval_source = open_train_eval(config.data)
        else:
            self.train_source, self.eval_source = None, open_eval(config.data, trained_on)
        self.train_info = trained_on or self.train_source.info
        self.total_steps = 0
        self.total_steps = self.to_steps(config.duration)
        if self.total_steps < 1:
            raise ConfigError("config.duration is shorter than one step")
        self.dtype = dtype_of(config.precision)
        self.task = TASKS[config.NAME][1](config, self.total_steps, self.to_steps, self.dtype, self.train_info)
        if isinstance(self.train_source, TokenRecords):
            fingerprint = self.task.identity["tokenizer"]
            check_cache(self.train_source, tokenizer_fingerprint=fingerprint, spec=self.task.spec, data=config.data, seed=config.seed)
        self.shardings = self.task.shardings(self.mesh)

    def to_steps(self, duration: Duration) -> int:
        """A duration of this run in steps."""
        return duration.steps(self.config.batch_size, self.train_info.size, self.total_steps)

    @functools.cached_property
    def root(self) -> jax.Array:
        """The key that every random stream of the run is folded from."""
        return jax.random.key(self.config.seed)

    def abstract_state(self) -> Any:
        """Shapes, types and today's layout of the state's arrays."""
        shapes = jax.eval_shape(self.task.init, self.root)
        return jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, self.shardings)

    @functools.cached_property
    def frozen(self) -> Any:
        """The task's frozen arrays, whole on every device."""
        return jax.device_put(self.task.frozen, NamedSharding(self.mesh, PartitionSpec()))

    @functools.cached_property
    def predict_fns(self) -> dict[str, Callable[..., Any]]:
        """The task's predict functions, jitted, each `fn(state, …)`."""
        bind = lambda fn: lambda state, *args: fn(state, self.frozen, *args)
        return {name: bind(jax.jit(fn)) for name, fn in self.task.predict_fns().items()}

    def subject(self, state: Any, step: int) -> Subject:
        """The state as evaluators look at it. Raises ConfigError where the config names no evaluation data."""
        if self.eval_source is None:
            raise ConfigError("there is nothing to evaluate on: set config.data.eval to a data source, or config.data.holdout "
                              "to a number of images to keep out of training")
        ways = batch_ways(self.mesh)
        # Each device always looks at as many rows at a time: sums depend on the shape in their last bits, and with them, now and then, a code.
        rows = GROUP * ways

        def training(count: int):
            # Pixels, also of a run on cached tokens; spread over the set, which may be sorted by class.
            source, _ = open_train_eval(dataclasses.replace(self.config.data, tokens=None))
            if count < len(source):
                source = Subset(source, held_out(len(source), count), f" {count} spread evenly")
            return source.info, self._passes(source, rows)()

        info = self.eval_source.info
        protocol = {
            "data": self.config.data.eval or f"{self.config.data.holdout} images held out of {self.config.data.train}",
            "fingerprint": info.fingerprint,
            "split": info.name,
            "crop": configs.to_dict(self.config.data.eval_crop),
            "size": self.task.image_size,
            "dtype": jnp.dtype(self.dtype).name,
            "parameters": "average" if getattr(state, "ema", None) else "trained",
            "identity": self.task.identity,
            "command": shlex.join(["vimlab", *sys.argv[1:]]),
        }
        told = {"condition": self.config.model.condition.NAME, "guided": self.task.guided} if isinstance(self.config, GeneratorRun) else {}
        return Subject(state=state, predict_fns=self.predict_fns, batches=self._passes(self.eval_source, rows), spec=self.task.spec,
                       protocol=protocol, step=step, source=self.eval_source, ways=ways, training=training, **told)

    def _passes(self, source: Source, batch_size: int) -> Callable[[], Iterator[dict[str, jax.Array]]]:
        """Starts passes over a source under evaluation's crop, in global batches."""
        pipeline = EvalPipeline(
            source, image_size=self.task.image_size, crop=self.config.data.eval_crop, batch_size=batch_size,
            rows=rows_here(self.mesh, batch_size), threads=self.config.data.threads,
            max_bad=self.config.data.max_bad, text=self.task.text,
        )
        sharding = batch_sharding(self.mesh)

        def batches():
            for batch in pipeline:
                rows = batch | {"index": batch["index"].astype(np.int32)}
                yield {name: jax.make_array_from_process_local_data(sharding, x) for name, x in rows.items()}

        return batches

    def environment(self) -> dict[str, Any]:
        """Versions, devices and data of this start of the run, for run.json and every checkpoint."""
        info = self.train_info
        return {
            "version": vimlab.__version__,
            "packages": {p: importlib.metadata.version(p) for p in PACKAGES},
            "python": platform.python_version(),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "mesh": dict(self.mesh.shape),
            "processes": jax.process_count(),
            "data": dataclasses.asdict(info),
            "identity": self.task.identity,
            "decoder": DECODER,
            "command": shlex.join(["vimlab", *sys.argv[1:]]),
        }


def restore_weights(checkpoints: Checkpointer, task: Task, shardings: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
    """A state of weights alone, laid out as `shardings`, and the checkpoint's meta; of the newest good step if none is given.

    Raises:
      CheckpointError: there is no such checkpoint, or it is damaged.
    """
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    abstract = jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, shardings)
    wanted = {"params": {name: abstract.params[name] for name in task.inference_networks}, "ema": abstract.ema}
    restored = checkpoints.restore(wanted, step, subset=True)
    if restored is None:
        raise CheckpointError(f"{checkpoints.directory} holds no finished checkpoint yet")
    step, arrays, meta = restored
    return TrainState(step=step, params=arrays["params"], opt_state={}, ema=arrays["ema"], extra={}), meta


def dtype_of(precision: str) -> DTypeLike:
    """The type of matrix products on this process's devices."""
    if precision == "auto":
        precision = "f32" if jax.default_backend() == "cpu" else "bf16"
    return {"f32": jnp.float32, "bf16": jnp.bfloat16}[precision]


def write_json(path: paths.Path, value: Any) -> None:
    """Writes beside, then renames."""
    paths.write_whole(path, (json.dumps(value, indent=1) + "\n").encode())
