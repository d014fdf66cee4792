"""StyleGAN2's residual discriminator (config F of the paper), with minibatch-std over groups of a fixed size."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from vimlab.nn.conv import Conv
from vimlab.parallel.rules import constrain


def channels_at(resolution: int, channel_multiplier: float = 2.0, base_channels: int = 16384, max_channels: int = 512) -> int:
    """Channels of the discriminator at a resolution: base * multiplier / resolution, from 1 to the maximum."""
    return max(1, min(int(base_channels * channel_multiplier / resolution), max_channels))


def minibatch_std(x: jax.Array, group: int) -> jax.Array:
    """Appends one channel: the mean, over positions and channels, of the standard deviation within a group of examples.

    Groups are `group` consecutive examples of the global batch, so the result knows nothing of devices, stays within a
    device whose share of the batch is whole groups, and does not change when real and fake batches are concatenated.
    Progressive GAN, section 3; statistics in f32.

    Args:
      x: [B,H,W,C], B a multiple of `group`.

    Returns:
      [B,H,W,C+1] of x's dtype.

    Raises:
      ValueError: the batch is not whole groups.
    """
    batch, height, width, channels = x.shape
    if batch % group:
        raise ValueError(
            f"a batch of {batch} pictures is not a multiple of the discriminator's minibatch_group of {group}; "
            "choose a batch_size that is one, or another minibatch_group"
        )
    grouped = x.astype(jnp.float32).reshape(batch // group, group, height, width, channels)
    variance = jnp.square(grouped - grouped.mean(1, keepdims=True)).mean(1)
    std = jnp.sqrt(variance + 1e-8).mean((1, 2, 3))
    extra = jnp.broadcast_to(jnp.repeat(std, group)[:, None, None, None], (batch, height, width, 1))
    return jnp.concatenate([x, extra.astype(x.dtype)], -1)


class Discriminator(nn.Module):
    """Pictures → one logit each, larger for "real": f32[B,H,W,3] in [0,1] → f32[B]. Holds no randomness and no statistics.

    "Analyzing and Improving the Image Quality of StyleGAN", section 4.1 and appendix B: each block halves the resolution with a
    residual of two convolutions and a filtered 1x1 skip, down to 4x4; leaky ReLU of slope 0.2, equalised learning rate.

    Attributes:
      image_size: side of the square picture, a power of two of at least 8.
      channel_multiplier: 2 is config F; the others scale every width below `max_channels`.
      base_channels: channels times resolution where `max_channels` does not bind, before the multiplier.
      max_channels: at the lowest resolutions.
      minibatch_group: examples whose standard deviation is shown to the last block; divides the batch size.
      dtype: of the convolutions; filter, statistics and logits are f32.
    """

    image_size: int
    channel_multiplier: float = 2.0
    base_channels: int = 16384
    max_channels: int = 512
    minibatch_group: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        _check_size(self.image_size)
        if images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(
                f"this discriminator takes pictures of shape {(self.image_size, self.image_size, 3)}, not {images.shape[1:]}"
            )
        widths = (self.channel_multiplier, self.base_channels, self.max_channels)

        images = constrain(images, "pictures", "height", "width", "channels")
        x = (2.0 * images.astype(jnp.float32) - 1.0).astype(self.dtype)
        x = _leaky_relu(self._conv(channels_at(self.image_size, *widths), 1, "from_rgb")(x))
        size = self.image_size
        while size > 4:
            x = constrain(x, "pictures", "height", "width", "channels")
            y = _leaky_relu(self._conv(x.shape[-1], 3, f"block{size}_conv0")(x))
            y = _leaky_relu(self._conv(channels_at(size // 2, *widths), 3, f"block{size}_conv1", downsample=True)(y))
            skip = self._conv(y.shape[-1], 1, f"block{size}_skip", downsample=True, use_bias=False)(x)
            x = (y + skip) * math.sqrt(0.5)
            size //= 2

        x = minibatch_std(constrain(x, "pictures", "height", "width", "channels"), self.minibatch_group)
        # One input more than divides by anything: this kernel is split by its outputs alone.
        x = _leaky_relu(self._conv(channels_at(4, *widths), 3, "last_conv", axes=(None, "conv_out_only"))(x))
        x = _leaky_relu(self._conv(x.shape[-1], 4, "dense", padding=0)(x))  # A 4x4 kernel on 4x4 positions: a dense layer.
        logits = Conv(1, 1, equalised=True, name="logit")(x)
        return logits[:, 0, 0, 0]

    def _conv(self, features: int, kernel: int, name: str, **options) -> Conv:
        return Conv(features, kernel, equalised=True, dtype=self.dtype, name=name, **options)


def _leaky_relu(x: jax.Array) -> jax.Array:
    """Slope 0.2, times sqrt(2) so that the variance is kept."""
    return jnp.where(x >= 0, x, 0.2 * x) * math.sqrt(2.0)


def _check_size(image_size: int) -> None:
    if image_size < 8 or image_size & (image_size - 1):
        raise ValueError(f"the discriminator's image_size is {image_size}, but must be a power of two of at least 8")


def discriminator_flops(
    image_size: int, channel_multiplier: float = 2.0, base_channels: int = 16384, max_channels: int = 512
) -> int:
    """Multiply-adds counted as 2 in the convolutions of one picture's forward pass; filters and pointwise work left out."""
    _check_size(image_size)
    at = lambda size: channels_at(size, channel_multiplier, base_channels, max_channels)
    macs = 3 * at(image_size) * image_size**2
    size = image_size
    while size > 4:
        half = (size // 2) ** 2
        macs += 9 * at(size) ** 2 * size**2 + (9 + 1) * at(size) * at(size // 2) * half
        size //= 2
    return 2 * (macs + 9 * (at(4) + 1) * at(4) * 16 + 16 * at(4) ** 2 + at(4))
