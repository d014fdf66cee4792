"""The generator one position at a time, against cached keys and values: equal to the parallel pass, position by position."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vimlab.generators.conditioners import Condition
from vimlab.generators.generator import Generator
from vimlab.nn.attention import KeyValues, Memory, Slot
from vimlab.nn.masks import Mask
from vimlab.parallel.rules import constrain

Caches = tuple[KeyValues, ...]
# Into how many stretches decoding is cut, and the fewest positions of one. What attention reads at a position is a whole cache:
# of n stretches, each with caches no longer than it needs, (n + 1) / 2n of what it reads without; n programs are compiled.
STRETCHES, SHORTEST = 4, 64


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a layer caches its positions: all of them, or the prefix and the last `window` of a rolling cache.

    Attributes:
      mask: of the layer.
      rolling: whether only what the mask still reaches is kept, the place of position p at prefix + (p - prefix) mod window.
    """

    mask: Mask
    rolling: bool

    @classmethod
    def of(cls, mask: Mask, rolling: bool = True) -> "Place":
        """The smaller of the two; `rolling=False` keeps all positions in any case."""
        return cls(mask, rolling and mask.offsets is not None and mask.prefix + mask.window + 1 < mask.length)

    @property
    def size(self) -> int:
        """Cached positions."""
        return self.mask.prefix + self.window if self.rolling else self.mask.length

    @property
    def window(self) -> int:
        return self.mask.window + 1

    def slot(self, position: jax.Array, size: int) -> Slot:
        """The place of a position i32[], and what it sees of a cache of this size."""
        if not self.rolling:
            return Slot(position, jnp.asarray(self.mask.allowed()[:, :size])[position])
        prefix, since = self.mask.prefix, position - self.mask.prefix  # `since` is negative within the prefix.
        back = jnp.mod(since - jnp.arange(self.window), self.window)
        near = jnp.asarray(np.isin(np.arange(self.window), self.mask.offsets))[back] & (back <= since)
        seen = jnp.concatenate([jnp.arange(prefix) <= position, near])
        return Slot(jnp.where(since < 0, position, prefix + jnp.mod(since, self.window)), seen)

    def keep(self, kv: KeyValues, count: jax.Array) -> KeyValues:
        """The cache after the first `count` of all positions, from their keys and values f[B,H,L,D]."""
        if not self.rolling:
            return kv
        # The latest position that stands at each place; before there is one, whatever is there is not seen.
        last = count - 1 - self.mask.prefix
        places = jnp.arange(self.window)
        positions = jnp.maximum(last - jnp.mod(last - places, self.window), 0) + self.mask.prefix
        positions = jnp.concatenate([jnp.arange(self.mask.prefix), positions])
        return jax.tree.map(lambda x: x[:, :, positions], kv)


class Incremental:
    """A generator and its parameters, opened inside a traced function for decoding.

    Rows are images times branches, interleaved: row b·G + g is image b under the g-th condition.

    Args:
      generator, params: the model.
      branches: G Conditions of M rows each; images b read condition b // (images // M). One row serves all.
      images: B.
      rolling: whether layers that never look back far keep only what they can see.
    """

    def __init__(self, generator: Generator, params: Any, branches: Sequence[Condition], images: int, rolling: bool = True) -> None:
        self._generator, self._params, self._images, self._branches = generator, params, images, len(branches)
        backbone = generator.backbone
        # Unrolled over layers, each with arrays of its own: a scan would copy its slice of all weights and caches every step.
        narrow = lambda p: p.astype(backbone.dtype) if p.ndim > 2 else p  # Matrices are used in this type alone; cast them once.
        self._layers = [jax.tree.map(lambda p, n=n: narrow(p)[n], params["backbone"]["blocks"]) for n in range(backbone.depth)]
        self._blocks = [backbone.alone(generator.width, n) for n in range(backbone.depth)]
        self._places = [Place.of(block.masks[0], rolling) for block in self._blocks]
        self._prefix = jnp.stack([jnp.repeat(c.prefix, images // len(c.prefix), 0) for c in branches], 1).astype(backbone.dtype)
        self._prefix = self._prefix.reshape(images * len(branches), 1, -1)
        self._memories = [self._read(block, layer, branches) for block, layer in zip(self._blocks, self._layers, strict=True)]

    def _read(self, block: Any, layer: Any, branches: Sequence[Condition]) -> tuple[Memory, ...] | None:
        if branches[0].memory is None:
            return None
        read = lambda c: block.apply({"params": layer}, c.memory, method="read")
        return tuple(Memory(read(c), c.lengths) for c in branches)

    def caches(self) -> Caches:
        """Empty caches, laid out as the model's heads are."""
        backbone, rows = self._generator.backbone, self._images * self._branches
        shape = lambda place: (rows, backbone.heads, place.size, self._generator.width // backbone.heads)
        zeros = lambda place: constrain(jnp.zeros(shape(place), backbone.dtype), "batch", "act_heads", "length", "act_head_dim")
        return tuple(KeyValues(zeros(place), zeros(place)) for place in self._places)

    def stretches(self, count: int | None = None) -> list[tuple[int, int]]:
        """Begin and end of `count` equal stretches of the positions; as many as pay by default."""
        length = self._generator.layout.length
        if count is None:
            count = 1 if all(place.rolling for place in self._places) else max(1, min(STRETCHES, length // SHORTEST))
        ends = [length * n // count for n in range(count + 1)]
        return list(zip(ends[:-1], ends[1:], strict=True))

    def lengthen(self, caches: Caches | None, whole: Caches, end: int) -> Caches:
        """`caches` with room up to position `end`; what they lack, all if there are none, is taken from `whole`."""
        if caches is None:
            cut = lambda place, new: new if place.rolling else jax.tree.map(lambda x: x[:, :, :end], new)
            return tuple(map(cut, self._places, whole))
        grow = lambda old, new: jnp.concatenate([old, new[:, :, old.shape[2] : end]], 2)
        return tuple(old if p.rolling else jax.tree.map(grow, old, new) for p, old, new in zip(self._places, caches, whole, strict=True))

    def prefill(self, ids: jax.Array, count: jax.Array) -> Caches:
        """The caches after the first `count` positions, i32[], of which all tokens are known, i32[B,N]: one parallel pass."""
        tokens = self._apply(ids[:, :-1], jnp.arange(ids.shape[1] - 1), method="embed")
        x = jnp.concatenate([self._prefix, jnp.repeat(tokens, self._branches, 0)], 1)
        caches = []
        for block, layer, memory, place in zip(self._blocks, self._layers, self._memories, self._places, strict=True):
            x, kv = block.apply({"params": layer}, x, memory)
            caches.append(place.keep(kv, count))
        return tuple(caches)

    def step(self, caches: Caches, last: jax.Array, position: jax.Array) -> tuple[jax.Array, Caches]:
        """One position for all rows.

        Args:
          caches: what the positions before left, with room for this one.
          last: i32[B], the tokens before this position; not read at position 0.
          position: i32[], of the token to predict.

        Returns:
          logits f32[B,G,codes], and the caches.
        """
        token = self._apply(last[:, None], jnp.maximum(position - 1, 0)[None], method="embed")
        x = jnp.where(position == 0, self._prefix, jnp.repeat(token, self._branches, 0))
        slots = {place: place.slot(position, cache.k.shape[2]) for place, cache in zip(self._places, caches, strict=True)}
        after = []
        for block, layer, memory, place, cache in zip(self._blocks, self._layers, self._memories, self._places, caches, strict=True):
            x, cache = block.apply({"params": layer}, x, memory, None, None, cache, slots[place])
            after.append(cache)
        return self._apply(x[:, 0], method="predict").reshape(self._images, self._branches, -1), tuple(after)

    def _apply(self, *args: jax.Array, method: str) -> Any:
        return self._generator.apply({"params": self._params}, *args, method=method)
