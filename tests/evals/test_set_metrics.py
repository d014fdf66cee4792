"""Kernel distance, Inception Score, precision, recall, density and coverage: against plain NumPy in f64, and torch-fidelity's
stored answers (tools/known_answers/sets.py); what noise and missing modes do to them."""

import pathlib
import sys

import numpy as np
import pytest

from vimlab.config import ConfigError
from vimlab.evals.inception_score import inception_score
from vimlab.evals.kernel_distance import kernel_distance
from vimlab.evals.manifold import manifold_metrics

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/known_answers"))

import sets  # noqa: E402


def draw(seed: int, count: int, dimensions: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32) + 3


def test_torch_fidelitys_answers():
    compared = sets.check(ROOT / "tests/known_answers/sets.npz")
    assert len(compared) == 8
    assert not [line for line in compared if not line[1] <= line[2]]


def test_kernel_distance_of_whole_sets_is_the_sum_over_pairs():
    x, y = draw(1, 20).astype(np.float64), 1.5 * draw(2, 20).astype(np.float64)
    kernel = lambda a, b: (a @ b / 8 + 1) ** 3
    within = lambda z: np.mean([kernel(z[i], z[j]) for i in range(20) for j in range(20) if i != j])
    expected = within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    mean, deviation = kernel_distance(x, y, subsets=3, subset_size=20)
    assert mean == pytest.approx(expected, rel=1e-10) and deviation == pytest.approx(0, abs=1e-10)


def test_kernel_distance_has_no_bias_and_grows_with_noise():
    x, y = draw(1, 600) - 3, draw(2, 600) - 3
    noise = np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    alike, *noisy = (kernel_distance(x + a * noise, y, subsets=20, subset_size=300)[0] for a in (0, 1, 2, 3))
    assert abs(alike) < 0.1 * noisy[0] and noisy == sorted(noisy)


def test_inception_score_in_closed_form():
    """Sure of each image, all K classes alike: K. Nothing known of any image: 1."""
    sure = 1000 * np.eye(8, dtype=np.float32)[np.arange(160) % 8]
    assert inception_score(np.split(sure, 5), 160, splits=4, seed=None) == (pytest.approx(8), pytest.approx(0))
    assert inception_score(np.split(sure, 5), 160, splits=1)[0] == pytest.approx(8)
    assert inception_score([np.zeros((20, 8), np.float32)], 20) == (pytest.approx(1), pytest.approx(0))
    one_class_a_split = sure[np.argsort(np.arange(160) % 8, kind="stable")]
    assert inception_score([one_class_a_split], 160, splits=8, seed=None)[0] == pytest.approx(1)
    assert inception_score([one_class_a_split], 160, splits=8)[0] > 4


def by_hand(samples: np.ndarray, reference: np.ndarray, k: int = 3, dense: int = 5) -> dict[str, float]:
    """All distances at once, in f64."""
    distances = lambda x, y: np.linalg.norm(x[:, None].astype(np.float64) - y[None], axis=-1)
    across = distances(samples, reference)
    of_samples, of_reference = np.sort(distances(samples, samples)), np.sort(distances(reference, reference))
    return {
        "precision": (across <= of_reference[:, k]).any(1).mean(),
        "recall": (across.T <= of_samples[:, k]).any(1).mean(),
        "density": (across < of_reference[:, dense]).sum(1).mean() / dense,
        "coverage": (across.min(0) < of_reference[:, dense]).mean(),
    }


def test_manifold_metrics_are_those_of_all_distances_at_once(tmp_path):
    samples, reference = 30 + 1.2 * draw(1, 90), 30 + draw(2, 130)
    expected = by_hand(samples, reference)
    assert 0 < min(expected.values()) and expected["precision"] < 1 and expected["recall"] < 1
    assert manifold_metrics(samples, reference) == pytest.approx(expected, abs=1e-12)
    # In blocks, the last of either set half full, from files.
    on_disk = []
    for name, x in (("samples", samples), ("reference", reference)):
        np.save(tmp_path / f"{name}.npy", x)
        on_disk.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    assert manifold_metrics(*on_disk, block=40) == pytest.approx(expected, abs=1e-12)


def test_the_surface_of_a_ball_counts_for_precision_and_recall_alone():
    """Whole numbers on a line, 0 to 20, whose end has its third neighbour at 3; a sample lies there, the others far off."""
    line, far = np.arange(21.0), 1000 + 50 * np.arange(6.0)
    column = lambda x: np.stack([x, 0 * x], 1).astype(np.float32)
    found = manifold_metrics(column(np.r_[-3.0, far]), column(line), density_neighbours=3)
    assert found["precision"] == 1 / 7 and found["density"] == found["coverage"] == 0
    assert manifold_metrics(column(line), column(np.r_[-3.0, far]))["recall"] == 1 / 7


def test_manifold_metrics_of_a_set_with_itself():
    x = draw(1, 100)
    assert manifold_metrics(x, x) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_noise_lowers_precision_and_missing_modes_lower_recall():
    random = np.random.default_rng(1)
    modes, labels = 8 * random.normal(size=(5, 8)), np.arange(300)
    of_modes = lambda kept: (modes[labels % kept] + random.normal(size=(300, 8))).astype(np.float32)
    reference, samples, noise = of_modes(5), of_modes(5), random.normal(size=(300, 8)).astype(np.float32)
    noisy = [manifold_metrics(samples + amount * noise, reference) for amount in (0, 1, 3)]
    dropped = [manifold_metrics(of_modes(kept), reference) for kept in (5, 3, 1)]
    for figures, names in ((noisy, ("precision", "density")), (dropped, ("recall", "coverage"))):
        for name in names:
            assert np.all(np.diff([found[name] for found in figures]) < -0.1), (name, figures)
    assert dropped[-1]["recall"] < 0.25 and dropped[-1]["precision"] > 0.8


def test_what_is_refused():
    x = draw(1, 50)
    with pytest.raises(ConfigError, match="subsets of 1000 needs the features of at least 1000 images in the samples, but was given 50"):
        kernel_distance(x, x)
    with pytest.raises(ConfigError, match="at least 6 images in the reference, but was given 5"):
        manifold_metrics(x, x[:5])
    with pytest.raises(ConfigError, match="features of 8 numbers and the reference of 7"):
        manifold_metrics(x, x[:, :7])
    with pytest.raises(ConfigError, match="features of the reference hold numbers that are not finite"):
        kernel_distance(x, np.full_like(x, np.inf), subset_size=10)
    with pytest.raises(ConfigError, match="over 10 splits needs at least 20 images, but was given 19"):
        inception_score([x[:19]], 19)
    for parts in ([x[:30]], [x, x[:1]]):
        with pytest.raises(ConfigError, match="of 50 images"):
            inception_score(parts, 50)
    with pytest.raises(ConfigError, match="not finite"):
        inception_score([np.full_like(x, np.nan)], 50)
