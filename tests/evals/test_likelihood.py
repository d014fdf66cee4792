"""Bits per token of models whose likelihood is known."""

import math

import jax.numpy as jnp
import made_up
import numpy as np
import pytest
from scipy.stats import entropy

from vimlab.config import ConfigError
from vimlab.evals import evaluate
from vimlab.evals.likelihood import Likelihood
from vimlab.tokens import Tokens

RECORDS = made_up.shapes(21)
LEVELS = 16


def encode(state, images):
    """Brightness of the corners; white pictures, which fill up a batch, give the last code alone."""
    x = np.asarray(images)[:, ::31, ::31].mean(-1).reshape(-1, 4, 1)
    return Tokens(jnp.int32(np.minimum(x * LEVELS, LEVELS - 1)), made_up.SPEC)


IDS = np.asarray(encode(None, np.stack([r["image"] for r in RECORDS]) / np.float32(255)).ids)
COUNTS = np.bincount(IDS.ravel(), minlength=LEVELS)


def uniform(state, ids, condition):
    return np.full(np.shape(ids), math.log(LEVELS), np.float32)


def unigram(state, ids, condition):
    """The frequencies of the set's own tokens; a token that never occurs is impossible."""
    with np.errstate(divide="ignore"):
        return -np.log(COUNTS / COUNTS.sum()).astype(np.float32)[np.asarray(ids)]


def run(nll, **options):
    return Likelihood().run(made_up.subject(RECORDS, {"encode": encode, "nll": nll}, **options))


def test_a_uniform_model_needs_log2_k_bits():
    metrics = run(uniform).metrics
    assert metrics["bits_per_token"] == pytest.approx(4, rel=1e-6) and metrics["nats_per_token"] == pytest.approx(math.log(16), rel=1e-6)
    assert metrics["bits_per_dim"] == pytest.approx(4 * 4 / (32 * 32 * 3), rel=1e-6)
    assert metrics["unigram_bits"] == pytest.approx(entropy(COUNTS, base=2), rel=1e-9) and 0.5 < metrics["unigram_bits"] < 3.9
    assert metrics["margin_bits"] == pytest.approx(metrics["unigram_bits"] - 4, abs=1e-6)


def test_a_model_of_the_frequencies_needs_their_entropy():
    metrics = run(unigram).metrics
    assert metrics["bits_per_token"] == pytest.approx(entropy(COUNTS, base=2), rel=1e-6)
    assert metrics["margin_bits"] == pytest.approx(0, abs=1e-6)


def test_no_batch_size_and_no_filled_up_row_enters_a_figure():
    """A filled-up row's label is -1 and its score infinite; each of the others is its own."""
    def nll(state, ids, condition):
        return np.where(condition[:, None] < 0, np.inf, 0.1 + condition[:, None] / 7 + np.asarray(ids) / 3).astype(np.float32)

    reference = run(nll, size=21, condition="class")
    labels = np.array([r["label"] for r in RECORDS])
    assert reference.metrics["nats_per_token"] == pytest.approx(0.1 + labels.mean() / 7 + IDS.mean() / 3, rel=1e-6)
    for size in (1, 8, 24):
        other = run(nll, size=size, condition="class")
        assert other.metrics == pytest.approx(reference.metrics, rel=1e-12) and other.protocol == reference.protocol
    assert reference.protocol["count"] == 21


@pytest.mark.parametrize("condition", ["text", "class", "none"])
def test_each_image_has_its_own_condition(condition):
    texts, labels = np.stack([made_up.TEXT.encode(r["caption"]) for r in RECORDS]), [r["label"] for r in RECORDS]
    seen = []

    def nll(state, ids, condition):
        seen.append(condition)
        return uniform(state, ids, condition)

    protocol = run(nll, condition=condition).protocol
    np.testing.assert_array_equal(np.concatenate(seen)[:21], texts if condition == "text" else labels)
    assert protocol["condition"] == condition and protocol["tokens_per_image"] == 4
    assert protocol["tokenizer"] == {"grid": (2, 2), "codes": 16, "groups": 1}


def test_files_and_mistakes(tmp_path):
    figures = evaluate({"likelihood": Likelihood()}, made_up.subject(RECORDS, {"encode": encode, "nll": uniform}), tmp_path)
    assert figures["eval/likelihood/bits_per_token"] == pytest.approx(4) and (tmp_path / "evals/likelihood_00000007.json").is_file()
    with pytest.raises(ConfigError, match="cannot 'nll'"):
        Likelihood().run(made_up.subject(RECORDS, {"encode": encode}))
    with pytest.raises(ConfigError, match="holds no images"):
        Likelihood().run(made_up.subject([], {"encode": encode, "nll": uniform}))
