"""The tokenizer: encoder, projection, quantizer, decoder; images to tokens and back."""

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from vimlab.config import ConfigError
from vimlab.losses.reconstruction import logit_laplace_image
from vimlab.nn.layers import Linear
from vimlab.nn.transformer import REMAT_POLICIES
from vimlab.tokenizers.quantizers import Quantized, VectorQuantizer, VectorQuantizerConfig, quantizer_params
from vimlab.tokenizers.sizes import SMALL, ViTSize
from vimlab.tokenizers.vit import Positions, Tower, patchify, tower_flops, tower_params, unpatchify
from vimlab.tokens import Tokens, TokenSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A ViT tokenizer.

    Attributes:
      image_size: height and width of the images, in pixels.
      patch: height and width of a patch; one token each.
      encoder, decoder: sizes of the towers.
      positions: 'sincos' (fixed, 2-D) or 'learned'.
      output: what the decoder predicts: 'rgb' in [0,1] without a squashing function, or 'logit_laplace' (three means
        and three log scales; needed by the logit-Laplace loss).
      laplace_epsilon: the logit-Laplace map of pixels to [epsilon, 1 - epsilon].
      quantizer: the codebook.
      remat: what the backward pass of the towers keeps: 'none', 'dots' or 'full'.
      unroll: transformer blocks per step of the scan over them.
    """

    image_size: int = 256
    patch: int = 8
    encoder: ViTSize = SMALL
    decoder: ViTSize = SMALL
    positions: Positions = "sincos"
    output: Literal["rgb", "logit_laplace"] = "logit_laplace"
    laplace_epsilon: float = 0.1
    quantizer: VectorQuantizerConfig = VectorQuantizerConfig()
    remat: Literal["none", "dots", "full"] = "dots"
    unroll: int = 1

    def __post_init__(self) -> None:
        if self.patch < 1 or self.image_size % self.patch:
            raise ConfigError(f"image_size {self.image_size} is not a multiple of patch {self.patch}")
        for name, size in (("encoder", self.encoder), ("decoder", self.decoder)):
            if size.width % size.heads:
                raise ConfigError(f"{name}.width {size.width} does not divide into {size.heads} heads")
            if self.positions == "sincos" and size.width % 4:
                raise ConfigError(f"{name}.width {size.width} must be a multiple of 4 for sine-cosine positions")
        assert self.remat in REMAT_POLICIES

    @property
    def spec(self) -> TokenSpec:
        """What this tokenizer's tokens look like."""
        side = self.image_size // self.patch
        return TokenSpec(grid=(side, side), codes=self.quantizer.codes)

    @property
    def channels(self) -> int:
        """Values that the decoder predicts per pixel."""
        return 6 if self.output == "logit_laplace" else 3

    def make(self, dtype: DTypeLike = jnp.float32) -> "Tokenizer":
        """The module, computing its matrix products in `dtype`."""
        spec, pixels = self.spec, self.patch**2
        tower = lambda size, features, in_axis, out_axis: Tower(
            grid=spec.grid, **dataclasses.asdict(size), features=features, positions=self.positions, remat=self.remat,
            unroll=min(self.unroll, size.depth), dtype=dtype, in_axis=in_axis, out_axis=out_axis,
        )
        return Tokenizer(
            spec=spec,
            patch=self.patch,
            encoder=tower(self.encoder, self.encoder.width, "pixels", "embed"),
            quantizer=VectorQuantizer(**dataclasses.asdict(self.quantizer)),
            decoder=tower(self.decoder, pixels * self.channels, "code_dim", "pixels"),
            laplace_epsilon=self.laplace_epsilon if self.output == "logit_laplace" else None,
        )

    def param_count(self) -> int:
        """Parameters of the module, counted from the architecture."""
        args = lambda size: (self.spec.grid, size.depth, size.width, size.mlp)
        q = self.quantizer
        encoder = tower_params(*args(self.encoder), 3 * self.patch**2, self.encoder.width, self.positions)
        decoder = tower_params(*args(self.decoder), q.dim, self.channels * self.patch**2, self.positions)
        return encoder + (self.encoder.width + 1) * q.dim + quantizer_params(q.codes, q.dim, q.bank) + decoder

    def flops(self) -> int:
        """Forward FLOPs of encoder, code search and decoder on one image."""
        size = self.decoder
        return self.encode_flops() + tower_flops(self.spec.grid, size.depth, size.width, size.mlp, self.quantizer.dim, self.channels * self.patch**2)

    def encode_flops(self) -> int:
        """Forward FLOPs of encoder and code search on one image."""
        n, q, size = self.spec.length, self.quantizer, self.encoder
        encoder = tower_flops(self.spec.grid, size.depth, size.width, size.mlp, 3 * self.patch**2, size.width)
        return encoder + 2 * n * size.width * q.dim + 2 * n * q.codes * q.dim


@flax.struct.dataclass
class Autoencoded:
    """One pass through the tokenizer.

    Attributes:
      images: f32[B,H,W,3], reconstructions; around [0,1], not clipped for 'rgb'.
      laplace: (mean, log scale), each f32[B,H,W,3] in logit space; None for 'rgb'.
      quantized: the quantizer's result; None where tokens were decoded.
    """

    images: jax.Array
    laplace: tuple[jax.Array, jax.Array] | None
    quantized: Quantized | None


class Tokenizer(nn.Module):
    """Images f32[B,H,W,3] in [0,1] to tokens and back.

    Attributes:
      spec: the tokens' TokenSpec.
      patch: side of a patch in pixels.
      encoder, quantizer, decoder: the parts.
      laplace_epsilon: epsilon of the logit-Laplace map; None where the decoder predicts colours directly.
    """

    spec: TokenSpec
    patch: int
    encoder: Tower
    quantizer: VectorQuantizer
    decoder: Tower
    laplace_epsilon: float | None = None

    def setup(self) -> None:
        # The factorised codes' projection; its counterpart is the decoder's first layer.
        self.project = Linear(self.quantizer.dim, ("embed", "code_dim"))

    def __call__(self, images: jax.Array) -> Autoencoded:
        """Encodes, quantizes and decodes: f32[B,H,W,3] → Autoencoded."""
        quantized = self.quantize(images)
        return self._decode(quantized.vectors, quantized)

    def latents(self, images: jax.Array) -> jax.Array:
        """Latents as the quantizer receives them: f32[B,H,W,3] → f32[B,N,C]."""
        return self.project(self.encoder(patchify(2 * images - 1, self.patch)))

    def quantize(self, images: jax.Array) -> Quantized:
        """What the quantizer makes of pictures f32[B,H,W,3]."""
        return self.quantizer(self.latents(images))

    def encode(self, images: jax.Array) -> Tokens:
        """The tokens of pictures f32[B,H,W,3]."""
        return Tokens(self.quantize(images).ids, self.spec)

    def decode(self, tokens: Tokens) -> jax.Array:
        """Pictures of tokens: f32[B,H,W,3] in [0,1]. Raises ValueError on tokens of another kind of tokenizer."""
        if tokens.spec != self.spec:
            raise ValueError(f"these tokens are {tokens.spec}, but this tokenizer's are {self.spec}")
        return self._decode(self.quantizer.lookup(tokens.ids)).images.clip(0, 1)

    def _decode(self, vectors: jax.Array, quantized: Quantized | None = None) -> Autoencoded:
        pixels = unpatchify(self.decoder(vectors), self.spec.grid, self.patch)
        if self.laplace_epsilon is None:
            # Mid-grey is where training starts.
            return Autoencoded(pixels + 0.5, None, quantized)
        mean, log_scale = jnp.split(pixels, 2, axis=-1)
        return Autoencoded(logit_laplace_image(mean, self.laplace_epsilon), (mean, log_scale), quantized)
