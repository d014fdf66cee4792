"""The linear probe: its optimum against SciPy's, what may enter it, the evaluator on known features and on a real model."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from flax import linen as nn

from vimlab import config as configs
from vimlab import run as runs
from vimlab.config import ConfigError
from vimlab.data.base import SourceInfo
from vimlab.evals import evaluate, logistic
from vimlab.evals.probe import DECAYS, Probe, fit, predict
from vimlab.evals.report import write_report
from vimlab.pretrained import Pretrained
from vimlab.tokenizers.quantizers import VectorQuantizerConfig
from vimlab.tokenizers.sizes import ViTSize
from vimlab.tokenizers.tokenizer import TokenizerConfig

RNG = np.random.default_rng(0)


# ---- the classifier ----


def blobs(count, distance, classes=3, width=5):
    """Points around one centre for each class: f32[M,width], i32[M]."""
    labels = RNG.integers(0, classes, count).astype(np.int32)
    centres = distance * np.eye(width)[:classes]
    return (centres[labels] + RNG.normal(size=(count, width))).astype(np.float32), labels


@pytest.mark.parametrize("decay", [1e-1, 1e-3])
def test_the_optimum_is_that_of_the_stated_objective(decay):
    """Against SciPy's BFGS in float64, its gradients by differences; examples of weight 0 count for nothing."""
    x, labels = blobs(60, 1.0, width=4)
    weights = np.r_[np.ones(40), np.zeros(20)].astype(np.float32)

    def value(flat):
        w, b = flat[:12].reshape(4, 3), flat[12:]
        logits = np.float64(x[:40]) @ w + b
        return -scipy.special.log_softmax(logits, 1)[np.arange(40), labels[:40]].mean() + decay / 2 * (w**2).sum()

    best = scipy.optimize.minimize(value, np.zeros(15), tol=1e-9)
    params = logistic.fit(jnp.asarray(x), jnp.asarray(labels), jnp.asarray(weights), decay, 3)
    reached = float(logistic.objective(params, jnp.asarray(x), jnp.asarray(labels), jnp.asarray(weights), decay))
    assert reached == pytest.approx(best.fun, abs=1e-5)
    np.testing.assert_allclose(params["w"], best.x[:12].reshape(4, 3), atol=1e-3 if decay > 0.01 else 5e-3)
    assert reached == pytest.approx(value(np.r_[np.ravel(params["w"]), params["b"]]), abs=1e-6)


@pytest.fixture(scope="module")
def apart():
    """A separable problem: training and evaluation examples, and which of the former are held out."""
    return blobs(100, 30.0), blobs(80, 30.0), np.arange(100) % 10 == 3


def probe(train, test, held):
    """Accuracy on held-out and on other examples, and the weight decay."""
    fitted = fit(*train, held, 3, 6)
    return fitted.held_out, (predict([fitted], test[0][:, None])[:, 0] == test[1]).mean(), fitted.weight_decay


def test_a_separable_problem_is_solved(apart):
    assert probe(*apart)[:2] == (1, 1)


def test_layers_are_predicted_each_by_its_own(apart):
    (x, labels), (y, _), held = apart
    layers = [fit(x, labels, held, 3, 6), fit(-x, (labels + 1) % 3, held, 3, 6)]
    both = predict(layers, np.stack([y, -y], 1))
    np.testing.assert_array_equal(both[:, 1], (both[:, 0] + 1) % 3)


def test_scale_and_place_of_features_do_not_matter(apart):
    near, test, held = blobs(100, 1.0), blobs(80, 1.0), apart[2]
    expected = probe(near, test, held)
    assert 0.5 < expected[1] < 0.9 and expected[2] in DECAYS
    moved = lambda data: (np.c_[1000 * data[0] + 300, np.full(len(data[0]), 7)].astype(np.float32), data[1])
    assert probe(moved(near), moved(test), held) == pytest.approx(expected)


# ---- the evaluator ----

CLASSES = 4


def pictures(count, seed):
    """Grey pictures uint8[M,8,8,3] of random brightness, and their classes."""
    rng = np.random.default_rng(seed)
    return np.broadcast_to(rng.integers(0, 256, (count, 1, 1, 1)), (count, 8, 8, 3)).astype(np.uint8), rng.integers(0, CLASSES, count).astype(np.int32)


TRAIN, TEST = pictures(200, 1), pictures(90, 2)


def features(state, images):
    """Of the class that the fixture hides in the last pixel: nothing in block 1, all in block 2, half of it in block 3."""
    levels = np.asarray(images) * 255
    label, brightness = levels[:, -1, -1, 0].round().astype(int), levels[:, 0, 0, 0]
    eye = np.eye(CLASSES, dtype=np.float32)
    noise = np.stack([np.sin(brightness * k) for k in range(1, CLASSES + 1)], 1).astype(np.float32)
    return {"blocks": np.stack([noise, noise + 9 * eye[label], noise + 9 * eye[label // 2]]), "latents": 0.1 * noise + eye[label]}


def batches(data, size):
    images, labels = data[0].copy(), data[1]
    images[:, -1, -1, 0] = np.maximum(labels, 0)
    for start in range(0, len(labels), size):
        missing = size - len(labels[start : start + size])
        yield {
            "image": np.concatenate([images[start : start + size], np.zeros((missing, 8, 8, 3), np.uint8)]),
            "label": np.concatenate([labels[start : start + size], np.full(missing, 3, np.int32)]),
            "mask": (np.arange(size) < size - missing).astype(np.float32),
        }


def subject(size=32, train=TRAIN, test=TEST, **more):
    info = SourceInfo("pets, train", len(train[1]), None, False, "5eed")
    fields = dict(
        predict_fns={"features": features}, batches=lambda: batches(test, size), training=lambda count: (info, batches(train, size)), condition="class"
    )
    return made_up.subject([], {}, **fields | more)


@pytest.fixture(scope="module")
def found():
    return Probe().run(subject())


def test_the_block_is_chosen_that_knows_the_class(found):
    assert found.metrics["best_block"] == 2 and found.metrics["block_accuracy"] == found.metrics["latents_accuracy"] == 1
    blocks = found.arrays["blocks"]
    assert blocks[0]["accuracy"] < 0.45 and 0.3 < blocks[2]["accuracy"] < 0.75 and set(blocks[0]) == {"held_out", "accuracy", "weight_decay"}
    common = np.bincount(TRAIN[1]).argmax()
    assert found.metrics["chance_accuracy"] == (TEST[1] == common).mean()
    protocol = found.protocol
    assert (protocol["count"], protocol["train_count"], protocol["held_out"], protocol["train_fingerprint"]) == (90, 200, 20, "5eed")
    json.dumps(protocol)


def test_figures_do_not_depend_on_batches(found):
    assert Probe().run(subject(size=90)) == found


def test_pictures_without_a_class_do_not_count(found):
    unknown = np.full(7, -1, np.int32)
    more = lambda data: (np.concatenate([data[0], data[0][:7]]), np.concatenate([data[1], unknown]))
    again = Probe().run(subject(train=more(TRAIN), test=more(TEST)))
    assert again == found


def test_it_says_where_the_null_condition_was_never_trained(found):
    assert "not trained" not in found.protocol["features"]
    few = subject(guided=False, predict_fns={"features": lambda s, x: {"latents": features(s, x)["latents"]}})
    alone = Probe().run(few)
    assert "which it was not trained with" in alone.protocol["features"] and "block_accuracy" not in alone.metrics


def test_what_is_missing_is_said():
    unnamed = made_up.Listed([])
    unnamed.info = dataclasses.replace(unnamed.info, class_names=None)
    for changes, words in [
        (dict(source=unnamed), "'shapes:test' has none"),
        (dict(source=None), "'shapes:test' has none"),
        (dict(training=None), "training set, which is not at hand"),
        (dict(predict_fns={}), "cannot 'features'"),
        (dict(train=(TRAIN[0][:19], TRAIN[1][:19])), "found 19 pictures with a class in 'pets, train'"),
        (dict(test=(TEST[0][:9], np.full(9, -1, np.int32))), "no picture with a class in 'shapes:test'"),
    ]:
        with pytest.raises(ConfigError, match=words):
            Probe().run(subject(**changes))
    for wrong in (dict(count=19), dict(seed=-1)):
        with pytest.raises(ConfigError):
            Probe(**wrong)


def test_the_report_draws_the_curve_over_blocks(found, tmp_path):
    figures = evaluate({"probe": Probe()}, subject(), tmp_path)
    assert figures["eval/probe/block_accuracy"] == 1
    raw = write_report(tmp_path).read_text()
    assert "Block 2 of 3 does best" in raw and "Linear probe of the best block" in raw
    (plot,) = re.findall(r"<figure><h3>Accuracy of a linear probe, by block</h3>.*?</figure>", raw)
    assert plot.count("<polyline") == 5 and "chance" in plot and "latents" in plot


# ---- a real model ----

TOWER = ViTSize(depth=1, width=16, heads=2, mlp=32)
TOKENIZER = TokenizerConfig(image_size=32, patch=8, encoder=TOWER, decoder=TOWER, output="rgb", quantizer=VectorQuantizerConfig(codes=64, dim=8))


def test_end_to_end_on_a_shrunk_config(tmp_path):
    """From the shipped config to figures: features of pixels under evaluation's crop, examples spread over the training set."""
    init = lambda key: nn.unbox(TOKENIZER.make().init(key, jnp.zeros((1, 32, 32, 3)))["params"])
    params = jax.device_get(jax.jit(init)(jax.random.key(0)))
    Pretrained("t", {"config": {"task": "tokenizer", "model": configs.to_dict(TOKENIZER)}}, TOKENIZER, params).write(tmp_path / "tokenizer")
    overrides = [("data.train", "shapes:train?count=400"), ("data.eval", "shapes:test?count=60"), ("evals.probe.count", "160")]
    config = runs.resolve(configs.load(f"configs/vim_cifar10.py:smoke,tokenizer={tmp_path / 'tokenizer'}"), overrides)
    run = runs.Run(config, training=False)
    with jax.set_mesh(run.mesh):
        state = jax.jit(run.task.init, out_shardings=run.shardings)(run.root)
        subject = run.subject(state, 0)
        info, batches = subject.training(160)
        indices = np.concatenate([np.asarray(b["index"])[np.asarray(b["mask"]) > 0] for b in batches])
        evaluators = config.evals.named(["probe", "token_language"])
        figures = evaluate(evaluators, subject, tmp_path)
    assert info.size == len(indices) == 160 and info.name.endswith("160 spread evenly")
    assert subject.training(10_000)[0] == run.train_source.info
    probed = {name.rsplit("/")[-1]: v for name, v in figures.items() if "/probe/" in name}
    assert set(probed) == {"best_block", *(f"{k}_accuracy" for k in ("block", "latents", "quantized", "pixels", "chance"))}
    # Even features of weights that nobody trained tell more than chance of the shapes' colours.
    assert probed["pixels_accuracy"] > probed["chance_accuracy"] and 0 <= probed["block_accuracy"] <= 1
    assert figures["eval/token_language/position_entropy_mean"] > 0
    record = json.loads((tmp_path / "evals/probe_00000000.json").read_text())
    assert len(record["arrays"]["blocks"]) == 2 and record["protocol"]["train_count"] == 160
