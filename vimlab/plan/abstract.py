"""A run without its data, its files or its devices: the real task, and shapes and layouts of all that a step takes."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vimlab import config as configs
from vimlab import run as runs
from vimlab.config import ConfigError, UserError
from vimlab.data.base import SourceInfo
from vimlab.data.pipeline import open_train_eval
from vimlab.data.text import TextTokenizer
from vimlab.losses import perceptual
from vimlab.parallel.mesh import check_batch
from vimlab.parallel.rules import batch_sharding
from vimlab.pretrained import Pretrained, open_tokenizer, shapes
from vimlab.sampling.decode import knobs
from vimlab.state import TrainState
from vimlab.tasks.generator_config import GeneratorRun
from vimlab.tasks.task import RunConfig, Task
from vimlab.tokenizers.tokenizer import TokenizerConfig

IMAGENET = 1_281_167  # Examples of the training set.


@dataclasses.dataclass(frozen=True, kw_only=True)
class StandIns:
    """What a plan takes for granted where the config names files that are not here.

    Attributes:
      config_file: of the run; the config of a tokenizer at `…/NAME` is looked for beside it, in `NAME.py`.
      tokenizer: config file of the tokenizer.
      classes, examples: of the training data.
      vocabulary: number of text ids.
    """

    config_file: str | None = None
    tokenizer: str | None = None
    classes: int = 1000
    examples: int = IMAGENET
    vocabulary: int = 16_000


class AbstractText(TextTokenizer):
    """The sizes of a vocabulary that is not here."""

    def _split(self, text: str) -> list[int]:
        raise NotImplementedError

    def _join(self, ids: list[int]) -> str:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Place:
    """A device that is only counted: what a mesh is made of where nothing is compiled."""

    id: int
    process_index: int
    # Real ones have coordinates, by which JAX lays meshes out.
    platform: str = "planned"
    device_kind: str = "planned"


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """What one step is compiled from; every array a `jax.ShapeDtypeStruct` with its sharding.

    Attributes:
      config: the run's.
      task: built from it.
      mesh: of a topology's devices, or of Places.
      platform: 'tpu', or 'cpu' for attention as a formula.
      stand_ins: what it was built with.
      total_steps: of the whole run.
      assumed: sentences, what the plan took for granted.
      state, frozen, batch, root: arguments of `task.train_step`.
    """

    config: RunConfig
    task: Task
    mesh: Mesh
    platform: str
    stand_ins: StandIns
    total_steps: int
    assumed: tuple[str, ...]
    state: TrainState
    frozen: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    root: jax.ShapeDtypeStruct

    def as_formula(self) -> "AbstractRun":
        """The same with attention as products and a softmax, in place of a fused kernel that does not say what it computes."""
        return abstract_run(portable(self.config), self.mesh, "cpu", self.stand_ins)

    def arguments(self, images: int | None = None) -> tuple[Any, ...]:
        """What a training step is given, or the decoding of that many images. Raises ConfigError for a tokenizer's decoding."""
        if images is None:
            return self.state, self.frozen, self.batch, self.root
        if not isinstance(self.config, GeneratorRun):
            raise ConfigError("--sample plans the decoding of a generator, but this config trains a tokenizer")
        split, whole = batch_sharding(self.mesh), NamedSharding(self.mesh, PartitionSpec())
        row = (images, self.task.text.length) if self.task.text else (images,)
        condition = jax.ShapeDtypeStruct(row, jnp.int32, sharding=split)
        seeds = jax.ShapeDtypeStruct((images,), jnp.uint32, sharding=split)
        settings = jax.tree.map(lambda x: _placed(x, whole), knobs(self.task.spec.length))
        return self.state.replace(opt_state={}, extra={}), self.frozen, condition, seeds, settings

    def trace(self, images: int | None = None) -> Any:
        """The training step as `vimlab train` jits it, state donated and its layout pinned; or the decoding, as `vimlab sample` does."""
        arguments, options = self.arguments(images), {}
        if images is None:
            options = {"donate_argnums": 0, "out_shardings": (jax.tree.map(lambda x: x.sharding, self.state), None)}
        function = self.task.train_step if images is None else self.task.predict_fns()["sample"]
        if not isinstance(self.mesh.devices.flat[0], Place):
            with jax.set_mesh(self.mesh):
                return jax.jit(function, **options).trace(*arguments)
        # Places have no layouts that JAX could check; the program is the same.
        bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return jax.jit(function).trace(*bare)


def portable(config: RunConfig) -> RunConfig:
    """The config with attention as a formula, which every device computes."""
    if not isinstance(config, GeneratorRun):
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attention="xla"))


def abstract_run(config: RunConfig, mesh: Mesh, platform: str, stand_ins: StandIns) -> AbstractRun:
    """The run of a config on a mesh, for a platform whose attention it is to have.

    Raises:
      ConfigError, ShardingError: whatever `vimlab train` would refuse before its first step, missing files apart.
    """
    check_batch(mesh, config.batch_size, accumulate=config.accumulate, microbatches=config.mesh.microbatches)
    assumed: list[str] = []
    info = _info(config, stand_ins, assumed)
    total = 0
    to_steps = lambda duration: duration.steps(config.batch_size, info.size, total)
    total = to_steps(config.duration)
    dtype = jnp.float32 if config.precision == "f32" else jnp.bfloat16
    pieces = _generator_pieces(config, stand_ins, assumed, platform) if isinstance(config, GeneratorRun) else _tokenizer_pieces(config, assumed)
    task = runs.TASKS[config.NAME][1](config, total, to_steps, dtype, info, **pieces)

    key = jax.eval_shape(lambda: jax.random.key(config.seed))
    whole, split = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
    state = jax.tree.map(_placed, jax.eval_shape(task.init, key), task.shardings(mesh))
    frozen = jax.tree.map(lambda x: _placed(x, whole), task.frozen)
    batch = {name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=split) for name, (shape, dtype) in _row(config, task).items()}
    return AbstractRun(config, task, mesh, platform, stand_ins, total, tuple(assumed), state, frozen, batch, _placed(key, whole))


def _placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _row(config: RunConfig, task: Task) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and type of one example of a batch, as `vimlab.data.pipeline` makes them."""
    pixels = {"image": ((task.image_size, task.image_size, 3), jnp.uint8)}
    row = {"tokens": ((task.spec.length, task.spec.groups), jnp.int32)} if config.data.tokens else pixels
    row |= {"label": ((), jnp.int32), "index": ((), jnp.int32)}
    return row | ({"text": ((task.text.length,), jnp.int32)} if task.text else {})


def _info(config: RunConfig, stand_ins: StandIns, assumed: list[str]) -> SourceInfo:
    """Of the training data, or of data that might be."""
    try:
        return open_train_eval(config.data)[0].info
    except UserError as error:
        assumed.append(f"data: {stand_ins.examples:,} examples, {stand_ins.classes} classes ({error})")
    names = tuple(map(str, range(stand_ins.classes)))
    return SourceInfo(config.data.tokens or config.data.train, stand_ins.examples, names, True, "")


def _tokenizer_pieces(config: RunConfig, assumed: list[str]) -> dict[str, Any]:
    """The perceptual loss's weights, as shapes, where it has files of them."""
    lpips = config.loss.perceptual
    if not lpips or not lpips.weights:
        return {}
    if absent := [path for path in lpips.weights if not pathlib.Path(path).is_file()]:
        assumed.append(f"perceptual loss: VGG16 and its heads ({', '.join(absent)} not here)")
    return {"vgg": {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in perceptual.weight_shapes().items()}}


def _generator_pieces(config: GeneratorRun, stand_ins: StandIns, assumed: list[str], platform: str) -> dict[str, Any]:
    """The tokenizer, as shapes, and the vocabulary or its sizes."""
    pieces: dict[str, Any] = {"platform": platform, "tokenizer": _tokenizer(config.tokenizer, stand_ins, assumed)}
    if text := config.data.text:
        try:
            pieces["text"] = text.open()
        except UserError as error:
            assumed.append(f"vocabulary: {stand_ins.vocabulary:,} ids ({error})")
            pieces["text"] = AbstractText(stand_ins.vocabulary, text.length, "")
    return pieces


def _tokenizer(path: str, stand_ins: StandIns, assumed: list[str]) -> Pretrained:
    beside = pathlib.Path(stand_ins.config_file or "").parent / f"{pathlib.Path(path).name}.py"
    if stand_ins.tokenizer:
        source, model = stand_ins.tokenizer, _tokenizer_config(stand_ins.tokenizer)
    elif pathlib.Path(path).expanduser().exists():
        return dataclasses.replace(opened := open_tokenizer(path), params=jax.eval_shape(lambda: opened.params))
    elif stand_ins.config_file and beside.is_file():
        source, model = str(beside), _tokenizer_config(str(beside))
    else:
        source, model = "the paper's ViT-VQGAN Small-Small at 256 px", TokenizerConfig()
    assumed.append(f"tokenizer: {source} ({path} is not read)")
    return Pretrained(path, {}, model, shapes(model))


def _tokenizer_config(spec: str) -> TokenizerConfig:
    config = runs.resolve(configs.load(spec))
    if config.NAME != "tokenizer":
        raise ConfigError(f"--tokenizer-config {spec} is the config of a {config.NAME}; name that of a tokenizer")
    return config.model
