"""Codebook statistics against their definitions written out in NumPy."""

import numpy as np
import pytest
from scipy.stats import entropy

from vimlab.evals.codebook import CodebookStats


def feed(ids: np.ndarray, codes: int, cuts: list[int], batch: int = 256) -> CodebookStats:
    stats = CodebookStats(codes, ids.shape[2], batch)
    for part in np.split(ids, cuts):
        stats.update(part)
    return stats


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    """600 images of 4 positions over 500 codes, few images using the last ones: i32[600,4,1]."""
    return np.minimum(np.random.default_rng(0).geometric(0.01, (600, 4, 1)) - 1, 499).astype(np.int32)


def test_figures_are_their_definitions(ids):
    metrics = feed(ids, 500, [100, 450]).metrics()
    counts = np.bincount(ids.ravel(), minlength=500)
    assert metrics["usage"] == (counts > 0).mean() < 1
    assert metrics["dead_codes"] == (counts == 0).sum()
    np.testing.assert_allclose(metrics["perplexity"], np.exp(entropy(counts)), rtol=1e-12)
    np.testing.assert_allclose(metrics["entropy_bits"], entropy(counts, base=2), rtol=1e-12)
    np.testing.assert_allclose(metrics["top_code_share"], counts.max() / 2400, rtol=1e-12)


def test_usage_batch_is_table_4s_whatever_the_callers_batches(ids):
    """Per batch of 256 images, averaged over the two full batches; the last 88 images make none."""
    expected = np.mean([len(np.unique(ids[i : i + 256])) / 500 for i in (0, 256)])
    for cuts in ([], [1, 2, 255, 256, 257, 599], list(range(7, 600, 7))):
        assert feed(ids, 500, cuts).metrics()["usage_batch"] == pytest.approx(expected, abs=1e-12)
    assert "usage_batch" not in feed(ids[:255], 500, []).metrics()


def test_extremes():
    one = feed(np.full((10, 3, 1), 7, np.int32), 16, []).metrics()
    assert (one["usage"], one["perplexity"], one["entropy_bits"], one["dead_codes"], one["top_code_share"]) == (
        1 / 16,
        1,
        0,
        15,
        1,
    )
    even = feed(np.arange(64, dtype=np.int32).reshape(4, 16, 1) % 16, 16, []).metrics()
    assert even["usage"] == 1 and even["perplexity"] == pytest.approx(16) and even["entropy_bits"] == pytest.approx(4)


def test_sub_codes_are_codebooks_of_their_own():
    ids = np.stack([np.zeros((4, 8), np.int32), np.arange(32, dtype=np.int32).reshape(4, 8) % 8], -1)
    stats = feed(ids, 8, [])
    np.testing.assert_array_equal(stats.counts, [[32] + [0] * 7, [4] * 8])
    assert stats.metrics()["usage"] == 9 / 16 and stats.metrics()["perplexity"] == pytest.approx(np.sqrt(8))
    assert stats.top(2) == [(0, 0, 32), (1, 0, 4)]


@pytest.mark.parametrize("ids", [np.full((1, 2, 1), 16), np.full((1, 2, 1), -1), np.zeros((1, 2, 2), int)])
def test_ids_outside_the_codebook_are_refused(ids):
    with pytest.raises(ValueError, match="token ids"):
        CodebookStats(16).update(ids)
