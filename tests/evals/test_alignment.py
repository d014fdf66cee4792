"""Captions of the shapes world and pictures of which it is known what they show."""

import made_up
import numpy as np
import pytest

from vimlab import pictures
from vimlab.config import ConfigError
from vimlab.data.formats import synthetic
from vimlab.evals import alignment
from vimlab.evals.alignment import Alignment

COUNT = 10
RECORDS = made_up.shapes(COUNT)
CAPTIONS = [r["caption"] for r in RECORDS]
IMAGES = np.stack([r["image"] for r in RECORDS])
# Mirrored pictures are wrong where the caption says "left of" or "right of", in this and nothing else.
PAINTINGS = np.concatenate([IMAGES, IMAGES[:, :, ::-1]])
RELATIONS = [synthetic.parse(c)[1] for c in CAPTIONS]
SIDEWAYS = np.array([r in ("left of", "right of") for r in RELATIONS])
HELD_OUT = np.arange(COUNT) % 2 == 1


def mirrored_below(scale):
    """Predict functions of a model that needs guidance of at least `scale` to tell left from right."""
    return made_up.Painter(PAINTINGS, lambda told, seed, guidance: CAPTIONS.index(told) + COUNT * (guidance < scale)).functions()


@pytest.fixture(scope="module")
def result():
    """At guidance 3, and at 1 and 2, where the model mirrors."""
    assert all(SIDEWAYS[group].any() and not SIDEWAYS[group].all() for group in (HELD_OUT, ~HELD_OUT))
    return Alignment(count=COUNT, scales=(2.0, 1.0)).run(made_up.subject(RECORDS, mirrored_below(3), size=4))


def test_real_pictures_meet_their_captions_and_hardly_any_others(result):
    metrics = result.metrics
    assert [metrics[n] for n in ("seen", "held_out", "seen_ceiling", "held_out_ceiling")] == [1] * 4
    assert [metrics[f"{kind}_right"] for kind in alignment.KINDS] == [1] * 5
    assert metrics["seen_control"] <= 0.2 and metrics["held_out_control"] <= 0.2


def test_the_curve_over_guidance(result):
    expected = {"seen": 1 - SIDEWAYS[~HELD_OUT].mean(), "held_out": 1 - SIDEWAYS[HELD_OUT].mean()}
    relations = 1 - SIDEWAYS.sum() / sum(r is not None for r in RELATIONS)
    assert [point["guidance"] for point in result.arrays["curve"]] == [1, 2, 3]
    for scale, point in zip((1, 2), result.arrays["curve"], strict=False):
        for name, share in expected.items():
            assert point[name] == result.metrics[f"{name}_at_{scale}"] == pytest.approx(share), (name, scale)
        assert point["relation_right"] == pytest.approx(relations) and point["colour_right"] == point["count_right"] == 1
    assert result.arrays["curve"][2].items() <= result.metrics.items() | {("guidance", 3.0)}
    assert result.arrays["ceiling"]["relation_right"] == 1 and result.arrays["failed"] == []
    assert result.protocol["guidance"] == 3 and result.protocol["count"] == COUNT and "seen_at_3" not in result.metrics


def test_pictures_are_ticked_where_everything_is_right():
    result = Alignment(count=COUNT, guidance=1.0).run(made_up.subject(RECORDS, mirrored_below(3)))
    labels = [f"held out: {c}" if h else c for c, h in zip(CAPTIONS, HELD_OUT, strict=True)]
    expected = pictures.captioned(PAINTINGS[COUNT:], labels, columns=6, marks=(~SIDEWAYS).tolist())
    np.testing.assert_array_equal(result.pictures["alignment"], expected)
    failed = np.flatnonzero(SIDEWAYS)
    assert result.arrays["failed"] == [{"caption": CAPTIONS[i], "picture": i, "wrong": ["relation"]} for i in failed]
    labels = [f"{CAPTIONS[i]}; not found: relation" for i in failed]
    np.testing.assert_array_equal(result.pictures["alignment_failed"], pictures.captioned(PAINTINGS[COUNT:][failed], labels, columns=6))
    assert result.protocol["scales"] == [1.0] and not any("_at_" in name for name in result.metrics)


@pytest.mark.parametrize("size", [1, 24])
def test_batches_change_nothing(result, size):
    other = Alignment(count=COUNT, scales=(2.0, 1.0)).run(made_up.subject(RECORDS, mirrored_below(3), size=size))
    assert (other.metrics, other.protocol, other.arrays) == (result.metrics, result.protocol, result.arrays)


def test_the_ceiling_is_of_reconstructions():
    def mirror(state, images):
        return np.asarray(images)[:, :, ::-1]

    result = Alignment(count=COUNT, guidance=1.0).run(made_up.subject(RECORDS, mirrored_below(0) | {"reconstruct": mirror}))
    assert result.metrics["seen"] == 1 and result.metrics["seen_ceiling"] == 1 - SIDEWAYS[~HELD_OUT].mean()
    assert result.metrics["held_out_ceiling"] == 1 - SIDEWAYS[HELD_OUT].mean()


def test_shares_are_their_definitions():
    verdicts = [
        {"count": True, "colour 1": True, "shape 1": True, "size 1": True},
        {"count": False, "colour 1": True, "shape 1": True},
        {"count": True, "colour 1": False, "shape 1": True, "colour 2": True, "shape 2": True, "relation": False},
    ]
    found = alignment.shares(verdicts, np.array([False, False, True]))
    assert found == dict(seen=1 / 2, held_out=0, count_right=2 / 3, colour_right=3 / 4, shape_right=1, size_right=1, relation_right=0)
    alone = alignment.shares(verdicts[:2], np.array([False, False]))
    assert "held_out" not in alone and "relation_right" not in alone


def test_the_control_never_takes_a_pictures_own_caption(monkeypatch):
    """Three captions are alike in words or in meaning; the held-out ones are all alike, so that there is no other."""
    captions = ["a red circle", "a blue square", "a red cross", "A red circle", "a red circle", "a red cross"]
    asked = []
    monkeypatch.setattr(synthetic, "verify", lambda image, caption: asked.append((int(image), caption)) or {"count": int(image) == 1})
    found = alignment.control(np.arange(6), captions, np.array([False, False, True, False, False, True]))
    assert found == {"seen_control": 1 / 4}
    assert asked == [(0, "a blue square"), (1, "A red circle"), (3, "a blue square"), (4, "a blue square")]


def test_a_model_without_guidance_is_drawn_from_as_it_is():
    result = Alignment(count=2).run(made_up.subject(RECORDS, mirrored_below(0), guided=False))
    assert result.protocol["guidance"] == 1 and result.protocol["scales"] == [1.0]
    with pytest.raises(ConfigError, match="guidance is 2, "):
        Alignment(count=2, scales=(2.0,)).run(made_up.subject(RECORDS, mirrored_below(0), guided=False))


def test_mistakes_are_one_sentence():
    others = made_up.renamed(RECORDS, [*CAPTIONS[:3], "a photo of a dog", *CAPTIONS[4:]])
    with pytest.raises(ConfigError, match=r"shapes world, which 'a photo of a dog' is not; .*data\.eval=shapes:test"):
        Alignment().run(made_up.subject(others, mirrored_below(0)))
    with pytest.raises(ConfigError, match="reads none .*'class'"):
        Alignment().run(made_up.subject(RECORDS, mirrored_below(0), condition="class"))
