"""CLIP score of pictures that are the real ones, and of pictures that belong to other captions."""

import made_up
import numpy as np
import pytest
import small_clip

from vimlab import pictures
from vimlab.config import ConfigError, UserError, resolve, to_dict
from vimlab.evals import EvalsConfig
from vimlab.evals.clip_score import ClipScore, another

RECORDS = made_up.shapes(6)
IMAGES = np.stack([r["image"] for r in RECORDS])
CAPTIONS = ["a red bird", "a blue dog", "a blue dog", "a green cat", "one more", "the last"]
NEXT = [1, 3, 3, 4, 5, 0]  # The next other caption.


def subject(shift=0, **more):
    """A model that draws the real picture of a caption, or the one `shift` places on."""
    first = {c: CAPTIONS.index(c) for c in CAPTIONS}
    artist = made_up.Painter(IMAGES, lambda told, seed, guidance: (seed + shift) % 6 if told in first else -1)
    return made_up.subject(made_up.renamed(RECORDS, CAPTIONS), artist.functions(), **more)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return small_clip.write(tmp_path_factory.mktemp("clip"))


def test_figures_are_their_definitions(scorer):
    result = ClipScore(scorer=scorer, count=6).run(subject(shift=2, size=4))
    network = scorer.open()
    texts, images = network.texts(CAPTIONS).astype(np.float64), network.images(IMAGES).astype(np.float64)
    table = images @ texts.T
    expected = {
        "": np.mean([table[(i + 2) % 6, i] for i in range(6)]),
        "_real": np.mean([table[i, i] for i in range(6)]),
        "_control": np.mean([table[(i + 2) % 6, NEXT[i]] for i in range(6)]),
        "_real_control": np.mean([table[i, NEXT[i]] for i in range(6)]),
    }
    for name, mean in expected.items():
        assert result.metrics[f"cosine{name}"] == pytest.approx(mean, abs=1e-6)
        assert result.metrics[f"clip_score{name}"] == pytest.approx(max(100 * mean, 0), abs=1e-4)
    assert len(result.metrics) == 8 and result.arrays["captions"] == CAPTIONS
    assert np.mean(result.arrays["cosines"]) == pytest.approx(result.metrics["cosine"])
    protocol = result.protocol
    assert protocol["count"] == 6 and protocol["scorer"] == "clip-vit-32-8-32" and protocol["scorer_sha256"] == network.identity
    order = np.argsort(result.arrays["cosines"])
    drawn, labels = IMAGES[(np.arange(6) + 2) % 6], [f"{c:.3f} {name}" for c, name in zip(result.arrays["cosines"], CAPTIONS, strict=True)]
    np.testing.assert_array_equal(result.pictures["clip_score"], pictures.captioned(drawn, labels, columns=6))
    lowest = pictures.captioned(drawn[order], [labels[i] for i in order], columns=3, beside=IMAGES[order])
    np.testing.assert_array_equal(result.pictures["clip_score_lowest"], lowest)


def test_real_pictures_drawn_again_score_as_they_are_and_one_caption_has_no_control(scorer):
    metrics = ClipScore(scorer=scorer, count=6).run(subject()).metrics
    assert metrics["cosine"] == metrics["cosine_real"] and metrics["cosine_control"] == metrics["cosine_real_control"]
    assert another(CAPTIONS) == NEXT and another(["same"] * 3) == another(["alone"]) == []
    single = ClipScore(scorer=scorer, count=1).run(subject())
    assert sorted(single.metrics) == ["clip_score", "clip_score_real", "cosine", "cosine_real"]


def test_mistakes_are_one_sentence_before_anything_is_drawn(scorer, tmp_path, monkeypatch):
    untouched = made_up.subject(RECORDS, {})
    monkeypatch.setenv("VIMLAB_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="the weights folder .* lacks bpe_simple_vocab_16e6.txt.gz"):
        EvalsConfig().named(["clip_score"])["clip_score"].run(untouched)
    overrides = [("clip_score.scorer.weights", str(tmp_path / "no.bin")), ("clip_score.scorer.vocabulary", scorer.vocabulary)]
    config = resolve(EvalsConfig, {"clip_score": {"count": 3}}, overrides)
    assert resolve(EvalsConfig, to_dict(config)) == config
    with pytest.raises(UserError, match="the weights '.*no.bin' do not exist"):
        config.clip_score.run(untouched)
    with pytest.raises(ConfigError, match="this model reads none .*'class'"):
        ClipScore(scorer=scorer).run(made_up.subject(RECORDS, {}, condition="class"))
