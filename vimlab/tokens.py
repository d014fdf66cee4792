"""Tokens, the object that crosses every border: a tokenizer makes them, a generator models them, a sampler draws them."""

import dataclasses
import math

import flax.struct
import jax


@dataclasses.dataclass(frozen=True)
class TokenSpec:
    """What tokens of one tokenizer look like.

    Attributes:
      grid: positions as (height, width); their raster order is the order of `Tokens.ids`.
      codes: entries of the codebook that each sub-code indexes.
      groups: sub-codes per position (1 for plain vector quantization).
    """

    grid: tuple[int, int]
    codes: int
    groups: int = 1

    @property
    def length(self) -> int:
        """Positions per image."""
        return math.prod(self.grid)

    @property
    def bits(self) -> float:
        """Bits per image of a fixed-length code."""
        return self.length * self.groups * math.log2(self.codes)


@flax.struct.dataclass
class Tokens:
    """A batch of token sequences.

    Attributes:
      ids: i32[B, N, G], each in [0, spec.codes).
      spec: the TokenSpec, static under jit.
    """

    ids: jax.Array
    spec: TokenSpec = flax.struct.field(pytree_node=False)
