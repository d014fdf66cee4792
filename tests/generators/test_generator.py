"""The generator's parallel pass: against NumPy in float64, what sees what, dropout, the counts of parameters and FLOPs."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from quick import quick
from small_generators import (
    SPEC,
    TEXT,
    conditions,
    kinds,
    make,
    nulls,
    parallel,
    random_params,
    shipped,
    shrink,
    some_ids,
)

from vimlab.config import ConfigError
from vimlab.data.text import PAD
from vimlab.generators.conditioners import ClassCondition, TextCondition
from vimlab.generators.generator import GeneratorConfig
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.tokens import TokenSpec

KINDS = kinds()
each_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def opened(kind):
    """config, module, parameters, and the jitted pass."""
    config = KINDS[kind]
    model = make(config)
    return config, model, random_params(model, config), quick(functools.partial(parallel, model))


# ---- against NumPy ----


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p.get("bias", 0)


def heads_of(x, p, name):
    """[B,L,width] → [count,B,H,L,D]."""
    y = np.einsum("bld,dnhk->nbhlk", x, p[name])
    return y + p[name + "_bias"][:, None, :, None] if name + "_bias" in p else y


def attend(q, k, v, seen, p):
    scores = np.where(seen, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -np.inf)
    return np.einsum("bhlk,hkd->bld", softmax(scores) @ v, p["out"]) + p.get("out_bias", 0)


def perceptron(x, p, activation):
    hidden = x @ p["mlp_in"]["w"] + p["mlp_in"].get("b", 0)
    if activation == "relu":
        hidden = np.maximum(hidden, 0)
    else:
        hidden = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    return hidden @ p["mlp_out"]["w"] + p["mlp_out"].get("b", 0)


def numpy_blocks(x, stacked, config, masks, memory=None, seen=None):
    """Block after block in float64; `masks` are one a layer, [L,L] or [B,1,L,L]."""
    for n, mask in enumerate(masks):
        p = jax.tree.map(lambda w: w[n], stacked)  # noqa: B023
        x = x + attend(*heads_of(norm(x, p["norm1"]), p["attention"], "qkv"), mask, p["attention"])
        if memory is not None:
            q = heads_of(norm(x, p["cross_norm"]), p["cross_attention"], "q")[0]
            x = x + attend(q, *heads_of(memory, p["cross_attention"], "kv"), seen, p["cross_attention"])
        x = x + perceptron(norm(x, p["norm2"]), p, config.activation)
    return x


def layer_masks(config, spec=SPEC):
    """What each layer's positions see, bool[depth,N,N], by brute force: the window, wrapped around, and position 0."""
    n, columns = spec.length, spec.grid[1]
    dense = np.tri(n, dtype=bool)
    if config.conv_kernel is None:
        return np.stack([dense] * config.depth)
    half, conv = config.conv_kernel // 2, np.zeros((n, n), bool)
    for i in range(n):
        conv[i, 0] = True
        for dy in range(half + 1):
            for dx in range(-half, half + 1):
                j = i - dy * columns + dx
                if 0 < j <= i:
                    conv[i, j] = True
    return np.stack([dense if layer in config.dense_layers else conv for layer in range(config.depth)])


def numpy_backbone(params, config, ids, condition, depth):
    """What the first `depth` blocks make of tokens and condition, f64[B,N,width]."""
    p = jax.tree.map(np.float64, params)
    memory = seen = None
    if isinstance(config.condition, TextCondition):
        text, q = np.asarray(condition), p["conditioner"]
        seen = (np.arange(text.shape[1]) < (text != PAD).sum(1)[:, None])[:, None, None]
        x = q["table"][text] + q["positions"][: text.shape[1]]
        memory = norm(numpy_blocks(x, q["stack"]["blocks"], config, [seen] * config.condition.depth), q["norm"])
        prefix = np.repeat(q["start"], len(text), 0)
    elif isinstance(config.condition, ClassCondition):
        prefix = p["conditioner"]["table"][np.asarray(condition)][:, None]
    else:
        prefix = np.repeat(p["conditioner"]["start"], len(condition), 0)
    r, c = np.divmod(np.arange(SPEC.length - 1), SPEC.grid[1])
    tokens = p["tokens"][np.asarray(ids)[:, :-1]] + p["rows"][r] + p["columns"][c]
    return numpy_blocks(np.concatenate([prefix, tokens], 1), p["backbone"]["blocks"], config, layer_masks(config)[:depth], memory, seen)


def numpy_logits(params, config, ids, condition):
    p = jax.tree.map(np.float64, params)
    return norm(numpy_backbone(params, config, ids, condition, config.depth), p["norm"]) @ p["head"]


@each_kind
def test_logits_and_losses_are_those_of_the_formulas(kind):
    config, model, params, run = opened(kind)
    ids, condition = some_ids(3), conditions(config, 3)
    expected = numpy_logits(params, config, ids, condition)
    found = run(params, ids, condition)
    assert expected.std() > 0.5 and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    losses = quick(lambda p: model.apply({"params": p}, ids, condition))(params)
    np.testing.assert_allclose(losses, -np.log(np.take_along_axis(softmax(expected), np.asarray(ids)[..., None], -1))[..., 0], atol=1e-4)


def test_what_is_read_may_be_other_than_what_is_predicted():
    config, model, params, run = opened("mixed")
    ids, read, condition = some_ids(3), some_ids(3, seed=1), conditions(config, 3)
    losses = quick(lambda p: model.apply({"params": p}, ids, condition, None, False, read))(params)
    shares = jax.nn.log_softmax(run(params, read, condition))
    np.testing.assert_allclose(losses, -np.take_along_axis(np.asarray(shares), np.asarray(ids)[..., None], -1)[..., 0], atol=1e-4)


# ---- what sees what ----


@each_kind
def test_no_position_sees_what_it_may_not_and_each_sees_what_it_may(kind):
    """Row j of a batch has another token j than its twin: through all layers, position j + 1 and what may see it changes."""
    config, _, params, run = opened(kind)
    assert_reach(run, params, config, layer_masks(config), SPEC)


def assert_reach(run, params, config, masks, spec, rows=None):
    """rows: the tokens that are changed, one at a time; all of them by default."""
    rows = np.arange(spec.length) if rows is None else np.asarray(rows)
    ids = some_ids(1, spec=spec).repeat(len(rows), 0)
    changed = ids.at[np.arange(len(rows)), rows].add(1) % spec.codes
    condition = conditions(config, 1, seed=3).repeat(len(rows), 0)
    moved = np.asarray(run(params, ids, condition) != run(params, changed, condition)).any(-1)
    reach = functools.reduce(lambda a, b: b @ a, masks.astype(np.int64)) > 0
    sees = np.pad(reach, ((0, 0), (0, 1)))[:, rows + 1].T  # Position j + 1 reads token j; none reads the last.
    np.testing.assert_array_equal(moved, sees)


@pytest.mark.parametrize("spec, kernel, rows", [(SPEC, 5, None), (TokenSpec((32, 32), 16), 11, [0, 30, 31, 63, 500, 512, 1022, 1023])],
                         ids=["8x8", "32x32"])  # fmt: skip
def test_one_layer_of_convolution_shaped_attention_sees_its_window(spec, kernel, rows):
    config = GeneratorConfig(depth=1, width=16, heads=2, mlp=16, dropout=0, conv_kernel=kernel, condition=ClassCondition())
    model = make(config, spec)
    assert_reach(quick(functools.partial(parallel, model)), random_params(model, config), config, layer_masks(config, spec), spec, rows)


@each_kind
def test_every_position_is_told_the_condition(kind):
    config, _, params, run = opened(kind)
    ids = some_ids(1).repeat(4, 0)
    logits = np.asarray(run(params, ids, conditions(config, 4)))
    differ = (logits[1:] != logits[:1]).any(-1)
    assert differ.all() if config.condition.NAME != "none" else not differ.any()


def test_padding_of_a_text_counts_for_nothing():
    """The same text in a shorter array; and what another row's length is."""
    config, _, params, run = opened("mixed")
    text, ids = conditions(config, 4), some_ids(4)
    lengths = np.asarray((text != PAD).sum(1))
    assert lengths.min() < 8 < lengths.max()
    short = np.flatnonzero(lengths <= 8)
    whole, cut = run(params, ids, text), run(params, ids, text[:, :8])
    np.testing.assert_allclose(whole[short], cut[short], atol=1e-5)
    other = run(params, ids, text.at[-1].set(text[0]))
    np.testing.assert_array_equal(whole[:-1], other[:-1])


# ---- the program ----


@pytest.fixture(scope="module")
def plain():
    """Losses and gradients of the kind with two masks, unrolled and without remat."""
    return gradients(remat="none", unroll=3)


def gradients(**changes):
    config = dataclasses.replace(KINDS["mixed"], **changes)
    model, ids, condition = make(config), some_ids(2), conditions(config, 2)
    drop = jnp.asarray([False, True])
    loss = lambda p: model.apply({"params": p}, ids, condition, drop).sum()
    return quick(jax.value_and_grad(loss))(random_params(model, config))


def assert_trees(found, expected, tolerance=2e-5):
    def close(path, a, b):
        scale = float(np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(close, found, expected)


@pytest.mark.parametrize("changes", [dict(remat="dots", loss_chunk=1000), dict(remat="full")], ids=str)
def test_scan_remat_and_chunks_change_nothing(plain, changes):
    assert_trees(gradients(**changes), plain)


def test_sharded_is_unsharded(plain):
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))):
        assert_trees(gradients(), plain)


def test_bf16_is_near():
    config, _, params, run = opened("mixed")
    rough = config.make(SPEC, vocabulary=50, text_length=TEXT, dtype=jnp.bfloat16)
    ids, condition = some_ids(2), conditions(config, 2)
    found = quick(functools.partial(parallel, rough))(params, ids, condition)
    exact = run(params, ids, condition)
    assert found.dtype == jnp.float32 and 0 < float(jnp.abs(found - exact).max() / jnp.abs(exact).max()) < 0.1
    assert float(jnp.abs(found - exact).mean() / jnp.abs(exact).mean()) < 0.02


# ---- dropout ----


def test_dropout_is_of_training_alone_and_of_its_key():
    config = dataclasses.replace(KINDS["mixed"], dropout=0.3)
    model, ids, condition = make(config), some_ids(2), conditions(config, 2)
    params = random_params(model, config)

    @quick
    def run(key):
        return model.apply({"params": params}, ids, condition, None, True, rngs={"dropout": key})

    first, again, other = run(jax.random.key(1)), run(jax.random.key(1)), run(jax.random.key(2))
    off = quick(lambda: model.apply({"params": params}, ids, condition))()
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other) > 1e-3).mean() > 0.9 and (np.abs(first - off) > 1e-3).mean() > 0.9
    none = quick(lambda: make(KINDS["mixed"]).apply({"params": params}, ids, condition))()
    np.testing.assert_array_equal(off, none)


def test_each_place_of_dropout_has_a_mask_of_its_own():
    """Layers that were dropped alike would be seen in their gradients: those of equal layers would be equal."""
    config = GeneratorConfig(depth=2, width=16, heads=2, mlp=32, dropout=0.5, remat="none")
    model, ids = make(config), some_ids(1)
    params = random_params(model, config)
    # Blocks whose products back are zero leave the sequence as it is: both see the same input, and have the same weights.
    blocks = jax.tree.map(lambda p: jnp.broadcast_to(p[:1], p.shape), params["backbone"]["blocks"])
    blocks["attention"] |= {"out": blocks["attention"]["out"] * 0, "out_bias": blocks["attention"]["out_bias"] * 0}
    blocks["mlp_out"] = jax.tree.map(lambda p: p * 0, blocks["mlp_out"])
    params = params | {"backbone": {"blocks": blocks}}

    @quick
    def slopes(key):
        loss = lambda p: model.apply({"params": p}, ids, conditions(config, 1), None, True, rngs={"dropout": key}).sum()
        return jax.grad(loss)(params)["backbone"]["blocks"]

    found = slopes(jax.random.key(0))
    for slope in (found["attention"]["out"], found["mlp_out"]["w"]):
        assert float(jnp.abs(slope[0] - slope[1]).max()) > 0.1 * float(jnp.abs(slope).max())


# ---- dropped conditions ----


@pytest.mark.parametrize("kind", [k for k, c in KINDS.items() if c.condition.NAME != "none"])
def test_a_dropped_condition_is_the_null_one(kind):
    config, model, params, run = opened(kind)
    ids, condition = some_ids(4), conditions(config, 4)
    drop = jnp.asarray([True, False, True, False])
    mixed, given = run(params, ids, condition, drop), run(params, ids, condition)
    null = run(params, ids, nulls(config, 4))
    np.testing.assert_array_equal(mixed[::2], null[::2])
    np.testing.assert_array_equal(mixed[1::2], given[1::2])
    assert (np.asarray(null != given).any(-1)).all()
    # The short form that sampling reads.
    short = lambda p: model.apply({"params": p}, model.apply({"params": p}, ids, model.apply({"params": p}, 4, method="null"), method="hidden"), method="logits")
    np.testing.assert_allclose(quick(short)(params), null, atol=1e-5)


@pytest.mark.parametrize("kind", {c.condition.NAME: kind for kind, c in KINDS.items()}.values())
def test_features_are_each_blocks_mean_under_the_null_condition(kind):
    config, model, params, _ = opened(kind)
    ids = some_ids(3)
    features = quick(lambda p: model.apply({"params": p}, ids, method="features"))
    expected = [numpy_backbone(params, config, ids, nulls(config, 3), n + 1).mean(1) for n in range(config.depth)]
    found = features(params)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if config.condition.NAME == "class":
        # No row of a class has a part in them, so no label can.
        table = params["conditioner"]["table"]
        other = params | {"conditioner": {"table": table.at[:-1].add(1.0)}}
        np.testing.assert_array_equal(features(other), found)
        assert not np.allclose(features(params | {"conditioner": {"table": table.at[-1].add(1.0)}}), found)


# ---- counts ----


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


IMAGENET = TokenSpec((32, 32), 8192)


def abstract(config, spec=IMAGENET, vocabulary=16000, text_length=128, classes=1000):
    model = config.make(spec, classes=classes, vocabulary=vocabulary, text_length=text_length, platform="cpu")
    text = isinstance(config.condition, TextCondition)
    condition = jax.ShapeDtypeStruct((1, text_length) if text else (1,), jnp.int32)
    return nn.unbox(jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, spec.length), jnp.int32), condition)["params"])


def core(params) -> int:
    """All but the tables of tokens, texts, classes and positions, learned starts, and the softmax."""
    encoder = {k: v for k, v in params["conditioner"].items() if k in ("stack", "norm")}
    return count((params["backbone"], params["norm"], encoder))


@pytest.mark.parametrize("text, depth, width, millions", [(12, 12, 1024, 352), (12, 36, 1024, 755), (12, 36, 2048, 3020), (16, 64, 4096, 20_400)])
def test_partis_sizes(text, depth, width, millions):
    """Bias-free, as it is only so that the paper's names come out: 350M, 750M, 3B and 20B, and its 20.4B."""
    config = GeneratorConfig(
        depth=depth, width=width, heads=width // 64, mlp=4 * width, condition=TextCondition(depth=text), use_bias=False, activation="relu"
    )
    params = abstract(config)
    assert core(params) == config.core_params() == pytest.approx(millions * 1e6, rel=0.005)
    assert not [p for p, _ in jax.tree_util.tree_leaves_with_path(params) if "bias" in jax.tree_util.keystr(p)]


@pytest.mark.parametrize("config", [*KINDS.values(), *shipped().values()], ids=[*KINDS, *shipped()])
def test_core_params_are_all_but_tables(config):
    params = abstract(config)
    assert core(params) == config.core_params()
    tables = count([v for k, v in params["conditioner"].items() if k not in ("stack", "norm")])
    outside = 2 * 8192 * config.width + 64 * config.width  # Tokens and softmax; rows and columns.
    assert count(params) == config.core_params() + tables + outside
    rows = {"text": 16000 + 128 + 1, "class": 1000 + 1, "none": 1}[config.condition.NAME]
    assert tables == rows * config.width


@pytest.mark.parametrize("kind", ["text", "class"])
def test_flop_count_is_xlas(kind):
    """XLA also counts norms, softmax and activations, small beside products this wide, and the half of attention that is masked."""
    condition = {"text": TextCondition(depth=2), "class": ClassCondition()}[kind]
    config = GeneratorConfig(depth=2, width=256, heads=2, mlp=1024, condition=condition, dropout=0, remat="none", unroll=2, activation="relu")
    spec, length = TokenSpec((8, 8), 512), 32
    model = config.make(spec, classes=10, vocabulary=10, text_length=length)
    ids = jax.ShapeDtypeStruct((1, spec.length), jnp.int32)
    inputs = jax.ShapeDtypeStruct((1, length) if kind == "text" else (1,), jnp.int32)
    params = abstract(config, spec, 10, length, 10)
    counted = quick(lambda p, *x: model.apply({"params": p}, *x)).lower(params, ids, inputs).compile().cost_analysis()["flops"]
    masked = config.depth * 2 * spec.length**2 * config.width
    assert config.flops(spec, length if kind == "text" else 0) + masked == pytest.approx(counted, rel=0.03)


# ---- settings ----


@pytest.mark.parametrize("changes, words", [
    (dict(width=30), "width 30 does not divide into 4 heads"),
    (dict(depth=0), "depth is 0"),
    (dict(dropout=1.0), "dropout is 1.0"),
    (dict(conv_kernel=4), "conv_kernel is 4, but a centred kernel has an odd side"),
    (dict(conv_kernel=5, dense_layers=(3,)), "dense_layers names layer 3, but there are layers 0 to 2"),
    (dict(loss_chunk=0), "loss_chunk is 0"),
])  # fmt: skip
def test_impossible_settings(changes, words):
    with pytest.raises(ConfigError, match=words):
        GeneratorConfig(**dict(depth=3, width=32, heads=4, mlp=64) | changes)
    with pytest.raises(ConfigError, match="at least one block"):
        TextCondition(depth=0)


def test_impossible_models():
    with pytest.raises(ConfigError, match="one code a position, but the tokenizer has 2 sub-codes"):
        make(KINDS["none"], TokenSpec((4, 4), 32, groups=2))
    with pytest.raises(ConfigError, match="'cudnn' cannot be used here"):
        make(dataclasses.replace(KINDS["none"], attention="cudnn"))
    convolution = dataclasses.replace(KINDS["conv"], attention="cudnn")
    with pytest.raises(ConfigError, match="of masks it knows only the causal one"):
        convolution.make(SPEC, classes=5, dtype=jnp.bfloat16, platform="gpu")


def test_backends_by_platform():
    """Each where it can; the formula for all layers, where one of them has a mask that the kernel does not know."""
    wide = lambda **k: GeneratorConfig(depth=2, width=256, heads=2, mlp=8, condition=ClassCondition(), **k)
    chosen = lambda config, platform: config.make(TokenSpec((16, 16), 8), classes=2, dtype=jnp.bfloat16, platform=platform).backbone.backend
    assert [chosen(wide(), p) for p in ("cpu", "gpu", "tpu")] == ["xla", "cudnn", "splash"]
    assert [chosen(wide(conv_kernel=5), p) for p in ("cpu", "gpu", "tpu")] == ["xla", "xla", "splash"]
    assert [chosen(wide(conv_kernel=5, dense_layers=(1,)), p) for p in ("cpu", "gpu", "tpu")] == ["xla", "xla", "splash"]


def test_dense_layers_that_are_all_layers_need_no_second_mask():
    config = dataclasses.replace(KINDS["mixed"], dense_layers=(0, 1, 2))
    assert make(config).backbone.kinds == () and len(make(config).backbone.masks) == 1
    assert make(KINDS["mixed"]).backbone.kinds == (0, 1, 0)


def test_shrinking_keeps_what_makes_a_kind():
    for config in shipped().values():
        small = shrink(config)
        assert (small.activation, small.use_bias, small.condition.NAME) == (config.activation, config.use_bias, config.condition.NAME)
        assert bool(small.conv_kernel) == bool(config.conv_kernel) and bool(small.dense_layers) == bool(config.dense_layers)
        assert small in KINDS.values()
