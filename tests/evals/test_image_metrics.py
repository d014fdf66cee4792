"""Image metrics against scikit-image on real photographs, and in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from vimlab.evals import image_metrics


@pytest.fixture(scope="module")
def pair(shared_data) -> tuple[jax.Array, jax.Array]:
    """Five photographs (the last nearly white) and blurred copies of them, f32[5,48,64,3] each."""
    files = sorted((shared_data / "imagenet_sample").rglob("*.JPEG"))[:4]
    images = [Image.open(f).convert("RGB").resize((64, 48)) for f in files]
    images.append(Image.fromarray(255 - np.asarray(images[0]) // 32))
    spoiled = [i.resize((16, 12)).resize((64, 48)) for i in images]
    return tuple(jnp.stack([np.asarray(i, np.float32) / 255 for i in group]) for group in (images, spoiled))


def skimage_ssim(x, y):
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1, data_range=1)
    return structural_similarity(np.asarray(x, np.float64), np.asarray(y, np.float64), **options)


def test_ssim_is_scikit_images(pair):
    expected = [skimage_ssim(x, y) for x, y in zip(*pair, strict=True)]
    np.testing.assert_allclose(jax.jit(image_metrics.ssim)(*pair), expected, atol=1e-5)
    assert max(expected) - min(expected) > 0.01


def test_mse_mae_psnr_are_scikit_images(pair):
    x, y = pair
    x64, y64 = (np.asarray(v, np.float64) for v in pair)
    np.testing.assert_allclose(
        image_metrics.mse(x, y), [mean_squared_error(a, b) for a, b in zip(x64, y64, strict=True)], rtol=1e-5
    )
    np.testing.assert_allclose(image_metrics.mae(x, y), np.abs(x64 - y64).reshape(5, -1).mean(1), rtol=1e-5)
    expected = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(x64, y64, strict=True)]
    np.testing.assert_allclose(image_metrics.psnr(x, y), expected, atol=1e-4)


def test_equal_images(pair):
    x, _ = pair
    np.testing.assert_allclose(image_metrics.ssim(x, x), 1, atol=1e-6)
    np.testing.assert_allclose(image_metrics.psnr(x, x), 100, atol=1e-4)
    assert not np.asarray(image_metrics.mse(x, x)).any()


def test_ssim_of_flat_images_in_closed_form():
    a, b = jnp.full((1, 16, 16, 3), 0.25), jnp.full((1, 16, 16, 3), 0.75)
    expected = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    np.testing.assert_allclose(image_metrics.ssim(a, b), expected, rtol=1e-5)


def test_ssim_refuses_images_under_its_window():
    with pytest.raises(ValueError, match="11x11"):
        image_metrics.ssim(jnp.zeros((1, 10, 32, 3)), jnp.zeros((1, 10, 32, 3)))


def plain_ms_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Of two pictures of one channel, in f64: a window at a time, as the paper writes it."""
    distance = np.square(np.arange(-5, 6)) / (2 * 1.5**2)
    window = np.exp(-(distance[:, None] + distance[None]))
    window /= window.sum()
    result = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        if scale:
            x, y = (np.pad(v, [(0, n % 2) for n in v.shape], "symmetric") for v in (x, y))
            x, y = (v.reshape(v.shape[0] // 2, 2, v.shape[1] // 2, 2).mean((1, 3)) for v in (x, y))
        a, b = (np.lib.stride_tricks.sliding_window_view(v, (11, 11)) for v in (x, y))
        weigh = lambda v: np.einsum("hwij,ij->hw", v, window)  # noqa: B023
        ma, mb = weigh(a), weigh(b)
        va, vb = weigh((a - ma[..., None, None]) ** 2), weigh((b - mb[..., None, None]) ** 2)
        both = weigh((a - ma[..., None, None]) * (b - mb[..., None, None]))
        terms = (2 * both + 0.03**2) / (va + vb + 0.03**2)
        if scale == 4:
            terms = terms * (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
        result *= max(terms.mean(), 0) ** weight
    return result


def test_ms_ssim_is_the_papers():
    """Sides that stay even and sides that do not; slightly blurred, noisy, and a negative, whose covariance is negative."""
    random = np.random.default_rng(0)
    x = np.asarray(Image.fromarray(random.integers(256, size=(12, 14, 3), dtype=np.uint8)).resize((176, 163), Image.BICUBIC)) / 255
    noisy = np.clip(x + 0.1 * random.normal(size=x.shape), 0, 1)
    batch = [np.stack(v).astype(np.float32) for v in ([x, x, x, x], [x, noisy, 0.8 * noisy, 1 - x])]
    found = np.asarray(jax.jit(image_metrics.ms_ssim)(*batch))
    expected = [np.mean([plain_ms_ssim(a[..., c], b[..., c]) for c in range(3)]) for a, b in zip(*batch, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found[0] == pytest.approx(1, abs=1e-5) and 1 > found[1] > found[2] > 0.5 > found[3]


def test_ms_ssim_refuses_images_under_its_coarsest_window():
    with pytest.raises(ValueError, match="at least 161"):
        image_metrics.ms_ssim(jnp.zeros((1, 160, 200, 3)), jnp.zeros((1, 160, 200, 3)))
