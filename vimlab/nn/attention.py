"""Attention layers, over whole sequences and one position at a time: the same parameters, the same numbers."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike

from vimlab.nn.attend import attention
from vimlab.nn.layers import product, weight
from vimlab.nn.masks import Mask
from vimlab.parallel.rules import constrain


@flax.struct.dataclass
class KeyValues:
    """Keys and values of some positions, f[B,H,S,D] each."""

    k: jax.Array
    v: jax.Array


@flax.struct.dataclass
class Memory:
    """What a decoder reads across to: keys and values of one layer, and how many positions of each row there are.

    Attributes:
      kv: of M rows; queries of B rows read them in equal groups, row b reading memory b // (B // M).
      lengths: i32[M].
    """

    kv: KeyValues
    lengths: jax.Array


@flax.struct.dataclass
class Slot:
    """Where the one position of an incremental pass stands among a layer's cached ones.

    Attributes:
      index: i32[], where its keys and values are written.
      visible: bool[S], which of the S cached positions it sees; itself among them.
    """

    index: jax.Array
    visible: jax.Array


def attention_to_cache(q: jax.Array, kv: KeyValues, visible: jax.Array) -> jax.Array:
    """Attention of f[B,H,T,D] to cached positions where `visible`, bool[S] or bool[B,S]; softmax in f32. → f[B,H,T,D]."""
    logits = jnp.einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, kv.k, preferred_element_type=jnp.float32)
    visible = visible if visible.ndim == 1 else visible[:, None, None]
    shares = jax.nn.softmax(jnp.where(visible, logits, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.einsum("bhts,bhsd->bhtd", shares.astype(kv.v.dtype), kv.v)


class _Attention(nn.Module):
    """What both kinds share: the fields, products to heads, and the product back.

    Attributes:
      width: of the sequences.
      heads: number of heads; must divide the width.
      dtype: compute type.
      use_bias: whether the products have biases.
      masks: the kinds of masks that layers of this stack have; none sees everything.
      backend: of `vimlab.nn.attend.attention`.
    """

    width: int
    heads: int
    dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    masks: tuple[Mask, ...] = ()
    backend: str = "xla"

    def into(self, name: str, count: int) -> tuple[jax.Array, jax.Array | None]:
        """Weight and bias of `count` products to heads in one; each head's columns start as a (width, width) matrix's do."""
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} does not divide into {self.heads} heads")
        d = self.width // self.heads
        init = initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=0, out_axis=(2, 3), batch_axis=(1,))
        w = weight(self, name, (self.width, count, self.heads, d), ("embed", None, "heads", "head_dim"), init)
        if not self.use_bias:
            return w, None
        return w, weight(self, name + "_bias", (count, self.heads, d), (None, "heads", "head_dim"), initializers.zeros)

    def back(self) -> tuple[jax.Array, jax.Array | None]:
        """Weight and bias of the product from heads."""
        init = initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1), out_axis=2)
        shape = (self.heads, self.width // self.heads, self.width)
        w = weight(self, "out", shape, ("heads", "head_dim", "embed"), init)
        return w, weight(self, "out_bias", (self.width,), ("vector",), initializers.zeros) if self.use_bias else None

    def to_heads(self, x: jax.Array, weights: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        """f[B,L,width] → f[count,B,H,L,D]."""
        w, b = weights
        # Asked for "nbhlk" at once, einsum puts w on the left, and CPUs then transpose the weights at every position decoded. Heads
        # lie side by side in what the backward pass keeps of it, for a TPU fills a last dimension of 64 up to 128.
        y = product(x.astype(self.dtype), w.astype(self.dtype).reshape(*w.shape[:2], -1))
        y = y.reshape(*y.shape[:3], *w.shape[2:]).transpose(2, 0, 3, 1, 4)
        if b is not None:
            y += b.astype(self.dtype)[:, None, :, None]
        return constrain(y, None, "batch", "act_heads", "length", "act_head_dim")

    def from_heads(self, y: jax.Array, weights: tuple[jax.Array, jax.Array | None]) -> jax.Array:
        """f[B,H,L,D] → f[B,L,width]."""
        w, b = weights
        # Said again: what follows is split by position, and attention would be, too.
        y = constrain(y, "batch", "act_heads", "length", "act_head_dim")
        y = product(y.swapaxes(1, 2), w.astype(self.dtype), 2)
        return y if b is None else y + b.astype(self.dtype)


class SelfAttention(_Attention):
    """Multi-head self-attention; see _Attention for the fields."""

    def setup(self) -> None:
        self.qkv, self.out = self.into("qkv", 3), self.back()

    def __call__(
        self,
        x: jax.Array,
        lengths: jax.Array | None = None,
        kind: jax.Array | None = None,
        cache: KeyValues | None = None,
        slot: Slot | None = None,
    ) -> tuple[jax.Array, KeyValues]:
        """Attends within x, or, with a cache, from its one position to those before it.

        Args:
          x: f[B,L,width]; L = 1 with a cache.
          lengths: i32[B], the positions of each row that are real; all by default.
          kind: i32[], which of `masks` holds, where there are several.
          cache, slot: what the positions before left, and the place of this one.

        Returns:
          f[B,L,width], and the keys and values of x, or the cache with them written into it.
        """
        q, k, v = self.to_heads(x, self.qkv)
        if cache is None:
            kv = KeyValues(k, v)
            attend = lambda mask: lambda: attention(q, k, v, mask=mask, lengths=lengths, backend=self.backend)
            if len(self.masks) > 1:
                y = jax.lax.switch(kind, [attend(mask) for mask in self.masks])
            else:
                y = attend(self.masks[0] if self.masks else None)()
        else:
            put = lambda old, new: jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, 0, slot.index, 0))
            kv = KeyValues(put(cache.k, k), put(cache.v, v))
            y = attention_to_cache(q, kv, slot.visible)
        return self.from_heads(y, self.out), kv


class CrossAttention(_Attention):
    """Multi-head attention to a memory; see _Attention for the fields."""

    def setup(self) -> None:
        self.q, self.kv, self.out = self.into("q", 1), self.into("kv", 2), self.back()

    def __call__(self, x: jax.Array, memory: jax.Array | Sequence[Memory], lengths: jax.Array | None = None) -> jax.Array:
        """f[B,L,width] → f[B,L,width].

        Args:
          x: of the queries.
          memory: f[B,M,width] with `lengths` i32[B]; or, in an incremental pass, one Memory for each of G branches, whose
            rows of x are interleaved: row b·G + g reads the g-th.
        """
        q = self.to_heads(x, self.q)[0]
        if isinstance(memory, jax.Array):
            k, v = self.to_heads(memory, self.kv)
            y = attention(q, k, v, lengths=lengths, backend="xla")
        else:
            branches = q.reshape(-1, len(memory), *q.shape[1:])
            y = jnp.stack([_grouped(branches[:, g], m) for g, m in enumerate(memory)], 1).reshape(q.shape)
        return self.from_heads(y, self.out)

    def read(self, memory: jax.Array) -> KeyValues:
        """Keys and values of a memory f[M,S,width], computed once for all positions."""
        return KeyValues(*self.to_heads(memory, self.kv))


def _grouped(q: jax.Array, memory: Memory) -> jax.Array:
    """Attention of f[B,H,L,D] to a memory that groups of rows share; one product for a group, not one a row."""
    b, h, length, d = q.shape
    rows, size = len(memory.lengths), memory.kv.k.shape[2]
    q = q.reshape(rows, b // rows, h, length, d).swapaxes(1, 2).reshape(rows, h, -1, d)
    y = attention_to_cache(q, memory.kv, jnp.arange(size) < memory.lengths[:, None])
    return y.reshape(rows, h, b // rows, length, d).swapaxes(1, 2).reshape(b, h, length, d)
