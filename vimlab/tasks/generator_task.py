"""Training a generator on a tokenizer's tokens: cross-entropy of every token (VIM, section 3.2; Parti, section 2)."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from vimlab import optim as optimizers
from vimlab.config import ConfigError, Duration
from vimlab.data.base import SourceInfo
from vimlab.data.text import SentencePiece, TextTokenizer
from vimlab.generators.conditioners import ClassCondition
from vimlab.parallel import rules
from vimlab.parallel.schedule import Pipeline, check_pipelines
from vimlab.paths import Path, write_whole
from vimlab.pretrained import Pretrained, open_tokenizer
from vimlab.random import stream
from vimlab.sampling.decode import decode
from vimlab.state import TrainState
from vimlab.tasks.generator_config import TOKENIZER, VOCABULARY, GeneratorRun, holds_tokenizer
from vimlab.tasks.task import Metrics
from vimlab.tokenizers.quantizers import mean_latents
from vimlab.tokens import Tokens


class GeneratorTask:
    """See `vimlab.tasks.task.Task`.

    Args:
      config: the run's.
      total_steps: of the whole run.
      to_steps: turns a Duration into steps.
      dtype: of matrix products.
      info: of the training data.
      tokenizer, text: what `config.tokenizer` and `config.data.text` name; opened if not given.
      platform: that the steps are for; this process's by default.

    Raises:
      ConfigError: no tokenizer at `config.tokenizer`, classes or captions wanted where there are none.
    """

    inference_networks = ("generator",)

    def __init__(
        self, config: GeneratorRun, total_steps: int, to_steps: Callable[[Duration], int], dtype: DTypeLike, info: SourceInfo, *,
        tokenizer: Pretrained | None = None, text: TextTokenizer | None = None, platform: str | None = None,
    ) -> None:  # fmt: skip
        self.config, self.info = config, info
        self.tokenizer = tokenizer or open_tokenizer(config.tokenizer)
        self.spec, self.image_size = self.tokenizer.config.spec, self.tokenizer.config.image_size
        self.text = text or (config.data.text.open() if config.data.text else None)
        condition = config.model.condition
        if isinstance(condition, ClassCondition) and not info.class_names:
            raise ConfigError(f"config.model.condition is 'class', but {info.name!r} has no classes; use data that has them, or condition 'none'")
        classes, words = len(info.class_names or ()), (self.text.size, self.text.length) if self.text else (0, 0)
        self.model = config.model.make(self.spec, classes=classes, vocabulary=words[0], text_length=words[1], dtype=dtype, platform=platform,
                                       microbatches=config.mesh.microbatches, rounds=config.mesh.rounds)
        self._tokenizer = self.tokenizer.config.make(dtype)
        self._rate = config.optim.rate(total_steps, to_steps)
        self._tx = config.optim.make(self._rate)
        self._drop_start = to_steps(config.drop.start) if config.drop else 0

    @functools.cached_property
    def frozen(self) -> dict[str, Any]:
        """The tokenizer's weights."""
        return {"tokenizer": self.tokenizer.params}

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints of what a checkpoint of this task cannot do without."""
        return {"tokenizer": self.tokenizer.fingerprint} | ({"vocabulary": self.text.fingerprint} if self.text else {})

    def notes(self) -> list[str]:
        """What the user should know before a long run."""
        backbone, model = self.model.backbone, self.config.model
        return [
            f"tokenizer {self.tokenizer.path}: {self.spec.grid[0]}x{self.spec.grid[1]} tokens of {self.spec.codes} codes, {self.image_size} px",
            f"attention runs on the backend {backbone.backend!r}; {model.core_params():,} parameters without embeddings",
        ]

    # ---- state ----

    def _boxed_params(self, key: jax.Array) -> Any:
        ids = jnp.zeros((1, self.spec.length), jnp.int32)
        condition = jnp.zeros((1, self.text.length) if self.text else 1, jnp.int32)
        return {"generator": self.model.init(stream(key, "init generator"), ids, condition)["params"]}

    def init(self, key: jax.Array) -> TrainState:
        params = nn.unbox(self._boxed_params(key))
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state={"generator": self._tx.init(params["generator"])},
            # A copy: two names of one buffer could not be donated.
            ema=jax.tree.map(jnp.copy, params) if self.config.ema else {},
            extra={"nonfinite": {"total": jnp.int32(0), "streak": jnp.int32(0)}},
        )

    def pipelines(self, mesh: Mesh) -> dict[str, Pipeline]:
        """The pipelines that a training step goes through, by the name of their layers; none on a mesh without stages."""
        stages, asked = mesh.shape["stage"], self.config.mesh
        rounds = {"decoder": asked.rounds}
        make = lambda name, depth: Pipeline(depth, stages, asked.microbatches or stages, rounds.get(name, 1))
        return {name: make(name, depth) for name, depth in self.config.model.stacks().items()} if stages > 1 else {}

    def shardings(self, mesh: Mesh) -> TrainState:
        check_pipelines(mesh, self.pipelines(mesh))
        boxed = jax.eval_shape(self._boxed_params, jax.random.key(0))
        abstract = jax.eval_shape(nn.unbox, boxed)
        params = rules.param_shardings(mesh, abstract, rules.logical_axes(boxed))
        rules.check_sharded(mesh, abstract, params)
        whole = NamedSharding(mesh, PartitionSpec())
        return TrainState(
            step=whole,
            params=params,
            opt_state={"generator": rules.opt_shardings(mesh, self._tx, abstract["generator"], params["generator"])},
            ema=params if self.config.ema else {},
            extra={"nonfinite": {"total": whole, "streak": whole}},
        )

    # ---- the step ----

    def train_step(
        self, state: TrainState, frozen: Any, batch: dict[str, jax.Array], root: jax.Array
    ) -> tuple[TrainState, Metrics]:
        ids = batch["tokens"][..., 0] if "tokens" in batch else self._encode(frozen, batch["image"].astype(jnp.float32) / 255).ids[..., 0]
        condition = batch[self.config.model.condition.KEY]
        grads, loss = self._gradients(state, ids, condition, root)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm + loss)
        # A step that went wrong leaves everything as it was, except that it is counted.
        new, moved = jax.lax.cond(finite, self._update, lambda state, _: (state, jnp.float32(0)), state, grads)
        bad = state.extra["nonfinite"]
        nonfinite = {"total": bad["total"] + ~finite, "streak": jnp.where(finite, 0, bad["streak"] + 1)}
        new = new.replace(step=state.step + 1, extra={"nonfinite": nonfinite})

        one, size = jnp.float32(1), jnp.float32(len(ids))
        metrics = {
            "loss": (loss * size, size),
            "bits_per_token": (loss / math.log(2) * size, size),
            "grad_norm": (norm, one),
            "update_norm": (moved, one),
            "param_norm": (optax.tree.norm(new.params["generator"]), one),
        }
        # A value that is not finite would spoil the average that it enters; the step is counted instead.
        metrics = {k: (jnp.where(finite, s, 0), jnp.where(finite, w, 0)) for k, (s, w) in metrics.items()}
        return new, metrics | {"nonfinite_share": ((~finite).astype(jnp.float32), one)}

    def _update(self, state: TrainState, grads: Any) -> tuple[TrainState, jax.Array]:
        """The state after finite gradients, and how far the parameters moved, f32[]."""
        old = state.params["generator"]
        updates, opt_state = self._tx.update(grads, state.opt_state["generator"], old)
        params = {"generator": optax.apply_updates(old, updates)}
        moved = optax.tree.norm(optax.tree.sub(params["generator"], old))
        ema = optimizers.update_average(state.ema, params, self.config.ema) if self.config.ema else {}
        return state.replace(params=params, opt_state={"generator": opt_state}, ema=ema), moved

    def _gradients(self, state: TrainState, ids: jax.Array, condition: jax.Array, root: jax.Array) -> tuple[Any, jax.Array]:
        """Gradients and mean loss in nats a token of i32[B,N] under i32[B,…]; in parts, if so configured."""
        parts, step = self.config.accumulate, state.step
        drop = jnp.zeros(len(ids), bool)
        if self.config.drop:
            drop = jax.random.uniform(stream(root, "drop", step), (len(ids),)) < self.config.drop.rate
            drop &= step >= self._drop_start
        read, key = self._read(ids, root, step), stream(root, "dropout", step)

        def loss(params, part, ids, condition, drop, read):
            rngs = {"dropout": jax.random.fold_in(key, part)}
            return self.model.apply({"params": params}, ids, condition, drop, True, read, rngs=rngs).mean()

        both = jax.value_and_grad(loss)
        params = state.params["generator"]
        if parts == 1:
            value, grads = both(params, 0, ids, condition, drop, read)
            return grads, value
        # Each part takes examples from every device's share.
        split = lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)

        def add(carry, part):
            return jax.tree.map(jnp.add, carry, both(params, *part)), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
        (value, grads), _ = jax.lax.scan(add, zeros, (jnp.arange(parts), split(ids), split(condition), split(drop), split(read)))
        return jax.tree.map(lambda g: g / parts, grads), value / parts

    def _read(self, ids: jax.Array, root: jax.Array, step: jax.Array) -> jax.Array:
        """The tokens that training reads, i32[B,N]: some of them random, where the config asks for it."""
        if not self.config.replace:
            return ids
        chance, other = jax.random.split(stream(root, "replace", step))
        replaced = jax.random.uniform(chance, ids.shape) < self.config.replace
        return jnp.where(replaced, jax.random.randint(other, ids.shape, 0, self.spec.codes), ids)

    def _encode(self, frozen: Any, images: jax.Array) -> Tokens:
        images = rules.constrain(images, "batch", "height", "width", "channels")
        return self._tokenizer.apply({"params": frozen["tokenizer"]}, images, method="encode")

    # ---- what others may ask ----

    def predict_fns(self) -> dict[str, Callable[..., Any]]:
        """Each `fn(state, frozen, …)`:

        `encode(images f32[B,H,W,3])` → Tokens; `decode(ids i32[B,N])` → f32[B,H,W,3]; `reconstruct(images)` → the same;
        `nll(ids, condition)` → f32[B,N], nats; `sample(condition, seeds, knobs)` → Samples;
        `complete(condition, seeds, knobs, given, keep)` → Samples. See `vimlab.sampling.decode`.
        `features(images)` → {"blocks": f32[depth,B,width], "latents", "quantized": f32[B,C]}: what each block of the generator,
        given the null condition, and the tokenizer make of pictures, as means over positions.
        """
        model = self.model

        def pictures(state, frozen, ids):
            tokens = Tokens(ids[..., None], self.spec)
            return self._tokenizer.apply({"params": frozen["tokenizer"]}, tokens, method="decode")

        def draw(state, frozen, condition, seeds, knobs, given=None, keep=None):
            return decode(model, state.best("generator"), condition, seeds, knobs, guided=self.guided, given=given, keep=keep)

        def features(state, frozen, images):
            quantized = self._tokenizer.apply({"params": frozen["tokenizer"]}, images, method="quantize")
            blocks = model.apply({"params": state.best("generator")}, quantized.ids[..., 0], method="features")
            return {"blocks": blocks, **mean_latents(quantized)}

        return {
            "encode": lambda state, frozen, images: self._encode(frozen, images),
            "decode": pictures,
            "reconstruct": lambda state, frozen, images: pictures(state, frozen, self._encode(frozen, images).ids[..., 0]),
            "nll": lambda state, frozen, ids, condition: model.apply({"params": state.best("generator")}, ids, condition),
            "sample": draw,
            "complete": draw,
            "features": features,
        }

    @property
    def guided(self) -> bool:
        """Whether the null condition was trained, so that guidance means something."""
        return self.config.drop is not None

    def rates(self, step: int) -> dict[str, float]:
        return {"lr": float(self._rate(step))}

    def flops_per_example(self) -> float:
        flops = 3.0 * self.config.model.flops(self.spec, self.text.length if self.text else 0)
        if self.config.data.tokens:
            return flops
        return flops + self.tokenizer.config.encode_flops()

    def write_companions(self, workdir: Path) -> None:
        """Copies of what a generator cannot do without besides its checkpoints: the tokenizer and the vocabulary."""
        if not holds_tokenizer(workdir):
            self.tokenizer.write(workdir / TOKENIZER)
        if isinstance(self.config.data.text, SentencePiece) and not (workdir / VOCABULARY).exists():
            write_whole(workdir / VOCABULARY, pathlib.Path(self.config.data.text.vocabulary).expanduser().read_bytes())
