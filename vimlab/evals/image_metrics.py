"""Per-example distances between two batches of images: MSE, MAE, PSNR, SSIM, MS-SSIM. All f32[B,H,W,3] in [0,1] → f32[B]."""

import jax
import jax.numpy as jnp
import numpy as np

# Exact reconstructions have no finite PSNR; 1e-10 is below every non-zero error of 8-bit images up to 220 pixels square.
SMALLEST_MSE = 1e-10
SSIM_SIGMA, SSIM_RADIUS, SSIM_K1, SSIM_K2 = 1.5, 5, 0.01, 0.03
# From the finest scale to the coarsest, each half the size of the one before.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# Smaller images do not fill the window at the coarsest scale.
MS_SSIM_SMALLEST = 2 * SSIM_RADIUS * 2 ** (len(MS_SSIM_WEIGHTS) - 1) + 1


def mse(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error over pixels and channels."""
    return jnp.square(x - y).mean((1, 2, 3))


def mae(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean absolute error over pixels and channels."""
    return jnp.abs(x - y).mean((1, 2, 3))


def psnr_of_mse(error: jax.Array | float) -> jax.Array:
    """Decibels of a mean squared error at data range 1; at most 100."""
    return -10 * jnp.log10(jnp.maximum(error, SMALLEST_MSE))


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of each image, in dB, at most 100.

    The figure of a set is either the mean of these or the PSNR of the set's mean MSE (`psnr_of_mse`), which is never
    the larger (Jensen); papers give either.
    """
    return psnr_of_mse(mse(x, y))


def ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    """Structural similarity (Wang et al. 2004): 11x11 Gaussian of sigma 1.5, population covariance, mean over the valid
    region and then over channels, data range 1.

    Raises:
      ValueError: images smaller than the window.
    """
    size = 2 * SSIM_RADIUS + 1
    if min(x.shape[1:3]) < size:
        raise ValueError(f"SSIM needs images of at least {size}x{size} pixels, not {x.shape[1]}x{x.shape[2]}")
    luminance, structure = _similarity(x, y)
    return (luminance * structure).mean((1, 2, 3))


def ms_ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multi-scale structural similarity ("Multiscale Structural Similarity for Image Quality Assessment", Wang et al., 2003):
    SSIM's window at five scales, each the last one's means over 2x2 squares, an odd border repeated.

    The means over the valid region of contrast times structure, at the coarsest scale of the whole SSIM, are raised to the
    paper's weights and multiplied; a negative mean, which has no such root, counts as 0. Then the mean over channels.

    Raises:
      ValueError: a side of 160 pixels or less, on which the coarsest scale does not fill the window.
    """
    if min(x.shape[1:3]) < MS_SSIM_SMALLEST:
        raise ValueError(f"MS-SSIM needs sides of at least {MS_SSIM_SMALLEST} pixels, not {x.shape[1]}x{x.shape[2]}")
    product = jnp.ones((x.shape[0], x.shape[3]))
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        x, y = (_halve(x), _halve(y)) if scale else (x, y)
        luminance, structure = _similarity(x, y)
        coarsest = scale == len(MS_SSIM_WEIGHTS) - 1
        mean = (luminance * structure if coarsest else structure).mean((1, 2))
        product *= jnp.maximum(mean, 0) ** weight
    return product.mean(1)


def _similarity(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Luminance, and contrast times structure, at every place where the window fits: f32[B,H-10,W-10,C] each."""
    # Variances come from E[x²] - E[x]²: taking a common offset off first keeps f32 exact enough in flat, bright areas.
    offset = (x + y).mean((1, 2), keepdims=True) / 2
    a, b = x - offset, y - offset
    mean_a, mean_b, aa, bb, ab = (_blur(v) for v in (a, b, a * a, b * b, a * b))
    mean_x, mean_y = mean_a + offset, mean_b + offset
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    structure = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, structure


def _blur(x: jax.Array) -> jax.Array:
    """Gaussian window over the valid region: f32[B,H,W,C] → f32[B,H-10,W-10,C]."""
    # Two products with band matrices: faster than a convolution of single planes, on CPUs by far.
    rows, columns = _band(x.shape[1]), _band(x.shape[2])
    return jnp.einsum("bhwc,hi,wj->bijc", x, rows, columns, precision=jax.lax.Precision.HIGHEST)


def _halve(x: jax.Array) -> jax.Array:
    """Means over 2x2 squares: f32[B,H,W,C] → f32[B,⌈H/2⌉,⌈W/2⌉,C]."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")
    x = (x[:, ::2] + x[:, 1::2]) / 2
    return (x[:, :, ::2] + x[:, :, 1::2]) / 2


def _band(size: int) -> np.ndarray:
    """f32[size, size-10]: column j holds the window's weights around pixel j + 5."""
    distance = np.arange(size)[:, None] - np.arange(SSIM_RADIUS, size - SSIM_RADIUS)
    weights = np.where(np.abs(distance) <= SSIM_RADIUS, np.exp(-0.5 * (distance / SSIM_SIGMA) ** 2), 0)
    return (weights / weights.sum(0)).astype(np.float32)
