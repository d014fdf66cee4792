"""The shipped generators, shrunk: one of each kind that the configs have, and kinds of our own; random parameters for them."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vimlab import config as configs
from vimlab.data.text import NULL, PAD, RESERVED
from vimlab.generators.conditioners import ClassCondition, NoCondition, TextCondition
from vimlab.generators.generator import GeneratorConfig
from vimlab.tokens import TokenSpec

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
SPEC = TokenSpec((8, 8), 32)
CLASSES, VOCABULARY, TEXT = 5, 50, 12


def shipped() -> dict[str, GeneratorConfig]:
    """The models of all generator configs, by the name of their file."""
    trees = {file.stem: configs.load(str(file)).to_dict() for file in sorted(CONFIGS.glob("*.py"))}
    return {name: configs.resolve(GeneratorConfig, tree["model"]) for name, tree in trees.items() if tree["task"] == "generator"}


def shrink(config: GeneratorConfig) -> GeneratorConfig:
    """Three narrow layers without dropout, all else as it is; a kernel of 5, so that a rolling cache rolls on eight columns."""
    text = isinstance(config.condition, TextCondition)
    return dataclasses.replace(
        config, depth=3, width=32, heads=4, mlp=64, dropout=0.0, condition=TextCondition(depth=2) if text else config.condition,
        conv_kernel=5 if config.conv_kernel else None, dense_layers=tuple({min(n, 2) for n in config.dense_layers}), loss_chunk=24,
        remat="dots", unroll=1,
    )  # fmt: skip


def kinds() -> dict[str, GeneratorConfig]:
    """Those that differ after shrinking, by the first file's name and the number of the others; and kinds of our own."""
    names = {}
    for name, config in shipped().items():
        names.setdefault(shrink(config), []).append(name)
    ours = dict(depth=3, width=32, heads=4, mlp=64, dropout=0.0, conv_kernel=5, loss_chunk=24)
    return {n[0] + (f"+{len(n) - 1}" if n[1:] else ""): config for config, n in names.items()} | {
        "mixed": GeneratorConfig(**ours, condition=TextCondition(depth=2), dense_layers=(1,), activation="relu", use_bias=False),
        "conv": GeneratorConfig(**ours, condition=ClassCondition()),
        "none": GeneratorConfig(**ours | dict(conv_kernel=None), condition=NoCondition()),
    }


def make(config: GeneratorConfig, spec: TokenSpec = SPEC):
    return config.make(spec, classes=CLASSES, vocabulary=VOCABULARY, text_length=TEXT)


def conditions(config: GeneratorConfig, rows: int, seed: int = 0) -> jax.Array:
    """Labels, or texts of many lengths; no two alike where there are enough."""
    rng = np.random.default_rng(seed)
    if not isinstance(config.condition, TextCondition):
        return jnp.asarray((np.arange(rows) + seed) % CLASSES, jnp.int32)
    texts = rng.integers(RESERVED, VOCABULARY, (rows, TEXT))
    lengths = 1 + (np.arange(rows) * 5 + seed) % TEXT
    return jnp.asarray(np.where(np.arange(TEXT) < lengths[:, None], texts, PAD), jnp.int32)


def nulls(config: GeneratorConfig, rows: int) -> jax.Array:
    """What the null condition looks like among labels or texts."""
    if not isinstance(config.condition, TextCondition):
        return jnp.full(rows, -1, jnp.int32)
    return jnp.asarray(np.where(np.arange(TEXT) == 0, NULL, PAD), jnp.int32)[None].repeat(rows, 0)


def some_ids(rows: int, seed: int = 0, spec: TokenSpec = SPEC) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, spec.codes, (rows, spec.length)), jnp.int32)


def random_params(model, config: GeneratorConfig, seed: int = 0):
    """Parameters of unit-sized products, biases and scales among them: those of `init` would hide a missing bias, or a flat head."""
    ids = jnp.zeros((1, model.layout.length), jnp.int32)
    abstract = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), ids, conditions(config, 1))["params"]))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if "scale" in name:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        size = 0.5 if "head" in name else 0.3
        return jnp.asarray(size * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def parallel(model, params, ids, condition, drop=None):
    """Logits f32[B,N,K] of the pass over all positions at once."""
    apply = lambda *args, method: model.apply({"params": params}, *args, method=method)
    return apply(apply(ids, apply(condition, drop, method="condition"), method="hidden"), method="logits")
