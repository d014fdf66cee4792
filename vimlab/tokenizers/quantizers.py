"""Quantizers: latents to codes of a codebook and back, in f32."""

import dataclasses
from typing import ClassVar, Literal

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from vimlab.losses.codebook import Reduction, codebook_loss, entropy_loss
from vimlab.nn.layers import LayerNorm, weight
from vimlab.tokenizers.code_search import nearest_codes


@flax.struct.dataclass
class Quantized:
    """What a quantizer returns.

    Attributes:
      vectors: f32[B,N,C], the chosen codes; gradients reach the latents by the quantizer's estimator.
      ids: i32[B,N,G].
      latents: f32[B,N,C], the latents as they were compared with the codes.
      losses: {name: f32[B]}, per example; the entropy term, which is the batch's, stands at every example and is weighted.
    """

    vectors: jax.Array
    ids: jax.Array
    latents: jax.Array
    losses: dict[str, jax.Array]


def mean_latents(quantized: Quantized) -> dict[str, jax.Array]:
    """Means over positions of the latents and of the codes in their place: {"latents", "quantized": f32[B,C]}."""
    return {"latents": quantized.latents.mean(1), "quantized": quantized.vectors.mean(1)}


def l2_normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """`x / |x|` over the last dimension, with a finite gradient at zero."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + epsilon)


def straight_through(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """Codes forward, the identity backward."""
    return latents + jax.lax.stop_gradient(codes - latents)


def rotate_through(latents: jax.Array, codes: jax.Array) -> jax.Array:
    """Codes forward; backward the gradient turned and scaled as the latent was turned into its code.

    The rotation trick ("Restructuring Vector Quantization with the Rotation Trick", section 4).
    """
    z, q = jax.lax.stop_gradient((latents, codes))
    z_unit, q_unit = l2_normalize(z), l2_normalize(q)
    mid = l2_normalize(z_unit + q_unit)
    scale = jnp.linalg.norm(q, axis=-1, keepdims=True) / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-12)
    dot = lambda a: (a * latents).sum(-1, keepdims=True)
    return scale * (latents - 2 * mid * dot(mid) + 2 * q_unit * dot(z_unit))


ESTIMATORS = {"straight_through": straight_through, "rotation": rotate_through}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorQuantizerConfig:
    """Settings of `VectorQuantizer`; see there."""

    NAME: ClassVar[str] = "vq"
    codes: int = 8192
    dim: int = 32
    normalize: bool = True
    layer_norm: bool = True
    beta: float = 0.25
    reduction: Reduction = "mean"
    estimator: Literal["straight_through", "rotation"] = "straight_through"
    bank: Literal["free", "linear"] = "free"
    entropy: float = 0.0
    entropy_temperature: float = 0.1


class VectorQuantizer(nn.Module):
    """Nearest-code quantization, by default with unit codes and latents (the paper's section 3.2).

    Attributes:
      codes, dim: size of the codebook.
      normalize: whether latents and codes are brought to unit length before they are compared.
      layer_norm: a LayerNorm without scale and bias before that; keeps the latents' norm from growing without bound.
      beta, reduction: of the codebook loss.
      estimator: how gradients pass the rounding, a key of ESTIMATORS.
      bank: 'free' codes each have their own parameters; 'linear' codes are one trained linear map of a fixed Gaussian
        bank, so that every code moves with every step ("Addressing Representation Collapse in Vector Quantized Models
        with One Linear Layer").
      entropy, entropy_temperature: weight and temperature of the entropy loss; 0 leaves it out.
    """

    codes: int
    dim: int
    normalize: bool = True
    layer_norm: bool = True
    beta: float = 0.25
    reduction: Reduction = "mean"
    estimator: str = "straight_through"
    bank: str = "free"
    entropy: float = 0.0
    entropy_temperature: float = 0.1

    def setup(self) -> None:
        if self.bank == "linear":
            self.map = weight(self, "map", (self.dim, self.dim), (None, "code_dim"), initializers.orthogonal())
        else:
            self.free = weight(self, "codebook", (self.codes, self.dim), ("codes", "code_dim"), initializers.normal(1.0))
        self.norm = LayerNorm(use_scale=False, use_bias=False)

    def codebook(self) -> jax.Array:
        """The codes as they are compared and looked up: f32[K,C]."""
        if self.bank == "linear":
            fixed = jax.random.normal(jax.random.key(0, impl="threefry2x32"), (self.codes, self.dim))
            table = jnp.matmul(fixed, self.map, precision=jax.lax.Precision.HIGHEST)
        else:
            table = self.free
        return l2_normalize(table) if self.normalize else table

    def __call__(self, latents: jax.Array) -> Quantized:
        """f[B,N,C] → Quantized."""
        z = latents.astype(jnp.float32)
        z = self.norm(z) if self.layer_norm else z
        z = l2_normalize(z) if self.normalize else z
        codebook = self.codebook()
        ids = nearest_codes(*jax.lax.stop_gradient((z, codebook)))
        codes = jnp.take(codebook, ids, axis=0)
        losses = {"codebook": codebook_loss(z, codes, self.beta, self.reduction)}
        if self.entropy:
            losses["entropy"] = jnp.full(z.shape[0], self.entropy * entropy_loss(z, codebook, self.entropy_temperature))
        vectors = ESTIMATORS[self.estimator](z, jax.lax.stop_gradient(codes))
        return Quantized(vectors, ids[..., None], z, losses)

    def lookup(self, ids: jax.Array) -> jax.Array:
        """The codes of i32[B,N,1] ids: f32[B,N,C]."""
        return jnp.take(self.codebook(), ids[..., 0], axis=0)


def quantizer_params(codes: int, dim: int, bank: str = "free") -> int:
    """Parameters of a VectorQuantizer."""
    return dim * dim if bank == "linear" else codes * dim
