"""Any number of images from functions compiled for one shape: every device draws and decodes a constant number of rows at a time."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from vimlab.pictures import to_uint8
from vimlab.sampling.decode import Knobs, Samples

# Rows that a device has in one call of whatever follows drawing, and of drawing unless more are asked for. XLA's sums depend on
# the shape of what a device holds, if only in their last bit, and with them, now and then, the token that is drawn; in a constant
# shape an image is the same on any number of devices and however many are drawn.
GROUP = 8


@dataclasses.dataclass(frozen=True)
class Drawn:
    """M images.

    Attributes:
      ids: i32[M,N].
      log_probs: f32[M,N], nats, of each token under the distribution that it was drawn from; 0 where it was given.
      calls: how often the model was run, over all calls.
      images: uint8[M,H,W,3].
    """

    ids: np.ndarray
    log_probs: np.ndarray
    calls: int
    images: np.ndarray


class Sampler:
    """Draws images.

    Args:
      sample: (condition [B,…], seeds u32[B], knobs) → Samples.
      decode: ids i32[B,N] → f32[B,H,W,3] in [0, 1].
      complete: (condition, seeds, knobs, given i32[B,N], keep bool[B,N]) → Samples; for draws that keep tokens.
      rows: that a device draws at a time; the images are a function of it, too, in the last bits of the logits.
      ways: data-parallel devices.

    Attributes:
      size: B of all calls of `sample` and `complete`, rows · ways.
    """

    def __init__(
        self, sample: Callable[..., Samples], decode: Callable[..., Any], complete: Callable[..., Samples] | None = None, *,
        rows: int = GROUP, ways: int,
    ) -> None:  # fmt: skip
        self._sample, self._decode, self._complete, self._ways = sample, decode, complete, ways
        self.size = rows * ways

    def draw(
        self, conditions: np.ndarray, seeds: np.ndarray, knobs: Knobs, given: np.ndarray | None = None, keep: np.ndarray | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Drawn:  # fmt: skip
        """One image for each seed; whatever their number, nothing is compiled after the first call.

        Args:
          conditions: labels i32[M] or text ids i32[M,T], a row for each image; M is at least 1.
          seeds: u32[M]; an image depends on its seed, its condition and the knobs, not on what is drawn beside it.
          knobs: see Knobs.
          given, keep: tokens i32[M,N] and bool[M,N], which of them come back as they are.
          progress: told after each call how many images it made.
        """
        fixed = [] if keep is None else [given, keep]
        draw = self._sample if keep is None else self._complete
        parts, calls = [], 0
        for count, (condition, seed, *kept) in batches(self.size, conditions, seeds.astype(np.uint32), *fixed):
            samples = draw(condition, seed, knobs, *kept)
            parts.append((to_host(samples.tokens.ids)[:count, :, 0], to_host(samples.log_probs)[:count]))
            calls += int(samples.calls)
            if progress:
                progress(count)
        ids, log_probs = (np.concatenate(x) for x in zip(*parts, strict=True))
        return Drawn(ids, log_probs, calls, in_groups(lambda ids: to_uint8(to_host(self._decode(ids))), ids, ways=self._ways))


def in_groups(fn: Callable[..., Any], *arrays: np.ndarray, ways: int = 1) -> np.ndarray:
    """`fn`, which treats rows alike, of all rows of some arrays [M,…]; it is only ever called with GROUP of them for each of `ways` devices."""
    return np.concatenate([to_host(fn(*rows))[:count] for count, rows in batches(GROUP * ways, *arrays)])


def batches(size: int, *arrays: np.ndarray) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Stretches of `size` rows of arrays [M,…], the last one filled up with the last row; before each, how many are real."""
    total = len(arrays[0])
    for first in range(0, total, size):
        rows = np.minimum(np.arange(first, first + size), total - 1)
        yield min(size, total - first), [x[rows] for x in arrays]


def to_host(x: Any) -> np.ndarray:
    """The whole of an array on every host, also where its shards lie on several."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental import multihost_utils

        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
