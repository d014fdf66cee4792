"""What a generator is told: nothing, a class, or a text that an encoder of its own reads; and the null form of each.

A condition reaches the model in two ways: as a prefix, which position 0 reads, and as a memory for cross-attention. The
null form is what takes its place where a condition was dropped, in training and as the other branch of guidance.
"""

import dataclasses
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from vimlab.config import ConfigError
from vimlab.data.text import NULL, PAD
from vimlab.nn.layers import LayerNorm, weight
from vimlab.nn.transformer import Stack


@flax.struct.dataclass
class Condition:
    """A batch of conditions.

    Attributes:
      prefix: f[B,1,width].
      memory: f[B,M,width], or None.
      lengths: i32[B], real positions of the memory, at least 1; None without one.
    """

    prefix: jax.Array
    memory: jax.Array | None = None
    lengths: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoCondition:
    """Unconditional."""

    NAME: ClassVar[str] = "none"
    KEY: ClassVar[str] = "label"  # What of a batch the conditioner is given; here only its size counts.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassCondition:
    """A class as the first token, from a table of its own (ViT-VQGAN, section 3.2)."""

    NAME: ClassVar[str] = "class"
    KEY: ClassVar[str] = "label"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCondition:
    """A text through a transformer encoder of the decoder's width, read by cross-attention (Parti, section 2.1).

    Attributes:
      depth: of the encoder.
    """

    NAME: ClassVar[str] = "text"
    KEY: ClassVar[str] = "text"
    depth: int = 12

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError(f"depth is {self.depth}, but a text encoder needs at least one block")


class Unconditional(nn.Module):
    """A learned start."""

    width: int

    def setup(self) -> None:
        self.start = weight(self, "start", (1, 1, self.width), (None, None, "embed"), initializers.normal(0.02))

    def __call__(self, label: jax.Array, drop: jax.Array | None = None, train: bool = False) -> Condition:
        """label: i32[B], of which only the size counts."""
        return self.null(len(label))

    def null(self, rows: int) -> Condition:
        """The start, `rows` times."""
        return Condition(jnp.broadcast_to(self.start, (rows, 1, self.width)))


class ClassEmbedding(nn.Module):
    """A row of a table for each class, and one for none.

    Attributes:
      classes: how many.
      width: of the model.
    """

    classes: int
    width: int

    def setup(self) -> None:
        self.table = weight(self, "table", (self.classes + 1, self.width), ("vocabulary", "embed"), initializers.normal(0.02))

    def __call__(self, label: jax.Array, drop: jax.Array | None = None, train: bool = False) -> Condition:
        """label: i32[B], negative where there is none; drop: bool[B], whose class is dropped."""
        none = label < 0 if drop is None else drop | (label < 0)
        return Condition(self.table[jnp.where(none, self.classes, label)][:, None])

    def null(self, rows: int) -> Condition:
        """The null condition, `rows` times."""
        return self(jnp.full(rows, -1, jnp.int32))


class TextEncoder(nn.Module):
    """Embedded ids with learned positions, transformer blocks that see the whole text, a last LayerNorm.

    Attributes:
      vocabulary: number of text ids.
      length: of the longest text.
      width: of the model.
      stack: the blocks.
    """

    vocabulary: int
    length: int
    width: int
    stack: Stack

    def setup(self) -> None:
        init = initializers.normal(0.02)
        self.table = weight(self, "table", (self.vocabulary, self.width), ("vocabulary", "embed"), init)
        self.positions = weight(self, "positions", (self.length, self.width), ("positions", "embed"), init)
        self.start = weight(self, "start", (1, 1, self.width), (None, None, "embed"), init)
        self.norm = LayerNorm(use_bias=self.stack.use_bias)

    def __call__(self, text: jax.Array, drop: jax.Array | None = None, train: bool = False) -> Condition:
        """text: i32[B,T] with T up to `length`, padded with PAD; drop: bool[B], whose text is dropped."""
        if drop is not None:
            text = jnp.where(drop[:, None], _null(text.shape), text)
        lengths = jnp.maximum((text != PAD).sum(-1, dtype=jnp.int32), 1)
        x = (self.table[text] + self.positions[: text.shape[1]]).astype(self.stack.dtype)
        memory = self.norm(self.stack(x, None, lengths, train))
        return Condition(jnp.broadcast_to(self.start, (len(text), 1, self.width)), memory, lengths)

    def null(self, rows: int) -> Condition:
        """The null condition, `rows` times; its memory is one position long."""
        return self(_null((rows, 1)))


def _null(shape: tuple[int, int]) -> jax.Array:
    """NULL and then PAD, i32[B,T]."""
    return jnp.broadcast_to(jnp.where(jnp.arange(shape[1]) == 0, NULL, PAD).astype(jnp.int32), shape)
