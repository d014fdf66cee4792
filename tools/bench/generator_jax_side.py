"""The vimlab child of the generator's benchmark: the step that `vimlab train` runs, the decoder of `vimlab sample`."""

import functools
import pathlib
import sys
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from jax_step import Step, fill, flatten
from pair import Arrays, Work, serve

from vimlab import config as configs
from vimlab.config import Duration
from vimlab.data.base import SourceInfo
from vimlab.data.pipeline import DataConfig
from vimlab.data.text import PAD, RESERVED, Bytes
from vimlab.generators.conditioners import ClassCondition, TextCondition
from vimlab.generators.generator import Generator, GeneratorConfig
from vimlab.optim import AdamW
from vimlab.pretrained import Pretrained
from vimlab.sampling import filters
from vimlab.sampling.decode import decode, draw, knobs
from vimlab.tasks.generator_config import GeneratorRun
from vimlab.tasks.generator_task import GeneratorTask
from vimlab.tokenizers.quantizers import VectorQuantizerConfig
from vimlab.tokenizers.sizes import ViTSize
from vimlab.tokenizers.tokenizer import TokenizerConfig
from vimlab.tokens import TokenSpec

TEXT_IDS = Bytes().open().size


def make_config(cell: dict) -> GeneratorConfig:
    condition = TextCondition(depth=cell["text"]["depth"]) if cell["text"] else ClassCondition()
    return GeneratorConfig(
        **cell["model"], condition=condition, activation=cell["activation"], use_bias=cell["use_bias"], dropout=0.0
    )


def make_model(cell: dict) -> Generator:
    spec = TokenSpec((cell["side"], cell["side"]), cell["codes"])
    length = cell["text"]["length"] if cell["text"] else 0
    return make_config(cell).make(spec, classes=cell["classes"], vocabulary=TEXT_IDS, text_length=length)


def make_task(cell: dict) -> GeneratorTask:
    """The cell as `vimlab train` would build it, on a tokenizer of the right shape whose tokens are not asked for."""
    tower = ViTSize(depth=1, width=16, heads=1, mlp=16)
    quantizer = VectorQuantizerConfig(codes=cell["codes"], dim=4)
    shape = TokenizerConfig(image_size=8 * cell["side"], patch=8, encoder=tower, decoder=tower, quantizer=quantizer)
    image = jnp.zeros((1, shape.image_size, shape.image_size, 3))
    params = jax.jit(lambda key: nn.unbox(shape.make().init(key, image)["params"]))(jax.random.key(0))
    meta = {"config": {"task": "tokenizer", "model": configs.to_dict(shape)}, "step": 0}
    info = SourceInfo("bench", 1, tuple(map(str, range(cell["classes"]))), True, "bench")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tokenizer"
        Pretrained(str(path), meta, shape, jax.device_get(params)).write(path)
        config = GeneratorRun(
            duration=Duration(1000),
            batch_size=cell["batch"],
            data=DataConfig(train="none", text=Bytes(length=cell["text"]["length"]) if cell["text"] else None),
            tokenizer=str(path),
            model=make_config(cell),
            optim=AdamW(learning_rate=cell["learning_rate"], schedule="constant"),
        )
        return GeneratorTask(config, 1000, lambda duration: int(duration.count), jnp.float32, info)


def common_arrays(cell: dict) -> Arrays:
    """The inputs and weights that both sides start from; no parameter is left at zero or one."""
    rng = np.random.default_rng(0)
    if cell["kind"] == "filter":
        return {"logits": 2 * rng.standard_normal((cell["rows"], cell["codes"]), np.float32)}
    batch, length = cell["batch"], cell["side"] ** 2
    arrays = {"tokens": rng.integers(0, cell["codes"], (batch, length), np.int32)}
    arrays["label"] = rng.permutation(cell["classes"])[:batch].astype(np.int32)
    if cell["text"]:
        arrays["text"] = rng.integers(RESERVED, TEXT_IDS, (batch, cell["text"]["length"]), np.int32)
        lengths = np.linspace(cell["text"]["length"] // 2, cell["text"]["length"], batch).astype(int)
        arrays["text"][np.arange(cell["text"]["length"]) >= lengths[:, None]] = PAD
    fresh = jax.jit(fresh_params(make_model(cell), arrays))(jax.random.key(0))
    jitter = lambda x: np.asarray(x) + 0.05 * rng.standard_normal(x.shape, np.float32)
    return arrays | flatten({"generator": jax.tree.map(jitter, fresh)})


def fresh_params(model: Generator, arrays: Arrays) -> Callable:
    """A function of a key; for these tokens and texts, or else labels."""
    ids, condition = (jnp.asarray(arrays[k]) for k in ("tokens", "text" if "text" in arrays else "label"))
    return lambda key: nn.unbox(model.init(key, ids, condition)["params"])


class Train:
    """A training step on tokens from a cache."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        batch = {k: jnp.asarray(arrays[k]) for k in ("tokens", "label", "text") if k in arrays}
        self.step = Step(make_task(cell), batch | {"tokens": batch["tokens"][..., None]}, arrays)

    def first(self, phase: str) -> Arrays:
        return self.step.begin(1)

    def run(self, phase: str) -> None:
        self.step.next(1)


class Decode:
    """Greedy tokens: `decode`, or, as the variant "uncached", each position by a pass over all."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        model = make_model(cell)
        params = fill({"generator": jax.eval_shape(fresh_params(model, arrays), jax.random.key(0))}, arrays)["generator"]
        settings = jax.device_put(knobs(cell["side"] ** 2, temperature=0, guidance=cell["guidance"] or 1.0))
        self.inputs = params, jnp.asarray(arrays["label"]), settings
        self.compared, self.counts = cell["compared"], None
        if variant == "uncached":
            self.counts = cell["compared"], cell["timed"]
            self.draw = jax.jit(functools.partial(uncached, model))
        else:
            seeds = jnp.arange(cell["batch"], dtype=jnp.uint32)
            guided = cell["guidance"] is not None
            self.draw = jax.jit(lambda params, label, knobs: decode(model, params, label, seeds, knobs, guided=guided).tokens.ids[..., 0])

    def first(self, phase: str) -> Arrays:
        ids = self.draw(*self.inputs, self.counts[0]) if self.counts else self.draw(*self.inputs)
        return {"ids": np.asarray(ids)[:, : self.compared].astype(np.int64)}

    def run(self, phase: str) -> None:
        (self.draw(*self.inputs, self.counts[1]) if self.counts else self.draw(*self.inputs)).block_until_ready()


def uncached(model: Generator, params, label: jax.Array, settings, count: jax.Array) -> jax.Array:
    """The first `count` tokens, i32[B,N], in one loop on the device; only the logits that are drawn from are computed."""
    apply = lambda *args, method: model.apply({"params": params}, *args, method=method)
    condition, keys = apply(label, method="condition"), jax.random.split(jax.random.key(0), len(label))

    def body(position, ids):
        hidden = apply(ids, condition, method="hidden")
        scores = apply(jax.lax.dynamic_index_in_dim(hidden, position, 1, keepdims=False), method="logits")
        return jax.lax.dynamic_update_index_in_dim(ids, draw(scores, keys, settings)[0], position, 1)

    return jax.lax.fori_loop(0, count, body, jnp.zeros((len(label), model.layout.length), jnp.int32))


class Filter:
    """Both filters of `vimlab sample`, one after the other."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        self.inputs = jnp.asarray(arrays["logits"]), jnp.int32(cell["k"]), jnp.float32(cell["p"])
        self.filter = jax.jit(lambda logits, k, p: filters.top_p(filters.top_k(logits, k), p))

    def first(self, phase: str) -> Arrays:
        return {"kept": np.isfinite(self.filter(*self.inputs)).astype(np.int64)}

    def run(self, phase: str) -> None:
        self.filter(*self.inputs).block_until_ready()


def make(cell: dict, variant: str, arrays: Arrays) -> Work:
    return {"train": Train, "decode": Decode, "filter": Filter}[cell["kind"]](cell, variant, arrays)


if __name__ == "__main__":
    serve(make, common_arrays)
