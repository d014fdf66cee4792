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
