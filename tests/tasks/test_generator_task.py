"""One step of a generator's training: against plain gradients, on every mesh, in parts, from pixels and from tokens."""

import dataclasses
import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from meshes import OF_EIGHT
from quick import quick

from vimlab import config as configs
from vimlab import run as runs
from vimlab.config import ConfigError
from vimlab.data.pipeline import Resize, TrainPipeline
from vimlab.data.sources import open_source
from vimlab.data.text import NULL, Bytes, SentencePiece, train_vocabulary
from vimlab.parallel import rules
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.pretrained import Pretrained, open_tokenizer
from vimlab.random import stream
from vimlab.sampling.decode import knobs
from vimlab.tasks import generator_task
from vimlab.tasks.generator_config import TOKENIZER, VOCABULARY, DropConfig, GeneratorRun
from vimlab.tasks.generator_task import GeneratorTask
from vimlab.tokenizers.quantizers import VectorQuantizerConfig
from vimlab.tokenizers.sizes import ViTSize
from vimlab.tokenizers.tokenizer import TokenizerConfig

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
SHAPES = str(CONFIGS / "parti_shapes.py")
ROOT, BATCH, STEPS, TOTAL, LENGTH, CODES = jax.random.key(0), 16, 3, 100, 16, 32
TOWER = ViTSize(depth=1, width=16, heads=2, mlp=32)
TOKENIZER_MODEL = TokenizerConfig(
    image_size=8, patch=2, encoder=TOWER, decoder=TOWER, output="rgb", quantizer=VectorQuantizerConfig(codes=CODES, dim=4)
)
SOURCE = open_source("shapes:train?size=16&count=64")
# The shapes config at 8 px, everything on: an average of weights, texts dropped from step 2 on.
SHRUNK = {
    "model.depth": 2, "model.width": 16, "model.heads": 4, "model.mlp": 32, "model.condition.depth": 1, "model.conv_kernel": 3,
    "model.loss_chunk": 5, "model.remat": "none", "data.text.length": 24, "batch_size": BATCH, "ema": 0.9, "drop.rate": 0.3,
    "drop.start": "2 steps", "optim.learning_rate": 1e-3, "optim.warmup": "0 steps", "optim.clip": "none",
}  # fmt: skip


@quick
def fresh_weights(key):
    return nn.unbox(TOKENIZER_MODEL.make().init(key, jnp.zeros((1, 8, 8, 3)))["params"])


def export(folder, seed=0):
    """A tokenizer with fresh weights, as `vimlab ckpt export` writes one. Returns its path."""
    meta = {"config": {"task": "tokenizer", "model": configs.to_dict(TOKENIZER_MODEL)}, "step": 0}
    Pretrained(str(folder), meta, TOKENIZER_MODEL, jax.device_get(fresh_weights(jax.random.key(seed)))).write(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return export(tmp_path_factory.mktemp("trained") / "tokenizer")


@pytest.fixture(scope="module", autouse=True)
def tiny_models_may_be_replicated():
    """At width 16, tables and norms are more than the 2% of bytes that may be whole on every device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "check_sharded", lambda *_: None)
        yield


CHECK = rules.check_sharded


@pytest.fixture(scope="module")
def make(tokenizer):
    """The shrunk task under changes; dots of keys are written as double underscores."""

    def make(info=SOURCE.info, **changes) -> GeneratorTask:
        overrides = SHRUNK | {"tokenizer": tokenizer} | {k.replace("__", "."): v for k, v in changes.items()}
        if "model__condition__name" in changes:
            del overrides["model.condition.depth"]
        config = runs.resolve(configs.load(f"{SHAPES}:smoke"), [(k, str(v)) for k, v in overrides.items()])
        return GeneratorTask(config, TOTAL, lambda d: d.steps(config.batch_size, None, TOTAL), jnp.float32, info)

    return make


@functools.cache
def batch(step: int) -> dict[str, jax.Array]:
    """Pictures of the shapes world with captions and labels."""
    pipeline = TrainPipeline(SOURCE, image_size=8, crop=Resize(), batch_size=BATCH, seed=1, threads=1, text=Bytes(length=24).open())
    rows = pipeline.batch(step)
    return {k: jnp.asarray(rows[k]) for k in ("image", "text", "label")}


def fresh(task):
    return quick(task.init)(ROOT)


@functools.cache
def step_of(task):
    """The jitted step on one device, its frozen arrays bound."""
    step = quick(task.train_step)
    return lambda state, data, root=ROOT: step(state, task.frozen, data, root)


def run(task, state, mesh=None, steps=STEPS):
    """The state after some steps, and each step's metrics as numbers; on one device, or on a mesh."""
    rows = []
    if mesh is None:
        for i in range(steps):
            state, metrics = step_of(task)(state, batch(i))
            rows.append(numbers(metrics))
        return state, rows
    with jax.set_mesh(mesh):
        shardings = task.shardings(mesh)
        step_fn, data = quick(task.train_step, out_shardings=(shardings, None)), rules.batch_sharding(mesh)
        state = jax.device_put(state, shardings)
        for i in range(steps):
            state, metrics = step_fn(state, task.frozen, jax.device_put(batch(i), data), ROOT)
            rows.append(numbers(metrics))
    return jax.device_get(state), rows


def numbers(metrics) -> dict[str, float]:
    """Averages, those without weight left out."""
    return {k: float(s) / float(w) for k, (s, w) in jax.device_get(metrics).items() if w}


def assert_rows(found, expected, tolerance):
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance), f"at step {step}"


def assert_trees(found, expected, **tolerance):
    def compare(path, a, b):
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)

    jax.tree_util.tree_map_with_path(compare, found, expected)


def equal(a, b) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def moments(state):
    """AdamW's first moments: sums of gradients."""
    return next(part.mu for part in state.opt_state["generator"] if hasattr(part, "mu"))


@pytest.fixture(scope="module")
def task(make):
    return make()


@pytest.fixture(scope="module")
def initial(task):
    return fresh(task)


@pytest.fixture(scope="module")
def straight(task, initial):
    """Three steps on one device, the third with dropped texts."""
    return run(task, initial)


@pytest.fixture(scope="module")
def dropping(make, initial):
    """The task with dropout and random tokens among those read, and three steps of it on one device."""
    task = make(model__dropout=0.3, replace=0.25)
    return task, run(task, initial)


# ---- the step is what it says ----


@pytest.fixture(scope="module")
def plain(task):
    """(generator's parameters, batch, drop) → loss and gradients, the tokens by the tokenizer itself."""
    frozen = jax.tree.map(jnp.asarray, task.tokenizer.params)

    @quick
    def compute(params, data, drop):
        ids = TOKENIZER_MODEL.make().apply({"params": frozen}, data["image"].astype(jnp.float32) / 255, method="encode").ids[..., 0]
        loss = lambda p: task.model.apply({"params": p}, ids, data["text"], drop).mean()
        return jax.value_and_grad(loss)(params)

    return compute


def norm(tree) -> float:
    return float(np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in jax.tree.leaves(tree))))


@pytest.mark.parametrize("step", [0, 2], ids=["all texts", "some dropped"])
def test_loss_and_gradient_are_those_of_the_plain_formulas(task, initial, plain, step):
    drop = jnp.zeros(BATCH, bool)
    if step >= 2:
        drop = jax.random.uniform(stream(ROOT, "drop", step), (BATCH,)) < 0.3
        assert 0 < int(drop.sum()) < BATCH
    # In NumPy from here on: each small operation of JAX's on each shape would be compiled.
    loss, grads = jax.device_get(plain(initial.params["generator"], batch(step), drop))
    new, metrics = jax.device_get(step_of(task)(initial.replace(step=jnp.int32(step)), batch(step)))
    found = numbers(metrics)
    moves = jax.tree.map(lambda n, o: n - o, new.params, jax.device_get(initial.params))
    expected = {
        "loss": loss, "bits_per_token": loss / np.log(2), "grad_norm": norm(grads), "update_norm": norm(moves),
        "param_norm": norm(new.params), "nonfinite_share": 0,
    }  # fmt: skip
    assert found == pytest.approx({k: float(v) for k, v in expected.items()}, rel=2e-4)
    assert 0.5 * np.log(CODES) < found["loss"] < 2 * np.log(CODES)
    assert_trees(moments(new), jax.tree.map(lambda g: 0.1 * g, grads), rtol=1e-3, atol=1e-6)
    assert int(new.step) == step + 1
    # Each metric is a sum with a weight: of examples, or of the one step.
    assert float(metrics["loss"][1]) == float(metrics["bits_per_token"][1]) == BATCH and float(metrics["grad_norm"][1]) == 1


def test_tokens_from_a_cache_give_the_step_of_the_pixels(task, initial, make):
    ids = quick(task.predict_fns()["encode"])(initial, task.frozen, batch(0)["image"] / 255).ids
    assert ids.shape == (BATCH, LENGTH, 1) and len(np.unique(ids)) > 5
    cached = {"tokens": ids, "text": batch(0)["text"]}
    (a, rows_a), (b, rows_b) = step_of(task)(initial, batch(0)), step_of(task)(initial, cached)
    assert numbers(rows_a) == pytest.approx(numbers(rows_b), rel=1e-5)
    assert_trees(moments(a), moments(b), rtol=1e-4, atol=1e-7)


def test_texts_are_dropped_at_their_rate_and_not_before_their_time(task, initial):
    """On one picture, over and over, the loss of a step says how many of its texts were dropped."""
    data = jax.tree.map(lambda x: x[:1].repeat(BATCH, 0), batch(0))
    loss = lambda step, data: float(step_of(task)(initial.replace(step=jnp.int32(step)), data)[1]["loss"][0]) / BATCH
    told = loss(0, data)
    null = loss(0, data | {"text": jnp.zeros_like(data["text"]).at[:, 0].set(NULL)})
    assert abs(null - told) > 1e-3
    dropped = [BATCH * (loss(step, data) - told) / (null - told) for step in range(0, 60)]
    np.testing.assert_allclose(dropped[:2], 0, atol=0.05)
    np.testing.assert_allclose(dropped, np.round(dropped), atol=0.05)
    share = sum(dropped[2:]) / (58 * BATCH)
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / (58 * BATCH)) ** 0.5
    assert len(set(np.round(dropped[2:]))) > 3, "each step drops others"


def test_dropout_is_of_the_step(dropping, initial):
    """Two steps differ, one made twice does not, and neither has the loss without dropout; the same where texts are dropped."""
    task, _ = dropping
    loss = lambda step, root=ROOT: float(step_of(task)(initial.replace(step=jnp.int32(step)), batch(0), root)[1]["loss"][0]) / BATCH
    first, again, other, seed = loss(0), loss(0), loss(1), loss(0, jax.random.key(1))
    assert first == again and len({first, other, seed}) == 3


def test_random_tokens_are_read_but_never_predicted(dropping, initial):
    """A quarter of the tokens, others in each step; the loss is of the true ones under what was read."""
    task, (_, rows) = dropping
    ids = jnp.asarray(np.random.default_rng(0).integers(0, CODES, (1000, LENGTH)), jnp.int32)
    reads = [np.asarray(quick(task._read)(ids, ROOT, jnp.int32(step))) for step in (0, 1)]
    for read in reads:
        changed = read != ids
        assert abs(changed.mean() - 0.25 * (1 - 1 / CODES)) < 4 * (0.25 * 0.75 / ids.size) ** 0.5
        counts = np.bincount(read[changed], minlength=CODES)
        assert len(counts) == CODES and counts.min() > 0.5 * counts.mean() and counts.max() < 1.5 * counts.mean()
    assert 0.8 * 0.25**2 < ((reads[0] != ids) & (reads[1] != ids)).mean() < 1.2 * 0.25**2

    @quick
    def loss(params, frozen, data):
        ids = task.predict_fns()["encode"](initial, frozen, data["image"] / 255).ids[..., 0]
        read, key = task._read(ids, ROOT, jnp.int32(0)), stream(ROOT, "dropout", 0)
        return task.model.apply({"params": params}, ids, data["text"], None, True, read, rngs={"dropout": jax.random.fold_in(key, 0)}).mean()

    assert float(loss(initial.params["generator"], task.frozen, batch(0))) == pytest.approx(rows[0]["loss"], rel=1e-5)


def test_the_average_follows_the_weights(task, initial):
    new, _ = step_of(task)(initial, batch(0))
    mix = jax.tree.map(lambda a, p: 0.9 * a + 0.1 * p, initial.ema, new.params)
    assert_trees(new.ema, mix, rtol=1e-5, atol=1e-7)
    assert equal(new.best("generator"), new.ema["generator"]) and not equal(new.ema, new.params)


def test_one_batch_is_learned_by_heart(make):
    """Every token of sixteen pictures from their captions: under a tenth of a nat."""
    task = make(drop="none", ema="none", model__width=64, model__mlp=256, optim__learning_rate=5e-3, optim__schedule="constant")
    state = fresh(task)
    ids = quick(task.predict_fns()["encode"])(state, task.frozen, batch(0)["image"] / 255).ids

    def step(state, _):
        state, metrics = task.train_step(state, {}, {"tokens": ids, "text": batch(0)["text"]}, ROOT)
        return state, metrics["loss"][0] / BATCH

    losses = quick(lambda state: jax.lax.scan(step, state, length=150)[1])(state)
    assert losses[0] > 2 and losses[-1] < 0.1, losses


# ---- the same on every mesh, and in parts ----


@pytest.mark.parametrize("sizes", OF_EIGHT, ids=str)
def test_every_mesh_trains_the_same(dropping, initial, straight, sizes):
    """With dropout and random tokens, which do not depend on who draws which part of them."""
    task, (state, rows) = dropping
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))))
    found, found_rows = run(task, initial, mesh)
    assert_rows(found_rows, rows, 2e-5)
    assert_trees(moments(found), moments(state), rtol=1e-2, atol=1e-5)
    assert abs(rows[0]["loss"] - straight[1][0]["loss"]) > 1e-4


def test_a_state_made_on_a_mesh_is_the_one_made_on_one_device(task, initial):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        state = quick(task.init, out_shardings=task.shardings(mesh))(ROOT)
    assert_trees(state, initial, rtol=1e-5, atol=1e-6)
    mu = moments(state)["backbone"]["blocks"]
    local = lambda x: x.addressable_shards[0].data.shape
    # Embedded over fsdp, heads and hidden widths over tensor.
    assert local(mu["attention"]["qkv"]) == (2, 8, 3, 2, 4) and local(mu["cross_attention"]["out"]) == (2, 2, 4, 8)
    assert local(mu["mlp_in"]["w"]) == (2, 8, 16) and local(state.ema["generator"]["backbone"]["blocks"]["mlp_out"]["w"]) == (2, 16, 8)


def test_a_batch_in_parts_is_the_batch(make, initial, straight):
    state, rows = run(make(accumulate=4), initial)
    assert_rows(rows, straight[1], 2e-5)
    assert_trees(moments(state), moments(straight[0]), rtol=1e-2, atol=1e-5)


PAPERS = [p.stem for p in sorted(CONFIGS.glob("*.py")) if p.stem.startswith(("parti_", "vim_")) and not p.stem.endswith(("shapes", "emoji", "cifar10"))]


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_sizes_shard_on_every_mesh_of_eight(name, monkeypatch, tmp_path):
    """No more than 2% of the bytes stay whole (abstractly: nothing is allocated)."""
    tree = configs.load(str(CONFIGS / f"{name}.py")).to_dict()
    first = runs.resolve(configs.load(str(CONFIGS / "vitvq_small_imagenet256.py")))
    stage = types.SimpleNamespace(config=first.model, params={}, fingerprint="0", path="there")
    monkeypatch.setattr(generator_task, "open_tokenizer", lambda path: stage)
    monkeypatch.setattr(SentencePiece, "open", lambda self: types.SimpleNamespace(size=16000, length=self.length, fingerprint="0"))
    config = runs.resolve(tree | {"evals": {}})
    info = dataclasses.replace(SOURCE.info, class_names=tuple(map(str, range(1000))))
    task = GeneratorTask(config, TOTAL, lambda d: d.steps(256, 1_281_167, TOTAL), jnp.bfloat16, info)
    state = jax.eval_shape(task.init, ROOT)
    for fsdp, tensor in ((8, 1), (2, 2), (4, 2)):
        mesh = make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor))
        layout = task.shardings(mesh)
        CHECK(mesh, state.params, layout.params)
        held = [np.prod(s.shard_shape(x.shape)) for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True)]
        whole = sum(x.size for x in jax.tree.leaves(state))
        # Tables are split over fsdp alone.
        tables = sum(x.size for x in jax.tree.leaves(state)) - 2 * task.config.model.core_params()
        assert sum(held) < 1.02 * whole / (fsdp * tensor) + tables / fsdp + 0.01 * whole


# ---- other optimizers and conditions ----


def test_adafactor_int8_trains(make):
    """Parti's optimizer: its first moments are int8, laid out with the parameters, and the loss falls."""
    task = make(optim__name="adafactor", optim__moment="int8", optim__min_dim=8, optim__b2=0.96, optim__learning_rate=1e-2, ema="none")
    state, losses = fresh(task), []
    layout = task.shardings(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    int8 = [(x, y) for x, y in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(layout.opt_state), strict=True) if x.dtype == jnp.int8]
    assert sum(x.size for x, _ in int8) == sum(x.size for x in jax.tree.leaves(state.params))
    assert {y.shard_shape(x.shape) for x, y in int8} >= {(2, 8, 3, 2, 4), (2, 8, 16)}
    for _ in range(6):
        state, metrics = step_of(task)(state.replace(step=jnp.int32(0)), batch(0))
        losses.append(numbers(metrics)["loss"])
    assert np.all(np.diff(losses) < 0), losses


def test_classes_train_too(make):
    task = make(model__condition__name="class", data__text="none", model__conv_kernel="none", drop__start="0 steps")
    assert task.text is None and list(task.identity) == ["tokenizer"] and task.guided
    state = fresh(task)
    table = lambda state: np.asarray(state.params["generator"]["conditioner"]["table"])
    assert table(state).shape == (len(SOURCE.info.class_names) + 1, 16)
    new, metrics = step_of(task)(state, batch(0))
    mu = np.abs(moments(new)["conditioner"]["table"]).max(1) > 0
    assert mu[-1] and set(np.flatnonzero(mu[:-1])) <= set(np.asarray(batch(0)["label"]).tolist())
    assert numbers(metrics)["nonfinite_share"] == 0


def test_nothing_to_be_told_trains_too(make):
    task = make(model__condition__name="none", data__text="none", drop="none", ema="none", model__depth=1)
    assert not task.guided
    state, metrics = step_of(task)(fresh(task), batch(0))
    assert numbers(metrics)["nonfinite_share"] == 0 and not state.ema


# ---- what is not finite ----


def test_a_bad_step_changes_nothing_but_the_count(task, initial):
    good, _ = step_of(task)(initial, batch(0))
    head = good.params["generator"]["head"]
    for bad in (jnp.nan, jnp.inf):
        broken = good.replace(params={"generator": good.params["generator"] | {"head": head.at[3, 4].set(bad)}})
        state, metrics = step_of(task)(broken, batch(1))
        for part in ("params", "opt_state", "ema"):
            assert equal(getattr(state, part), getattr(broken, part)), part
        assert int(state.step) == 2
        assert (int(state.extra["nonfinite"]["total"]), int(state.extra["nonfinite"]["streak"])) == (1, 1)
        share, weight = metrics.pop("nonfinite_share")
        assert share == weight == 1
        assert all(np.isfinite(s) and w == 0 for s, w in metrics.values())
    state, _ = step_of(task)(state, batch(1))
    assert (int(state.extra["nonfinite"]["total"]), int(state.extra["nonfinite"]["streak"])) == (2, 2)
    state, metrics = step_of(task)(state.replace(params=good.params), batch(2))
    assert (int(state.extra["nonfinite"]["total"]), int(state.extra["nonfinite"]["streak"])) == (2, 0)
    assert metrics["nonfinite_share"][0] == 0 and not equal(state.params, good.params)


# ---- what others may ask ----


def test_what_evaluators_and_samplers_may_ask(task, initial):
    fns, frozen, images = task.predict_fns(), task.frozen, batch(0)["image"] / 255
    assert set(fns) == {"encode", "decode", "reconstruct", "nll", "sample", "complete", "features"}
    call = lambda name, *args: quick(fns[name])(initial, frozen, *args)
    ids = call("encode", images).ids
    first = quick(lambda params, x: TOKENIZER_MODEL.make().apply({"params": params}, x, method="encode").ids)
    np.testing.assert_array_equal(ids, first(frozen["tokenizer"], images))
    pictures = call("decode", ids[..., 0])
    assert pictures.shape == images.shape
    np.testing.assert_allclose(call("reconstruct", images), pictures, atol=1e-5)
    nll = call("nll", ids[..., 0], batch(0)["text"])
    assert nll.shape == (BATCH, LENGTH)
    assert float(nll.mean()) == pytest.approx(numbers(step_of(task)(initial, batch(0))[1])["loss"], rel=1e-4)
    seeds, settings = jnp.arange(BATCH, dtype=jnp.uint32), knobs(LENGTH, guidance=2.0)
    drawn = jax.eval_shape(lambda *args: fns["sample"](*args).tokens.ids, initial, frozen, batch(0)["text"], seeds, settings)
    assert drawn.shape == (BATCH, LENGTH, 1) and task.spec == TOKENIZER_MODEL.spec
    keep = jnp.broadcast_to(jnp.arange(LENGTH) < 8, (BATCH, LENGTH))
    completed = call("complete", batch(0)["text"], seeds, settings, ids[..., 0], keep)
    np.testing.assert_array_equal(completed.tokens.ids[:, :8], ids[:, :8])
    features = call("features", images)
    assert {name: x.shape for name, x in features.items()} == {"blocks": (2, BATCH, 16), "latents": (BATCH, 4), "quantized": (BATCH, 4)}
    blocks = quick(lambda params: task.model.apply({"params": params}, ids[..., 0], method="features"))
    np.testing.assert_allclose(features["blocks"], blocks(initial.best("generator")), atol=1e-5)
    # They look at the average where there is one.
    other = initial.replace(params=jax.tree.map(lambda p: p * 0, initial.params))
    np.testing.assert_array_equal(quick(fns["nll"])(other, frozen, ids[..., 0], batch(0)["text"]), nll)


def test_rates_notes_and_flops(task, make):
    assert task.rates(0) == pytest.approx({"lr": 1e-3}) and task.rates(TOTAL) == pytest.approx({"lr": 2e-5})
    assert any("4x4 tokens of 32 codes, 8 px" in note for note in task.notes())
    model = 3 * task.config.model.flops(task.spec, 24)
    assert task.flops_per_example() == model + TOKENIZER_MODEL.encode_flops()
    cached = dataclasses.replace(task.config, data=dataclasses.replace(task.config.data, tokens="somewhere"))
    assert GeneratorTask(cached, TOTAL, lambda d: 1, jnp.float32, SOURCE.info).flops_per_example() == model
    assert task.image_size == 8 and task.text.length == 24 and task.inference_networks == ("generator",)


# ---- what a checkpoint stands on ----


def test_identity_changes_with_what_the_tokens_and_the_text_mean(task, make, tmp_path):
    assert task.identity == {"tokenizer": task.tokenizer.fingerprint, "vocabulary": task.text.fingerprint}
    other = export(tmp_path / "other", seed=1)
    assert make(tokenizer=other).identity["tokenizer"] != task.identity["tokenizer"]
    assert make(data__text__length=25).identity["vocabulary"] != task.identity["vocabulary"]
    again = export(tmp_path / "again")
    assert make(tokenizer=again).identity == task.identity


def test_a_workdir_holds_what_its_checkpoints_need(make, tmp_path):
    vocabulary = tmp_path / "words.model"
    train_vocabulary([SOURCE[i]["caption"] for i in range(64)], vocabulary, size=290)
    trained = pathlib.Path(export(tmp_path / "tokenizer"))
    task = make(tokenizer=trained, data__text__name="sentencepiece", data__text__vocabulary=vocabulary)
    workdir = tmp_path / "run"
    workdir.mkdir()
    assert task.config.within(workdir) == task.config
    task.write_companions(workdir)
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    task.write_companions(workdir)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}, "written once"
    inside = task.config.within(workdir)
    assert (inside.tokenizer, inside.data.text.vocabulary) == (str(workdir / TOKENIZER), str(workdir / VOCABULARY))
    vocabulary.unlink()
    for path in trained.iterdir():
        path.unlink()
    opened = GeneratorTask(inside, TOTAL, lambda d: 1, jnp.float32, SOURCE.info)
    assert opened.identity == task.identity and opened.text.length == 24
    assert equal(open_tokenizer(workdir / TOKENIZER).params, task.tokenizer.params)


# ---- refusals ----


def test_what_data_lacks_is_said(make):
    without = dataclasses.replace(SOURCE.info, class_names=None)
    with pytest.raises(ConfigError, match="has no classes; use data that has them, or condition 'none'"):
        make(info=without, model__condition__name="class", data__text="none")


@pytest.mark.parametrize("changes, words", [
    (dict(data__text="none"), "model.condition is 'text', so data.text must say how"),
    (dict(model__condition__name="class"), "data.text is set, but model.condition is 'class' and reads no text"),
    (dict(model__condition__name="none", data__text="none"), "drop is set, but model.condition is 'none'"),
    (dict(replace=1.0), "replace is 1.0, but a share of tokens is at least 0 and below 1"),
    (dict(drop="none", evals__samples__guidance=2.0), "evals.samples.guidance is 2, but without drop"),
    (dict(ema=1.0), "ema is 1.0, but a decay is between 0 and 1"),
    (dict(drop__rate=0), "config.drop: rate is 0.0, but must be between 0 and 1; to drop nothing, set drop=none"),
    (dict(drop__rate=1), "rate is 1.0"),
    (dict(tokenizer="no/such/run"), "the tokenizer 'no/such/run' does not exist"),
    (dict(tokenizer=str(CONFIGS)), "neither checkpoints nor"),
    (dict(model__attention="cudnn"), "attention backend 'cudnn' cannot be used here"),
    (dict(model__heads=3), "config.model: width 16 does not divide into 3 heads"),
    (dict(model__dense_layers="2"), "config.model: dense_layers names layer 2"),
    (dict(batch_size=16, accumulate=3), "not a multiple of accumulate"),
    (dict(data__text__length=1), "length is 1"),
])  # fmt: skip
def test_impossible_settings_are_refused_with_the_config(make, changes, words):
    with pytest.raises(configs.UserError, match=words):
        make(**changes)


def test_a_generator_is_no_tokenizer(make, tmp_path):
    trained = pathlib.Path(export(tmp_path / "w"))
    file = trained / "config.json"
    file.write_text(file.read_text().replace('"task": "tokenizer"', '"task": "generator"'))
    with pytest.raises(ConfigError, match="is a run of the task 'generator', not a trained tokenizer"):
        make(tokenizer=trained)


def test_configs_are_frozen(task):
    assert isinstance(task.config, GeneratorRun) and isinstance(task.config.drop, DropConfig)
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.config.seed = 1
