"""The Fréchet distance against closed forms and SciPy's matrix root in f64; moments against NumPy; any split gives one figure.

Tolerances are some ten to a hundred times what was measured: moments 3e-16 of the largest entry; distances 4e-15 against closed forms, and
4e-13 between ways of summing, for a distance is a difference of traces a hundred times as large; 2e-11 against SciPy, whose general root
is the less exact of the two.
"""

import numpy as np
import pytest
import scipy.linalg

from vimlab.config import ConfigError
from vimlab.evals.frechet import BLOCK, Gaussian, Moments, frechet_distance


def draw(seed: int, count: int = 400, dimensions: int = 16, noise: float = 0.0) -> np.ndarray:
    """Correlated features f32[count, dimensions], whose mean is far from 0 and whose variances differ much."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(dimensions, dimensions)) * np.geomspace(0.1, 10, dimensions)
    features = 30 + random.normal(size=(count, dimensions)) @ mixing + noise * random.normal(size=(count, dimensions))
    return features.astype(np.float32)


def moments(*parts: np.ndarray) -> Moments:
    sums = Moments(parts[0].shape[1])
    for part in parts:
        sums.add(part)
    return sums


def by_scipy(a: Moments, b: Moments) -> float:
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(np.square(a.mean - b.mean).sum() + traces - 2 * np.trace(root).real)


def test_moments_are_numpys_however_the_set_is_cut():
    features = draw(1, 2 * BLOCK + 700)
    whole = moments(features)
    np.testing.assert_allclose(whole.mean, features.mean(0, dtype=np.float64), rtol=1e-14)
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(whole.covariance, expected, rtol=0, atol=1e-14 * expected.max())
    batches = moments(*np.array_split(features, 97))
    np.testing.assert_array_equal(batches.covariance, whole.covariance)
    # Parts that grow apart, one of them asked for its figures half-way, one empty.
    parts = [moments(features[:1]), Moments(16), moments(features[1:900]), moments(features[900:])]
    assert parts[3].gaussian().mean.shape == (16,)
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].count == len(features)
    np.testing.assert_allclose(parts[0].covariance, whole.covariance, rtol=0, atol=1e-14 * expected.max())
    other = moments(draw(2))
    assert frechet_distance(parts[0], other) == pytest.approx(frechet_distance(whole, other), rel=1e-11)


def test_distance_in_closed_form():
    random = np.random.default_rng(0)
    variances_a, variances_b, shift = random.uniform(0, 3, 30), random.uniform(0, 3, 30), random.normal(size=30)
    diagonal = frechet_distance(Gaussian(shift, np.diag(variances_a)), Gaussian(0 * shift, np.diag(variances_b)))
    assert diagonal == pytest.approx((shift**2).sum() + ((variances_a**0.5 - variances_b**0.5) ** 2).sum(), rel=1e-14)
    equal = moments(draw(1, dimensions=30)).covariance
    assert frechet_distance(Gaussian(shift, equal), Gaussian(3 * shift, equal)) == pytest.approx(4 * (shift**2).sum(), rel=1e-13)
    # Turned alike, two diagonal covariances stay as far apart.
    turn = np.linalg.qr(random.normal(size=(30, 30)))[0]
    turned = [Gaussian(np.zeros(30), turn @ np.diag(v) @ turn.T) for v in (variances_a, variances_b)]
    assert frechet_distance(*turned) == pytest.approx(((variances_a**0.5 - variances_b**0.5) ** 2).sum(), rel=1e-13)


@pytest.mark.parametrize("count", [400, 50])
def test_distance_is_scipys(count):
    a, b = moments(draw(1, count)), moments(draw(2, count, noise=2))
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_distance_of_fewer_images_than_dimensions():
    """50 images in 128 dimensions: the covariances have rank 49. Where the sets lie in the space of one another, SciPy can
    check them there; where they do not meet, the traces alone remain."""
    small_a, small_b = draw(1, 50, 20), draw(2, 50, 20, noise=2)
    spread = np.linalg.qr(np.random.default_rng(0).normal(size=(128, 128)))[0]
    large_a, large_b = (Gaussian(x.mean @ spread[:20], spread[:20].T @ x.covariance @ spread[:20]) for x in map(moments, (small_a, small_b)))
    assert frechet_distance(large_a, large_b) == pytest.approx(by_scipy(moments(small_a), moments(small_b)), rel=1e-9)
    a, b = moments(draw(1, 50, 128)), moments(draw(2, 50, 128))
    root = scipy.linalg.svdvals((draw(1, 50, 128) - a.mean) @ (draw(2, 50, 128) - b.mean).T).sum() / 49
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-13)
    apart = Gaussian(np.zeros(128), spread[20:60].T @ spread[20:60])
    towards = Gaussian(large_b.mean * 0, large_b.covariance)
    assert frechet_distance(apart, towards) == pytest.approx(40 + np.trace(large_b.covariance), rel=1e-12)


def test_distance_of_a_set_to_itself_and_to_constants():
    for features in (draw(1), draw(1, 10, 64)):
        scale = np.trace(moments(features).covariance)
        assert frechet_distance(moments(features), moments(features)) <= 1e-14 * scale
    constant = moments(np.ones((5, 16), np.float32))
    assert frechet_distance(constant, constant) == 0
    assert frechet_distance(constant, moments(draw(1))) == pytest.approx(
        np.square(moments(draw(1)).mean - 1).sum() + np.trace(moments(draw(1)).covariance)
    )


def test_distance_grows_with_noise_and_with_missing_modes():
    random = np.random.default_rng(3)
    modes = 5 * random.normal(size=(6, 16))
    labels = random.integers(6, size=1000)
    features = (modes[labels] + random.normal(size=(1000, 16))).astype(np.float32)
    whole, noise = moments(features), random.normal(size=features.shape).astype(np.float32)
    noisy = [frechet_distance(moments(features + amount * noise), whole) for amount in (0, 0.5, 1, 2)]
    missing = [frechet_distance(moments(features[labels < kept]), whole) for kept in (6, 4, 2, 1)]
    assert np.all(np.diff(noisy) > 0.1) and np.all(np.diff(missing) > 0.1)


def test_what_is_refused():
    with pytest.raises(ConfigError, match="at least 2 images, but was given 1"):
        frechet_distance(moments(draw(1, 1)), moments(draw(1)))
    with pytest.raises(ConfigError, match="16 and of 8 numbers"):
        frechet_distance(moments(draw(1)), moments(draw(1, dimensions=8)))
    with pytest.raises(ConfigError, match="rows of 16 numbers"):
        moments(draw(1)).add(draw(1, dimensions=8))
    with pytest.raises(ConfigError, match="after the first 400 images hold numbers that are not finite"):
        moments(draw(1)).add(np.full((1, 16), np.nan, np.float32))
    with pytest.raises(ConfigError, match="cannot be merged"):
        moments(draw(1)).merge(Moments(8))
    with pytest.raises(ConfigError, match="does not belong"):
        frechet_distance(Gaussian(np.zeros(3), np.eye(2)), Gaussian(np.zeros(2), np.eye(2)))
