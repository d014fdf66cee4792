"""Drawn sets against reference sets: figures under their own names, whatever the batch; interruptions; protocols that hold."""

import dataclasses
import json

import jax.numpy as jnp
import made_up
import numpy as np
import pytest

from vimlab import pictures
from vimlab.config import ConfigError, UserError, resolve
from vimlab.evals import EvalsConfig, evaluate, neighbours, protocols, shards
from vimlab.evals.archives import write_images
from vimlab.evals.compared import compare, terms_of
from vimlab.evals.distribution import Fid, InceptionScore, Rfid
from vimlab.evals.extractors import Random, Trained
from vimlab.evals.features import Features, Pass
from vimlab.evals.frechet import Moments, frechet_distance
from vimlab.evals.kernel_distance import kernel_distance
from vimlab.evals.random_features import apply as random_features
from vimlab.evals.random_features import weights as random_weights
from vimlab.evals.reference import Reference
from vimlab.evals.shards import Shards
from vimlab.evals.statistics import StatisticsError

RECORDS = made_up.shapes(24)
IMAGES = np.stack([r["image"] for r in RECORDS])
PROTOCOL = made_up.PROTOCOL | {"crop": {"name": "resize", "flip": False}}
RANDOM = Random()
NAME = "random_conv_v1"


def subject(artist=None, folder=None, **more):
    functions = (artist or made_up.Painter(IMAGES, lambda told, seed, guidance: seed % 24)).functions()
    fields = dict(protocol=PROTOCOL, state={"w": np.float32([1.0])}, folder=folder)
    return made_up.subject(RECORDS, functions, **fields | more)


def features_of(images):
    return np.asarray(random_features(random_weights(), jnp.float32(images) / 255)["features"])


def distance(a, b):
    found = []
    for images in (a, b):
        moments = Moments(512)
        moments.add(features_of(images))
        found.append(moments)
    return frechet_distance(*found)


# ---- figures ----


def test_a_set_drawn_as_the_reference_is_the_reference(tmp_path):
    result = Fid(extractor=RANDOM, memorised=None).run(subject(folder=tmp_path))
    assert result.metrics[f"frechet_{NAME}"] == pytest.approx(0, abs=1e-6)
    assert result.metrics[f"precision_{NAME}"] == result.metrics[f"recall_{NAME}"] == result.metrics[f"coverage_{NAME}"] == 1
    assert result.protocol["count"] == 24 and result.protocol["plan"] == "set" and result.protocol["reference"]["fingerprint"] == "c0ffee"


def test_the_distance_is_that_of_the_pictures_drawn_for_each_seed_and_grows_with_noise(tmp_path):
    noise = np.random.default_rng(0)
    found = []
    for strength in (0, 20, 80):
        drawn = np.uint8(np.clip(IMAGES + strength * noise.standard_normal(IMAGES.shape), 0, 255))
        artist = made_up.Painter(drawn, lambda told, seed, guidance: (seed * 5) % 24)
        metrics = Fid(extractor=RANDOM, memorised=None, count=20, seed=3).run(subject(artist, tmp_path / str(strength))).metrics
        expected = distance(drawn[[(seed * 5) % 24 for seed in range(3, 23)]], IMAGES)
        assert metrics[f"frechet_{NAME}"] == pytest.approx(expected, rel=1e-5)
        found.append(metrics)
    for name, sign in (("frechet", 1), ("kid_subsets_of_10", 1), ("precision", -1)):
        assert np.all(sign * np.diff([m[f"{name}_{NAME}"] for m in found]) >= 0), name
    assert found[2][f"frechet_{NAME}"] > 2 * found[0][f"frechet_{NAME}"]


def test_pictures_unlike_any_real_one_are_shown(tmp_path):
    drawn = np.concatenate([IMAGES, 255 - IMAGES[:3]])
    artist = made_up.Painter(drawn, lambda told, seed, guidance: {4: 24, 11: 25, 17: 26}.get(seed, seed))
    result = Fid(extractor=RANDOM, memorised=None).run(subject(artist, tmp_path))
    unlike = [u["picture"] for u in result.arrays["unlike"]]
    assert set(unlike[:3]) == {4, 11, 17} and len(unlike) == 8
    every = np.linalg.norm(features_of(drawn[24:])[:, None].astype(np.float64) - features_of(IMAGES), axis=-1).min(1)
    assert [u["distance"] for u in result.arrays["unlike"][:3]] == pytest.approx(sorted(every, reverse=True), rel=1e-4)
    labels = [f"picture {u['picture']}, {u['distance']:.3g} away" for u in result.arrays["unlike"]]
    images = [drawn[{4: 24, 11: 25, 17: 26}.get(place, place)] for place in unlike]
    np.testing.assert_array_equal(result.pictures["drawn_unlike"], pictures.captioned(np.stack(images), labels, columns=8))


def test_a_kernel_distance_of_small_sets_says_so(tmp_path):
    """1,000 of each are the published subsets; of fewer there are none."""
    rows, extractor, found = np.random.default_rng(0).standard_normal((1002, 3), np.float32), RANDOM.open(), {}
    make = lambda first, last: {"features": 1.1 * rows[first:last], "real": np.ones(last - first, bool)}
    for count in (1002, 40):
        reference = Reference({}, rows[:count], {"count": count})
        drawn = Features(Shards(tmp_path, {}, count, make), extractor)
        found |= compare(drawn, reference, extractor)
    names = ("kid", "kid_std", "kid_subsets_of_20", "kid_std_subsets_of_20")
    assert {name for name in found if "kid" in name} == {f"{name}_{NAME}" for name in names}
    assert found[f"kid_{NAME}"] == kernel_distance(np.float32(1.1 * rows), rows, subset_size=1000)[0]
    assert "half of the smaller set, which has no subsets of the published 1,000" in terms_of(drawn, reference, extractor)["kid"]


def test_dropped_classes_cost_recall(tmp_path):
    artist = made_up.Painter(IMAGES, lambda told, seed, guidance: seed % 3)
    metrics = Fid(extractor=RANDOM, memorised=None).run(subject(artist, tmp_path)).metrics
    assert metrics[f"recall_{NAME}"] < 0.5 < metrics[f"precision_{NAME}"]


def test_reconstructions_are_compared_with_what_they_are_of(tmp_path):
    functions = made_up.Painter(IMAGES, None).functions()
    assert Rfid(extractor=RANDOM).run(subject(folder=tmp_path)).metrics[f"rfrechet_{NAME}"] == pytest.approx(0, abs=1e-6)
    half = functions | {"reconstruct": lambda state, images: np.asarray(images) * 0.5013}
    model = made_up.subject(RECORDS, half, protocol=PROTOCOL, state={"w": np.float32([2.0])}, folder=tmp_path)
    expected = distance(np.round(np.float32(IMAGES) * np.float32(0.5013)), IMAGES)
    assert Rfid(extractor=RANDOM).run(model).metrics[f"rfrechet_{NAME}"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("evaluator", [Fid(extractor=RANDOM, memorised=None, count=19), Rfid(extractor=RANDOM)], ids=lambda e: e.NAME)
def test_batches_and_interruptions_change_nothing(evaluator, tmp_path, monkeypatch):
    whole = evaluator.run(subject(folder=tmp_path / "whole")).metrics
    monkeypatch.setattr(shards, "SIZE", 5)
    for size in (1, 8, 24):
        folder, made = tmp_path / f"{size}", []
        keep, write = Shards._write, []

        def stop(self, index, arrays, keep=keep, made=made):
            if len(made) == 6:
                raise KeyboardInterrupt
            made.append(index)
            keep(self, index, arrays)

        monkeypatch.setattr(Shards, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluator.run(subject(folder=folder, size=size))
        monkeypatch.setattr(Shards, "_write", lambda self, index, arrays, keep=keep, write=write: (write.append(index), keep(self, index, arrays)))
        found = evaluator.run(subject(folder=folder, size=25 - size)).metrics
        assert len(write) + 6 == (9 if evaluator.NAME == "fid" else 10), "only what was missing is made"
        for name, value in whole.items():
            assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
        monkeypatch.setattr(Shards, "_write", keep)


def test_classes_are_told_as_planned(tmp_path):
    told = []
    artist = made_up.Painter(IMAGES, lambda label, seed, guidance: told.append(label) or seed % 24)
    model = subject(artist, tmp_path, condition="class")
    Fid(extractor=RANDOM, memorised=None, count=50).run(model)
    assert told[:50] == [i % 40 for i in range(50)], "40 classes in turn"
    told.clear()
    result = Fid(extractor=RANDOM, memorised=None, count=300, plan="random", seed=1).run(model)
    assert len(set(told)) == 40 and told[:40] != list(range(40)) and result.protocol["plan"] == "random"


def test_the_inception_score_needs_a_classifier(tmp_path):
    with pytest.raises(ConfigError, match="needs a classifier, which random-conv-v1 is not"):
        InceptionScore(extractor=RANDOM).run(subject(folder=tmp_path))


def test_pictures_for_the_evaluators_of_others(tmp_path):
    Fid(extractor=RANDOM, memorised=None, count=10, pictures=str(tmp_path / "drawn.npz")).run(subject(folder=tmp_path))
    np.testing.assert_array_equal(np.load(tmp_path / "drawn.npz")["arr_0"], IMAGES[:10])


def test_copies_of_training_pictures_are_found(tmp_path):
    """The training set is pictures 12 to 23; one model draws them, another draws unseen ones."""
    training = lambda count: (made_up.Listed(RECORDS[12:]).info, made_up.batches(RECORDS[12:], 5, text=True))
    found = {}
    for name, first in (("copies", 12), ("unseen", 0)):
        artist = made_up.Painter(IMAGES, lambda told, seed, guidance, first=first: first + seed % 12)
        result = Fid(extractor=RANDOM, count=12, memorised=12).run(subject(artist, tmp_path / name, training=training))
        found[name] = result.metrics[f"nearest_training_{NAME}"]
        assert result.pictures["neighbours"].shape[0] >= 8 * IMAGES.shape[1]
    assert found["copies"] < 1e-3 and found["unseen"] > 0.5


def test_the_training_set_is_a_reference_too(tmp_path):
    training = lambda count: (made_up.Listed(RECORDS[12 : 12 + min(count, 12)]).info, made_up.batches(RECORDS[12 : 12 + min(count, 12)], 5, text=True))
    result = Fid(extractor=RANDOM, memorised=None, reference="train").run(subject(folder=tmp_path, training=training))
    assert result.metrics[f"frechet_{NAME}"] == pytest.approx(distance(IMAGES, IMAGES[12:]), rel=1e-5)
    assert result.protocol["reference"]["set"] == "train" and result.protocol["reference"]["count"] == 12


def test_the_nearest_are_those_of_all_distances():
    rows, others = (np.random.default_rng(i).standard_normal((n, 7), np.float32) + 3 for i, n in enumerate((20, 30)))
    distances, places = neighbours.nearest(rows, others, 3)
    every = np.linalg.norm(rows[:, None].astype(np.float64) - others[None], axis=-1)
    np.testing.assert_array_equal(places, np.argsort(every, 1)[:, :3])
    # f32, by the difference of large squares.
    np.testing.assert_allclose(distances, np.sort(every, 1)[:, :3], rtol=1e-4)


# ---- files of statistics ----


def test_a_reference_from_a_file_is_the_reference_and_serves_one_purpose(tmp_path):
    file = str(tmp_path / "set.npz")
    artist = made_up.Painter(IMAGES, lambda told, seed, guidance: seed % 7)
    first = Fid(extractor=RANDOM, memorised=None, write_reference=file).run(subject(artist, tmp_path)).metrics
    assert Fid(extractor=RANDOM, memorised=None, reference=file).run(subject(artist, tmp_path)).metrics == pytest.approx(first)
    outside = Fid(extractor=RANDOM, memorised=None, reference=f"outside:{file}").run(subject(artist, tmp_path)).metrics
    assert outside == {f"frechet_{NAME}": pytest.approx(first[f"frechet_{NAME}"])}, "others' files have no rows for the rest"
    with pytest.raises(StatisticsError, match="generation"):
        Rfid(extractor=RANDOM, reference=file).run(subject(artist, tmp_path))


def test_pictures_in_an_archive_are_a_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SIZE", 10)
    write_images(tmp_path / "batch.npz", [IMAGES[:9], IMAGES[9:]], count=24)
    artist = made_up.Painter(IMAGES, lambda told, seed, guidance: seed % 7)
    own = Fid(extractor=RANDOM, memorised=None).run(subject(artist, tmp_path))
    outside = Fid(extractor=RANDOM, memorised=None, reference=f"images:{tmp_path}/batch.npz")
    found = outside.run(subject(artist, tmp_path))
    assert found.metrics == pytest.approx(own.metrics, rel=1e-12) and found.protocol["reference"]["count"] == 24
    for file in (tmp_path / "sets").glob("*/00001.npz"):
        file.unlink()
    assert outside.run(subject(artist, tmp_path)).metrics == found.metrics, "also after an interruption"
    write_images(tmp_path / "small.npz", [IMAGES[:, :16]], count=24)
    for path, message in (("small.npz", "are 16x32, but this model's are 32x32"), ("none.npz", "does not exist")):
        with pytest.raises(UserError, match=message):
            Fid(extractor=RANDOM, memorised=None, reference=f"images:{tmp_path}/{path}").run(subject(artist, tmp_path))


# ---- protocols ----


def test_protocols_are_frozen():
    """Whoever changes one breaks the figures that bear its name: give the new one another."""
    assert {name: (p.purpose, p.size, p.crop, p.count, p.condition, p.plan, p.classes, p.reference) for name, p in protocols.PROTOCOLS.items()} == {
        "adm-50k-balanced": ("generation", 256, "center", 50_000, "class", "balanced", 1000, "outside"),
        "adm-50k-random": ("generation", 256, "center", 50_000, "class", "random", 1000, "outside"),
        "rfid-50k-val": ("reconstruction", 256, "center", 50_000, None, None, None, "eval"),
        "coco-30k-dalle-crop": ("generation", 256, "center", 30_000, "text", "set", None, "eval"),
        "ln-coco-30k": ("generation", 256, "center", 30_000, "text", "set", None, "eval"),
        "cifar10-10k-balanced": ("generation", 32, "resize", 10_000, "class", "balanced", 10, "eval"),
        "cifar10-rfid-10k": ("reconstruction", 32, "resize", 10_000, None, None, None, "eval"),
        "shapes-2k": ("generation", 32, "resize", 2000, "text", "set", None, "eval"),
        "shapes-rfid-2k": ("reconstruction", 32, "resize", 2000, None, None, None, "eval"),
        "emoji-32": ("generation", 32, "resize", None, "text", "set", None, "eval"),
    }


def test_a_protocol_settles_what_it_names(tmp_path):
    result = Fid(extractor=RANDOM, memorised=None, protocol="emoji-32").run(subject(folder=tmp_path))
    assert result.protocol["named"] == "emoji-32" and result.protocol["count"] == 24 and result.protocol["plan"] == "set"


@pytest.mark.parametrize("evaluator, message", [
    (Fid(extractor=RANDOM, memorised=None, protocol="emoji-23"), "protocol 'emoji-23' is unknown; did you mean 'emoji-32'?"),
    (Fid(extractor=RANDOM, memorised=None, protocol="shapes-rfid-2k"), "is for reconstruction, not for generation"),
    (Fid(extractor=RANDOM, memorised=None, protocol="shapes-2k"), "evaluation pictures 2000, but this run has 24"),
    (Fid(extractor=RANDOM, memorised=None, protocol="cifar10-10k-balanced"), "condition 'class', but this run has 'text'"),
    (Fid(extractor=RANDOM, memorised=None, protocol="adm-50k-balanced"), "set evals.fid.reference=outside:PATH"),
    (Fid(extractor=RANDOM, memorised=None, protocol="emoji-32", count=5), "evals.fid.count is 5, but protocol 'emoji-32' fixes it at 24"),
    (Fid(extractor=RANDOM, memorised=None, plan="balanced"), "the plan 'balanced' is of classes"),
    (Fid(extractor=RANDOM, memorised=None, count=5), "compares 5 pictures with 24, but precision, recall, density and coverage need at least 6 of each"),
    (Fid(extractor=RANDOM, count=8), "set evals.fid.memorised=none"),
    (Fid(extractor=RANDOM, memorised=None, reference="nowhere.npz"), "nowhere.npz"),
    (Fid(extractor=RANDOM, memorised=None, reference="train"), "the training set is not at hand"),
    (Fid(extractor=Trained(weights="nowhere"), memorised=None), "'nowhere' does not exist; `vimlab weights train` makes one"),
    (Rfid(extractor=RANDOM, protocol="rfid-50k-val"), "size 256, but this run has 32"),
], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_what_does_not_fit_is_one_sentence(evaluator, message, tmp_path):
    with pytest.raises(UserError) as error:
        evaluator.run(subject(folder=tmp_path))
    assert message in str(error.value), error.value


def test_configs_name_extractors_and_commands_the_short_name():
    config = resolve(EvalsConfig, {"fid": {"extractor": {"name": "random"}, "count": 8}})
    assert config.fid == Fid(extractor=RANDOM, count=8)
    assert list(config.named(["is", "fid"])) == ["inception_score", "fid"]


# ---- shards and passes ----


def test_a_damaged_shard_is_made_again_and_another_request_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SIZE", 4)
    make = lambda start, stop: {"x": np.arange(start, stop)}
    kept = Shards(tmp_path, {"a": 1}, 10, make)
    assert kept.missing == 10 and [s["x"].tolist() for s in kept] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] and kept.missing == 0
    file = kept.path / "00001.npz"
    file.write_bytes(file.read_bytes()[:50])
    np.savez(kept.path / "00002.npz", x=np.array([8]))
    assert np.concatenate([s["x"] for s in kept]).tolist() == list(range(10))
    other = Shards(tmp_path, {"a": 2}, 10, make)
    assert other.path != kept.path and other.missing == 10
    assert json.loads((other.path / "request.json").read_text()) == {"a": 2, "count": 10, "shard": 4}


def test_a_pass_gives_places_in_order_and_passes_by_what_is_not_asked_for():
    looked = []
    rows = Pass(made_up.batches(RECORDS, 5, text=False), lambda images: looked.append(len(images)) or np.asarray(images)[:, 0, 0, 0])
    found = rows.take(7, 12)
    np.testing.assert_array_equal(found["image"], IMAGES[7:12])
    assert len(looked) == 2 and found["real"].all() and len(found["looked"]) == 5
    np.testing.assert_array_equal(rows.take(12, 24)["image"], IMAGES[12:24])


# ---- in a workdir ----


def test_what_is_kept_is_of_the_newest_step_alone(tmp_path):
    for step in (7, 9):
        evaluate({"fid": Fid(extractor=RANDOM, memorised=None, count=8)}, dataclasses.replace(subject(), step=step), tmp_path)
    kept = tmp_path / "evals" / "kept"
    assert sorted(p.name for p in kept.iterdir()) == ["sets", "step_00000009"] and len(list((kept / "sets").iterdir())) == 1
    assert json.loads((tmp_path / "evals" / "fid_00000009.json").read_text())["protocol"]["extractor"] == "random-conv-v1"
