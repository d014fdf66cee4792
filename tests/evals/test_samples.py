"""Pictures of a generator that draws what it is told: the first distinct conditions, each with its own seed and real picture."""

import made_up
import numpy as np
import pytest

from vimlab import pictures
from vimlab.config import ConfigError
from vimlab.evals.samples import Samples
from vimlab.sampling.sampler import GROUP

RECORDS = made_up.shapes(12)
IMAGES = np.stack([r["image"] for r in RECORDS])
CAPTIONS = ["one", "two", "one", "three", "two", "four", "five", "three", "six", "seven", "six", "eight"]
FIRST = [0, 1, 3, 5, 6]  # Places of the first five distinct captions.
NAMED = made_up.renamed(RECORDS, CAPTIONS)


def painter():
    """Draws the eleventh picture for captions and classes; without a condition the picture of the seed's number."""
    return made_up.Painter(IMAGES, lambda told, seed, guidance: 11 if told != -5 else seed % 12)


def test_the_first_distinct_captions_beside_their_real_pictures():
    artist = painter()
    result = Samples(count=5, seed=30).run(made_up.subject(NAMED, artist.functions()))
    (rows, seeds, _), = artist.calls
    assert rows == GROUP and seeds == [30, 31, 32, 33, 34, 34, 34, 34], "each with its own seed, and filled up"
    expected = pictures.captioned(IMAGES[[11] * 5], ["one", "two", "three", "four", "five"], beside=IMAGES[FIRST])
    np.testing.assert_array_equal(result.pictures["samples"], expected)
    assert result.protocol["count"] == 5 and result.protocol["seed"] == 30 and result.protocol["condition"] == "text"


def test_figures_are_their_definitions():
    result = Samples(count=5, seed=30).run(made_up.subject(NAMED, painter().functions()))
    assert result.metrics["log_prob_per_token"] == pytest.approx(-np.mean([30, 31, 32, 33, 34]) * 2.5, rel=1e-6)
    assert result.metrics["distinct_share"] == 2 / 16, "picture 11 is spelt 0, 0, 0, 11"
    real = made_up.Painter.encode(None, IMAGES[FIRST] / np.float32(255)).ids
    assert result.metrics["distinct_share_real"] == len(np.unique(real)) / 16
    assert len(result.metrics) == 3


def test_batches_change_nothing():
    reference = Samples(count=7).run(made_up.subject(NAMED, painter().functions(), size=12))
    for size in (1, 3, 24):
        other = Samples(count=7).run(made_up.subject(NAMED, painter().functions(), size=size))
        assert other.metrics == pytest.approx(reference.metrics, rel=1e-12) and other.protocol == reference.protocol
        np.testing.assert_array_equal(other.pictures["samples"], reference.pictures["samples"])


def test_each_device_draws_as_many_rows_as_the_protocol_says():
    for rows, ways, size, calls in ((1, 4, 8, 2), (3, 1, 4, 3), (3, 2, 16, 2), (32, 8, 8, 1)):
        artist = painter()
        result = Samples(count=7, rows_per_device=rows).run(made_up.subject(NAMED, artist.functions(), size=size, ways=ways))
        assert [drawn for drawn, _, _ in artist.calls] == [rows * ways] * calls
        assert result.protocol["count"] == 7 and result.protocol["rows_per_device"] == rows


def test_a_set_with_fewer_conditions_gives_all_it_has():
    assert Samples(count=50).run(made_up.subject(NAMED, painter().functions())).protocol["count"] == 8


def test_classes_by_name_and_rows_without_one():
    labels = [4, 4, 2, -1, 2, 0] + [4] * 6
    records = [r | {"label": label} for r, label in zip(RECORDS, labels, strict=True)]
    result = Samples(count=9).run(made_up.subject(records, painter().functions(), condition="class"))
    expected = pictures.captioned(IMAGES[[11] * 4], ["class 4", "class 2", "no class", "class 0"], beside=IMAGES[[0, 2, 3, 5]])
    np.testing.assert_array_equal(result.pictures["samples"], expected)


def test_without_a_condition_each_seed_is_a_picture():
    records = [r | {"label": -5} for r in RECORDS]
    result = Samples(count=4, seed=3).run(made_up.subject(records, painter().functions(), condition="none", guided=False))
    expected = pictures.captioned(IMAGES[[3, 4, 5, 6]], ["seed 3", "seed 4", "seed 5", "seed 6"])
    np.testing.assert_array_equal(result.pictures["samples"], expected)


def test_settings_reach_the_sampler():
    artist = painter()
    evaluator = Samples(count=2, temperature=0.5, top_k=7, top_p=0.9, guidance=5.0, schedule="linear")
    protocol = evaluator.run(made_up.subject(NAMED, artist.functions())).protocol
    knobs = artist.calls[0][2]
    assert (knobs.temperature, knobs.top_k, knobs.top_p) == (np.float32(0.5), 7, np.float32(0.9))
    np.testing.assert_allclose(knobs.guidance, [1, 1 + 4 / 3, 1 + 8 / 3, 5], rtol=1e-6)
    assert protocol.items() >= dict(temperature=0.5, top_k=7, top_p=0.9, guidance=5.0, schedule="linear", seed=0).items()


def test_mistakes_are_one_sentence():
    unguided = made_up.subject(NAMED, painter().functions(), guided=False)
    assert Samples(count=2).run(unguided).metrics
    with pytest.raises(ConfigError, match=r"guidance is 3, .*guidance 1, or train with config\.drop\.rate"):
        Samples(count=2, guidance=3.0).run(unguided)
    with pytest.raises(ConfigError, match="cannot 'sample'"):
        Samples().run(made_up.subject(NAMED, {"encode": made_up.Painter.encode}))
    for wrong, message in [
        (dict(count=0), "count is 0"), (dict(temperature=-1.0), "temperature -1.0"), (dict(top_k=-2), "top_k -2"),
        (dict(top_p=0.0), "top_p 0.0"), (dict(seed=-1), "seed is -1"),
        (dict(rows_per_device=0), "rows_per_device is 0"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            Samples(**wrong)
