"""Pipelines: the schedule against a literal one, the same numbers with and without stages, what a step holds and sends, refusals."""

import functools
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from quick import quick

from vimlab import config as configs
from vimlab import run as runs
from vimlab.checkpoint import Checkpointer
from vimlab.config import ConfigError
from vimlab.data.sources import open_source
from vimlab.nn.masks import Mask, causal
from vimlab.nn.transformer import Stack
from vimlab.parallel import rules
from vimlab.parallel.mesh import MeshConfig, check_batch, make_mesh
from vimlab.parallel.rules import ShardingError
from vimlab.parallel.schedule import Pipeline, bubble_fraction, check_pipelines
from vimlab.tasks import generator_task
from vimlab.tasks.generator_task import GeneratorTask
from vimlab.tasks.tokenizer_task import TokenizerTask
from vimlab.tokenizers.quantizers import VectorQuantizerConfig
from vimlab.tokenizers.sizes import ViTSize
from vimlab.tokenizers.tokenizer import TokenizerConfig

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
ROOT = jax.random.key(0)


# ---- the schedule ----


def test_the_bubble_is_the_papers():
    """16 stages and 32 microbatches: 32% in one round, 10% in four."""
    assert bubble_fraction(16, 32) == pytest.approx(0.32, abs=0.005)
    assert bubble_fraction(16, 32, 4) == pytest.approx(0.10, abs=0.006)
    assert bubble_fraction(1, 4) == 0


@pytest.mark.parametrize("sizes", [(8, 2, 4, 2), (12, 3, 3, 1), (16, 4, 12, 2)], ids=str)
def test_the_schedule_is_a_literal_one(sizes):
    """Workers in a ring, one item in each's hands: an item goes on to the next worker, and round again until its rounds are done."""
    pipeline = Pipeline(*sizes)
    waiting, hands, done, found = list(range(pipeline.microbatches)), [None] * pipeline.stages, [], []
    while len(done) < pipeline.microbatches:
        back = hands[-1]
        hands = [None] + hands[:-1]
        if back and back[1] + 1 < pipeline.rounds:
            hands[0] = (back[0], back[1] + 1)
        elif back:
            done.append(back[0])
        if hands[0] is None and waiting:
            hands[0] = (waiting.pop(0), 0)
        found.append(list(hands))
    found = found[:-1]  # In the last turn the last item is only handed in.
    assert done == list(range(pipeline.microbatches)) and len(found) == pipeline.iterations
    busy = 0
    for iteration, hands in enumerate(found):
        for stage, item in enumerate(hands):
            microbatch, turn = pipeline.visit(stage, iteration)
            assert item == ((microbatch, turn) if 0 <= microbatch < pipeline.microbatches else None)
            busy += item is not None
    assert 1 - busy / (len(found) * pipeline.stages) == pytest.approx(pipeline.bubble)


def test_layers_are_placed_in_circles():
    paper = Pipeline(64, 16, 32, 4)
    assert paper.layers(3) == (3, 19, 35, 51)
    assert Pipeline(8, 2, 2).layers(1) == (4, 5, 6, 7) and Pipeline(8, 2, 2, 2).layers(0) == (0, 1, 4, 5)
    assert sorted(n for s in range(16) for n in paper.layers(s)) == list(range(64))


# ---- the same numbers ----

ROWS, LENGTH, WIDTH, MEMORY = 8, 6, 16, 5


def stack_of(mesh: MeshConfig, **changes):
    """A decoder's stack with two kinds of masks, its inputs and random parameters."""
    masks = causal(LENGTH), Mask((0,) * LENGTH, (False,) * LENGTH, (0, 2))
    fields = dict(depth=4, heads=2, mlp=32, cross=True, masks=masks, kinds=(0, 1, 1, 0), remat="full", rounds=mesh.rounds, microbatches=mesh.microbatches)
    stack, rng = Stack(**fields | changes), np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x, memory, lengths = draw(ROWS, LENGTH, WIDTH), draw(ROWS, MEMORY, WIDTH), jnp.asarray(1 + np.arange(ROWS) % MEMORY, jnp.int32)
    boxed = jax.eval_shape(stack.init, ROOT, x, memory, lengths)["params"]
    params = jax.tree.map(lambda p: 0.3 * draw(*p.shape), jax.eval_shape(nn.unbox, boxed))
    target = draw(ROWS, LENGTH, WIDTH)

    def loss(params, x, memory, key=ROOT):
        y = stack.apply({"params": params}, x, memory, lengths, True, rngs={"dropout": key})
        return (y * target).sum()

    return loss, (params, x, memory), rules.logical_axes(boxed)


def placed(mesh, args, axes):
    """Arguments of a loss, and their shardings."""
    rows = rules.batch_sharding(mesh)
    layout = rules.param_shardings(mesh, args[0], axes), rows, rows
    return jax.device_put(args, layout), layout


def near(found, expected, tolerance=2e-5):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(jax.device_get(found)), jax.tree.leaves(jax.device_get(expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), 1e-3), err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def unstaged():
    loss, args, _ = stack_of(MeshConfig())
    return quick(jax.value_and_grad(loss, (0, 1, 2)))(*args)


@pytest.mark.parametrize(
    "config",
    [MeshConfig(stage=4, data=2, microbatches=4), MeshConfig(stage=2, data=1, fsdp=2, tensor=2, microbatches=4, rounds=2)],
    ids=["four stages", "all axes, two rounds"],
)
def test_stages_change_no_value_and_no_gradient(unstaged, config):
    mesh = make_mesh(config)
    loss, args, axes = stack_of(config)
    with jax.set_mesh(mesh):
        args, layout = placed(mesh, args, axes)
        step = quick(jax.value_and_grad(loss, (0, 1, 2)), out_shardings=(None, layout)).lower(*args).compile()
        found = step(*args)
    near(found, unstaged)
    matrices = [x for x, names in zip(jax.tree.leaves(args[0]), jax.tree.structure(args[0]).flatten_up_to(axes), strict=True) if "embed" in names]
    for x in matrices:
        tensor = mesh.shape["tensor"] if x.ndim > 2 else 1  # The perceptron's last bias has no hidden width.
        assert x.addressable_shards[0].data.size * mesh.shape["stage"] * mesh.shape["fsdp"] * tensor == x.size
    text = step.as_text()
    assert "collective-permute" in text and "all-to-all" in text
    # No device ever holds all layers of a matrix.
    assert not re.search(r"f32\[4,16,32\]|f32\[4,16,3,2,8\]", text)


def test_dropout_in_a_pipeline_is_of_its_key_and_the_same_in_both_passes():
    config = MeshConfig(stage=2, data=1, microbatches=2)
    mesh = make_mesh(config, jax.devices()[:2])
    loss, args, axes = stack_of(config, dropout=0.3, kinds=(), masks=(causal(LENGTH),), depth=2, cross=False)
    host = jax.device_get(args)
    along = jax.tree.map(lambda x: np.random.default_rng(1).normal(size=x.shape).astype(np.float32), host)
    moved = lambda e: jax.device_put(jax.tree.map(lambda x, d: x + np.float32(e) * d, host, along), layout)
    with jax.set_mesh(mesh):
        args, layout = placed(mesh, args, axes)
        step = quick(jax.value_and_grad(lambda args, key: loss(*args, key)), out_shardings=(None, layout))
        other_key = jax.random.key(1)
        found = [step(args, ROOT), step(args, ROOT), step(args, other_key), step(moved(1e-3), ROOT), step(moved(-1e-3), ROOT)]
    (first, slopes), *others = jax.device_get(found)
    again, other, ahead, behind = (value for value, _ in others)
    assert first == again and abs(first - other) > 1e-2
    slope = sum(float((g * d).sum()) for g, d in zip(jax.tree.leaves(slopes), jax.tree.leaves(along), strict=True))
    assert (ahead - behind) / 2e-3 == pytest.approx(slope, rel=2e-2)


# ---- a whole training step ----

TOWER = ViTSize(depth=1, width=16, heads=2, mlp=32)
TOKENIZER = TokenizerConfig(image_size=8, patch=2, encoder=TOWER, decoder=TOWER, output="rgb", quantizer=VectorQuantizerConfig(codes=32, dim=4))
SHRUNK = {
    "model.depth": 4, "model.width": 16, "model.heads": 4, "model.mlp": 32, "model.condition.depth": 2, "model.conv_kernel": 3,
    "model.remat": "full", "data.text.length": 12, "batch_size": 16, "optim.learning_rate": 1e-3, "optim.warmup": "0 steps", "optim.clip": "none",
}  # fmt: skip


@functools.cache
def tokenizer_weights():
    return jax.device_get(quick(lambda: nn.unbox(TOKENIZER.make().init(ROOT, jnp.zeros((1, 8, 8, 3)))["params"]))())


def make_task(monkeypatch, **mesh) -> GeneratorTask:
    """The shapes config, shrunk, on a tokenizer with fresh weights."""
    stage1 = types.SimpleNamespace(config=TOKENIZER, params=tokenizer_weights(), fingerprint="0", path="there")
    monkeypatch.setattr(generator_task, "open_tokenizer", lambda path: stage1)
    monkeypatch.setattr(rules, "check_sharded", lambda *_: None)  # At width 16, norms are more than 2% of the bytes.
    overrides = SHRUNK | {f"mesh.{k}": v for k, v in mesh.items()}
    config = runs.resolve(configs.load(f"{CONFIGS / 'parti_shapes.py'}:smoke"), [(k, str(v)) for k, v in overrides.items()])
    return GeneratorTask(config, 100, lambda d: d.steps(16, None, 100), jnp.float32, open_source("shapes:train?size=16&count=64").info)


def test_a_training_step_with_stages_is_the_step_without(monkeypatch, tmp_path):
    """From pixels, with text: encoding, embedding and softmax on the stages' devices as data parallelism; then two steps' parameters.

    What was saved with stages goes on without them.
    """
    rng = np.random.default_rng(0)
    batch = {"image": jnp.asarray(rng.integers(0, 256, (16, 8, 8, 3)), jnp.uint8), "label": jnp.zeros(16, jnp.int32)}
    batch["text"] = jnp.asarray(np.where(np.arange(12) < 1 + np.arange(16)[:, None] % 12, rng.integers(3, 200, (16, 12)), 0), jnp.int32)

    def two(task, mesh=None):
        step = quick(task.train_step, out_shardings=(task.shardings(mesh), None) if mesh else None)
        state, losses = quick(task.init)(ROOT), []
        data = batch
        if mesh:
            state, data = jax.device_put(state, task.shardings(mesh)), jax.device_put(batch, rules.batch_sharding(mesh))
        for _ in range(2):
            state, metrics = step(state, task.frozen, data, ROOT)
            losses.append(float(metrics["loss"][0]))
        return losses, state, step

    task = make_task(monkeypatch)
    expected, state, step = two(task)
    config = dict(stage=2, data=2, fsdp=1, tensor=2, microbatches=4, rounds=2)
    mesh = make_mesh(MeshConfig(**config))
    with jax.set_mesh(mesh), Checkpointer(tmp_path) as checkpointer:
        found, staged, _ = two(make_task(monkeypatch, **config), mesh)
        checkpointer.save(2, staged, {}, wait=True)
    near(found, expected)
    near(jax.device_get(staged.params), jax.device_get(state.params), 2e-3)  # Adam divides by roots of tiny squares.
    assert expected[1] < expected[0]

    with Checkpointer(tmp_path) as checkpointer:
        alone = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        _, resumed, _ = checkpointer.restore(alone)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((jax.device_get(a) == jax.device_get(b)).all()), resumed, staged))
    # Their parameters differ as compared above, by Adam's roots of tiny squares.
    third = [float(step(s, task.frozen, batch, ROOT)[1]["loss"][0]) for s in (resumed, state)]
    assert third[0] == pytest.approx(third[1], rel=1e-3) and third[1] < expected[1]


# ---- refusals ----


def test_depths_that_stages_do_not_divide(monkeypatch):
    task = make_task(monkeypatch, stage=4, data=-1, microbatches=4)  # The text encoder has two layers.
    with pytest.raises(ShardingError, match="4 stages, which the text encoder of 2 layers passes in 1 rounds.* stage=2, rounds=1 would do"):
        task.shardings(make_mesh(MeshConfig(stage=4)))
    mesh = make_mesh(MeshConfig(stage=8))
    with pytest.raises(ShardingError, match="the decoder of 64 layers passes in 3 rounds.* stage=8, rounds=2 would do"):
        check_pipelines(mesh, {"text encoder": Pipeline(16, 8, 8), "decoder": Pipeline(64, 8, 8, 3)})
    check_pipelines(mesh, {"text encoder": Pipeline(16, 8, 8), "decoder": Pipeline(64, 8, 8, 4)})
    assert {n: (p.layers(1), p.microbatches) for n, p in make_task(monkeypatch, stage=2, rounds=2).pipelines(make_mesh(MeshConfig(stage=2))).items()} == {
        "text encoder": ((1,), 2), "decoder": ((1, 3), 2),
    }  # fmt: skip


def test_batches_that_microbatches_do_not_divide():
    mesh = make_mesh(MeshConfig(stage=2))
    check_batch(mesh, 16, microbatches=4)
    check_batch(mesh, 8)  # As many microbatches as stages.
    with pytest.raises(ShardingError, match="microbatches is 3, which the 2 stages do not divide; use a multiple of 2, such as 4"):
        check_batch(mesh, 16, microbatches=3)
    with pytest.raises(ShardingError, match="batch_size is 24 in 8 microbatches, which 4 data-parallel .* use a multiple of 32, or a mesh such as data=8"):
        check_batch(mesh, 24, microbatches=8)
    with pytest.raises(ShardingError, match="in 4 accumulated parts and in 2 microbatches"):
        check_batch(mesh, 16, accumulate=4)
    with pytest.raises(ConfigError, match="stage is 1; set stage"):
        MeshConfig(microbatches=4)
    with pytest.raises(ConfigError, match="at least 1"):
        MeshConfig(stage=2, rounds=0)


def test_a_tokenizer_has_no_stages():
    task = types.SimpleNamespace()
    with pytest.raises(ShardingError, match="a tokenizer is not trained in a pipeline; use a mesh such as data=4, fsdp=2"):
        TokenizerTask.shardings(task, make_mesh(MeshConfig(stage=2)))


def test_the_papers_20b_is_laid_out_as_the_paper_has_it():
    tree = configs.load(str(CONFIGS / "parti_20b.py")).to_dict()
    mesh = configs.resolve(MeshConfig, tree["mesh"])
    assert (mesh.stage, mesh.rounds, tree["model"]["depth"], tree["model"]["condition"]["depth"]) == (16, 4, 64, 16)
    assert Pipeline(64, 16, mesh.microbatches, mesh.rounds).bubble < 0.11
