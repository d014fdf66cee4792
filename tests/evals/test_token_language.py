"""Token statistics against closed forms and definitions written out; the evaluator whatever the batches; its place in the report."""

import collections
import dataclasses
import json
import math
import re

import jax.numpy as jnp
import made_up
import numpy as np
import pytest

from vimlab.config import ConfigError
from vimlab.evals import evaluate, svg
from vimlab.evals import token_statistics as statistics
from vimlab.evals.report import write_report
from vimlab.evals.token_language import TokenLanguage
from vimlab.tokens import Tokens, TokenSpec

CODES, SPEC = 64, TokenSpec(grid=(3, 4), codes=64)
RNG = np.random.default_rng(0)


def zipfian(size, exponent, codes=CODES):
    share = np.arange(1, codes + 1.0) ** -exponent
    return RNG.choice(RNG.permutation(codes), size, p=share / share.sum())


# ---- power laws ----


@pytest.mark.parametrize("exponent", [0.6, 1.0, 1.7])
def test_zipf_recovers_the_exponent(exponent):
    exact, ordered = statistics.zipf(np.concatenate([np.zeros(9, int), np.round(1e12 * np.arange(500, 0, -1.0) ** -exponent).astype(int)]))
    assert exact.exponent == pytest.approx(-exponent, abs=1e-6) and exact.r2 == pytest.approx(1) and len(ordered) == 500
    np.testing.assert_allclose(exact(np.array([1, 10])), ordered[[0, 9]], rtol=1e-5)
    sampled, _ = statistics.zipf(np.bincount(zipfian(200_000, exponent, 1000), minlength=1000))
    assert sampled.exponent == pytest.approx(-exponent, abs=0.03) and sampled.r2 > 0.98


def test_a_line_through_logarithms_is_numpys():
    x, y, w = RNG.uniform(1, 9, 20), RNG.uniform(1, 9, 20), RNG.uniform(0.1, 1, 20)
    slope, offset = np.polyfit(np.log(x), np.log(y), 1, w=np.sqrt(w))
    fit = statistics.power_law(x, y, w)
    assert (fit.exponent, math.log(fit.scale)) == pytest.approx((slope, offset))
    assert math.isnan(statistics.power_law(x[:1], y[:1], w[:1]).exponent)


def test_innovation():
    """All tokens new; then one new token each time that the number seen passes a square."""
    fit, seen, distinct = statistics.innovation(RNG.permutation(5000))
    assert fit.exponent == pytest.approx(1) and fit.scale == pytest.approx(1)
    np.testing.assert_array_equal(seen, distinct)
    roots = np.ceil(np.sqrt(np.arange(1, 40_001))).astype(int)
    fit, seen, distinct = statistics.innovation(roots)
    np.testing.assert_array_equal(distinct, np.ceil(np.sqrt(seen)))
    assert fit.exponent == pytest.approx(0.5, abs=0.02)
    assert statistics.innovation(np.zeros(1000, int))[0].exponent == 0


# ---- entropies and codes ----


def test_even_use():
    ids = RNG.permuted(np.tile(np.arange(CODES), (100, 1)), axis=1)
    counts = np.bincount(ids.ravel())
    assert statistics.entropy(counts) == pytest.approx(6) == statistics.huffman_bits(counts)
    assert statistics.ngram_perplexities(ids[::2], ids[1::2], CODES, 1) == pytest.approx([64])
    free = RNG.integers(0, 8, (4000, 16))
    assert statistics.ngram_perplexities(free[::2], free[1::2], 8) == pytest.approx([8, 8, 8], rel=0.02)
    by_place = statistics.miller_madow(statistics.position_counts(free, 8))
    assert by_place == pytest.approx(np.full(16, 3), abs=2e-3)
    assert statistics.entropy(np.array([[5, 0], [0, 0]])).tolist() == [0, 0]


def test_miller_madow_takes_most_of_the_bias():
    """Of 200 samples of 64 codes in even use, over many draws: 6 bits, where the plain figure is a quarter of a bit too low."""
    counts = RNG.multinomial(200, np.full(64, 1 / 64), 2000)
    assert statistics.entropy(counts).mean() < 5.8 and statistics.miller_madow(counts).mean() == pytest.approx(6, abs=0.05)


def test_huffman_codes_powers_of_two_without_loss_and_others_within_a_bit():
    assert statistics.huffman_bits(np.array([8, 4, 2, 1, 1, 0])) == pytest.approx(1.875)
    counts = np.bincount(zipfian(5000, 1.2))
    assert 0 <= statistics.huffman_bits(counts) - statistics.entropy(counts) < 1
    assert statistics.huffman_bits(np.array([0, 7])) == 0


def test_lzma_finds_repetition_alone():
    random = RNG.integers(0, 256, (200, 64))
    assert 8 <= statistics.lzma_bits(random, 256) < 8.2
    assert statistics.lzma_bits(np.tile(random[:1], (200, 1)), 256) < 0.5
    assert statistics.lzma_bits(random, 1024) == statistics.lzma_bits(random.astype(np.int32), 1024) < 11  # 16 bits as stored.


# ---- n-grams ----


def brute_force(train, test, codes, order):
    """The docstring's formula by dictionaries, one token at a time."""
    grams = [collections.Counter(tuple(row[i - n : i + 1]) for row in train for i in range(n, len(row))) for n in range(order)]

    def discount(n):
        once, twice = (sum(c == k for c in grams[n].values()) for k in (1, 2))
        return (once + 1) / (once + 2 * twice + 2)

    def p(context, word):
        n = len(context)
        lower = p(context[1:], word) if n else 1 / codes
        after = {gram: c for gram, c in grams[n].items() if gram[:-1] == context}
        if not after:
            return lower
        kept = max(after.get((*context, word), 0) - discount(n), 0)
        return (kept + discount(n) * len(after) * lower) / sum(after.values())

    logs = [math.log(p(tuple(row[max(0, i - order + 1) : i]), row[i])) for row in test for i in range(len(row))]
    return math.exp(-sum(logs) / len(logs))


@pytest.mark.parametrize("codes, images, length", [(3, 8, 6), (7, 5, 4), (50, 6, 9), (4, 3, 1)])
def test_ngrams_are_brute_force(codes, images, length):
    train, test = (np.minimum(RNG.geometric(0.3, (n, length)) - 1, codes - 1) for n in (images, images + 2))
    found = statistics.ngram_perplexities(train, test, codes)
    assert len(found) == min(3, length)
    assert found == pytest.approx([brute_force(train.tolist(), test.tolist(), codes, n + 1) for n in range(len(found))], rel=1e-12)


def test_order_helps_where_there_is_order():
    """A token that follows from the two before it: only trigrams know it."""
    ids = RNG.integers(0, 2, (400, 12))
    for i in range(2, 12):
        ids[:, i] = ids[:, i - 1] ^ ids[:, i - 2]
    one, two, three = statistics.ngram_perplexities(ids[::2], ids[1::2], 2)
    assert one == pytest.approx(2, abs=0.03) and three < 1.3 < 1.7 < two  # The first two tokens are free: 2^(2/12).


# ---- what tokens say of the class ----


def test_information_of_a_function_of_the_class_is_the_classs_entropy():
    labels = zipfian(300, 1.0, 10)
    function = (labels * 7 % 10)[:, None].repeat(5, 1)
    assert statistics.class_information(function, labels, 10) == pytest.approx(statistics.entropy(np.bincount(labels)))
    assert statistics.class_information(np.zeros((300, 5), int), labels, 10) == pytest.approx(0)


def test_information_is_its_definition():
    labels, ids = RNG.integers(0, 3, 50), RNG.integers(0, 6, (50, 4))
    ids[:, 0] = labels
    joint, *_ = np.histogram2d(ids.ravel(), labels.repeat(4), bins=(6, 3), range=((0, 6), (0, 3)))
    joint /= joint.sum()
    even = joint.sum(0) * joint.sum(1, keepdims=True)
    expected = sum(a * math.log2(a / b) for a, b in zip(joint.ravel(), even.ravel(), strict=True) if a)
    assert statistics.class_information(ids, labels, 6) == pytest.approx(expected)


# ---- the evaluator ----

LABELS = RNG.integers(0, 4, 150).astype(np.int32)
IDS = (zipfian((150, 12), 1.0) + 3 * LABELS[:, None]) % CODES


def batches(size, ids=IDS, labels=LABELS):
    """Pictures whose red levels are their tokens; the last batch is filled up with white ones under mask 0."""
    for start in range(0, len(ids), size):
        part = ids[start : start + size].reshape(-1, 3, 4, 1).repeat(3, 3).astype(np.uint8)
        missing = size - len(part)
        yield {
            "image": np.concatenate([part, np.full((missing, 3, 4, 3), 63, np.uint8)]),
            "label": np.concatenate([labels[start : start + len(part)], np.full(missing, -1, np.int32)]),
            "mask": (np.arange(size) < len(part)).astype(np.float32),
        }


def encode(state, images):
    return Tokens(jnp.asarray(np.round(np.asarray(images)[..., 0] * 255).astype(np.int32).reshape(-1, 12, 1)), SPEC)


def subject(size=32, spec=SPEC, **data):
    fields = dict(predict_fns={"encode": encode}, batches=lambda: batches(size, **data), spec=spec, condition="none")
    return made_up.subject([], {}, **fields)


def test_figures_do_not_depend_on_batches():
    expected = TokenLanguage().run(subject())
    assert expected.protocol["count"] == 150 and expected.protocol["codes"] == 64
    for size in (7, 256):
        assert TokenLanguage().run(subject(size)) == expected


def test_figures_are_those_of_the_ids():
    result = TokenLanguage().run(subject())
    metrics, counts = result.metrics, np.bincount(IDS.ravel(), minlength=CODES)
    assert metrics["entropy_bits"] == statistics.entropy(counts)
    assert metrics["huffman_saving"] == pytest.approx(1 - metrics["huffman_bits"] / 6)
    assert metrics["zipf_exponent_unigrams"] == -statistics.zipf(counts)[0].exponent
    assert metrics["perplexity_bigrams"] == pytest.approx(brute_force(IDS[::2].tolist(), IDS[1::2].tolist(), CODES, 2))
    bigrams = collections.Counter(pair for row in IDS.tolist() for pair in zip(row, row[1:], strict=False))
    assert result.arrays["rank_frequency_bigrams"]["y"][0] == bigrams.most_common(1)[0][1]
    assert result.arrays["innovation"]["x"][-1] == 1800 and result.arrays["innovation"]["y"][-1] == len(np.unique(IDS))
    at = np.array(result.arrays["position_entropy"])
    assert at.shape == (3, 4) and metrics["position_entropy_max"] == pytest.approx(at.max(), abs=1e-6)
    assert at[1, 2] == pytest.approx(statistics.miller_madow(np.bincount(IDS[:, 6])), abs=1e-6)
    assert metrics["class_information_bits"] > 2 * metrics["class_information_shuffled_bits"] > 0
    assert 0 < metrics["vocabulary_share_100"] <= 1


def test_what_a_set_lacks_is_left_out_or_said():
    unlabelled = TokenLanguage().run(subject(labels=np.full(150, -1, np.int32))).metrics
    assert not [name for name in unlabelled if name.startswith("class_")]
    assert "vocabulary_share_100" not in TokenLanguage().run(subject(ids=IDS[:100])).metrics
    alone = TokenLanguage().run(subject(ids=np.full((4, 12), 9))).metrics
    assert math.isnan(alone["zipf_exponent_unigrams"]) and alone["entropy_bits"] == 0 and alone["huffman_saving"] == 1
    with pytest.raises(ConfigError, match="'shapes:test' holds only one"):
        TokenLanguage().run(subject(ids=IDS[:1]))
    with pytest.raises(ConfigError, match="2 sub-codes"):
        TokenLanguage().run(subject(spec=dataclasses.replace(SPEC, groups=2)))


# ---- the report ----


def test_the_report_draws_laws_and_map(tmp_path):
    figures = evaluate({"token_language": TokenLanguage()}, subject(), tmp_path)
    raw = write_report(tmp_path).read_text()
    assert raw.count("Token language</h") == 2 and f"{figures['eval/token_language/perplexity_trigrams']:,.1f}" in raw
    (plot,) = re.findall(r"<figure><h3>Frequency of tokens over rank</h3>.*?</figure>", raw)
    lines = [np.array([p.split(",") for p in points.split()], float) for points in re.findall(r'class="line c\d" points="([^"]+)"', plot)]
    assert len(lines) == 2 and lines[0][0][0] == svg.LARGE.left and lines[0][-1][0] == svg.LARGE.right
    # A power law is a straight line on two logarithmic axes.
    slope = np.diff(lines[1][:, 1]).sum() / np.diff(lines[1][:, 0]).sum()
    np.testing.assert_allclose(lines[1][:, 1], lines[1][0, 1] + slope * (lines[1][:, 0] - lines[1][0, 0]), atol=0.2)
    (shown,) = re.findall(r"<figure><h3>Entropy at each position, bits</h3>.*?</figure>", raw)
    at = np.array(json.loads((tmp_path / "evals/token_language_00000007.json").read_text())["arrays"]["position_entropy"])
    assert re.findall(r"<title>([\d.]+)</title>", shown) == [f"{v:.2f}" for v in at.ravel()]


def test_the_report_draws_tokens_that_never_change(tmp_path):
    evaluate({"token_language": TokenLanguage()}, subject(ids=np.full((4, 12), 9)), tmp_path)
    assert "not finite" in write_report(tmp_path).read_text()
