"""The shapes world: captions are true of their pictures, the verifier sees what is there and refuses what is not."""

import collections

import numpy as np
import pytest
from scipy import ndimage

from vimlab.data.base import DataError
from vimlab.data.formats import synthetic
from vimlab.data.formats.synthetic import HELD_OUT, PAIRS, Shapes, Thing, coverage, detect, draw, is_held_out, parse, verify

COUNT = 200


def degrade(image, kind):
    """What a tokenizer's reconstruction does to a picture: blur (sd 0.7 pixels at 32), noise (sd 10)."""
    if kind == "blur":
        sigma = 0.7 * image.shape[0] / 32
        return ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0)).astype(np.uint8)
    if kind == "noise":
        return (image + np.random.default_rng(0).normal(0, 10, image.shape)).clip(0, 255).astype(np.uint8)
    return image


@pytest.mark.parametrize("size,kind", [(32, "clean"), (64, "clean"), (32, "blur"), (32, "noise")])
def test_the_verifier_confirms_true_captions(size, kind):
    source = Shapes("test", size=size, count=COUNT)
    true = sum(all(verify(degrade(r["image"], kind), r["caption"]).values()) for r in (source[i] for i in range(COUNT)))
    assert true >= 0.99 * COUNT


def test_the_verifier_refuses_other_captions():
    """Captions of other pictures pass as a whole at most as often as two captions say the same by chance (2%)."""
    source = Shapes("train", size=32, count=COUNT)
    records = [source[i] for i in range(COUNT)]
    accepted, statements = 0, []
    for i, record in enumerate(records):
        results = verify(record["image"], records[(i + 101) % COUNT]["caption"])
        accepted += all(results.values())
        statements += results.values()
    assert accepted <= 0.02 * COUNT and np.mean(statements) < 0.6


@pytest.mark.parametrize("caption,wrong", [
    ("a large red circle left of a small blue square", set()),
    ("a small blue square right of a large red circle", set()),
    ("a red circle left of a blue square", set()),
    ("a large red circle right of a small blue square", {"relation"}),
    ("a large red circle above a small blue square", {"relation"}),
    ("a large red diamond left of a small blue square", {"shape 1"}),
    ("a large red circle left of a small green square", {"colour 2"}),
    ("a small red circle left of a small blue square", {"size 1"}),
    ("a large blue circle left of a small red square", {"colour 1", "colour 2"}),
    ("a large red circle", {"count"}),
])
def test_each_statement_is_judged_by_itself(caption, wrong):
    picture = draw([Thing("large", "red", "circle", 0.3, 0.5, 0.21), Thing("small", "blue", "square", 0.78, 0.55, 0.14)], 32,
                   np.random.default_rng(0))
    assert {name for name, holds in verify(picture, caption).items() if not holds} == wrong


def test_detection_reads_place_and_extent():
    thing, = detect(draw([Thing(None, "green", "triangle", 0.4, 0.6, 0.21)], 64, np.random.default_rng(1)))
    assert (thing.colour, thing.shape, thing.size) == ("green", "triangle", "large") and abs(thing.half - 0.21) < 0.02


def test_an_empty_or_wild_picture_satisfies_nothing():
    for picture in (np.full((32, 32, 3), 240, np.uint8), np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)):
        assert not verify(picture, "a red circle above a blue square")["count"]


@pytest.mark.parametrize("shape,area", [("circle", np.pi), ("square", 1.76**2), ("triangle", 0.5 * 1.995 * 1.9),
                                        ("diamond", 2.0), ("cross", 2 * 0.68 * 2 - 0.68**2)])
def test_shapes_cover_their_closed_form_area(shape, area):
    assert abs(coverage(shape, 32.0, 32.0, 20.0, 64).sum() / 20**2 - area) < 0.02 * area


def test_records_are_a_function_of_seed_split_and_index():
    a, b = Shapes("train", size=32, count=10), Shapes("train", size=32, count=99)
    for i in (0, 7):
        np.testing.assert_array_equal(a[i]["image"], b[i]["image"])
        assert a[i]["caption"] == b[i]["caption"]
    others = [Shapes("test", size=32, count=10), Shapes("train", size=32, count=10, seed=1)]
    assert all(not np.array_equal(a[i]["image"], other[i]["image"]) for other in others for i in (0, 7))


def test_held_out_pairs_are_in_the_odd_records_of_test_only():
    train, test = Shapes("train", count=400), Shapes("test", count=200)
    assert not any(is_held_out(train[i]["caption"]) for i in range(400))
    assert [is_held_out(test[i]["caption"]) for i in range(200)] == [False, True] * 100
    known = set(PAIRS) - HELD_OUT
    for word in (0, 1):  # each colour and each shape is learnt in other pairs
        assert {pair[word] for pair in HELD_OUT} == {pair[word] for pair in known}


def test_captions_follow_the_grammar_and_use_all_of_it():
    source, words = Shapes("train", count=400), collections.Counter()
    for i in range(400):
        record = source[i]
        things, relation = parse(record["caption"])
        assert source.info.class_names[record["label"]] in record["caption"]
        assert len(things) == (2 if relation else 1)
        words.update(record["caption"].split())
    wanted = {*synthetic.COLOURS, *synthetic.SHAPES, *synthetic.SIZES, "left", "right", "above", "below"}
    assert wanted <= set(words)
    with pytest.raises(DataError, match="red circle left of"):
        parse("two red circles")


def test_one_object_on_request():
    assert all(parse(Shapes("train", count=50, objects=1)[i]["caption"])[1] is None for i in range(50))
