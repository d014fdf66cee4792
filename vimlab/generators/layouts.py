"""How tokens become a sequence: their order, what each position reads and predicts, and what it may see."""

import dataclasses
import functools

import numpy as np

from vimlab.nn.masks import Mask, conv_offsets
from vimlab.tokens import TokenSpec


@dataclasses.dataclass(frozen=True)
class Raster:
    """Row by row, each token predicted from those before it.

    The sequence has as many positions as tokens: position 0 reads the condition's prefix, position i > 0 the token i - 1, and
    position i predicts token i.

    Attributes:
      spec: of the tokens.
    """

    spec: TokenSpec
    prefix = 1

    @property
    def length(self) -> int:
        """Positions."""
        return self.spec.length

    def dense(self) -> Mask:
        """Every position sees itself and all before it."""
        return Mask(tuple(range(self.length)), (False,) * self.length)

    def conv(self, kernel: int) -> Mask:
        """Convolution-shaped attention (DALL-E, figure 11), the prefix seen by all; see `conv_offsets`."""
        return dataclasses.replace(self.dense(), offsets=conv_offsets(self.spec.grid[1], kernel), prefix=self.prefix)

    @functools.cached_property
    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each token, i32[N] each."""
        rows, columns = np.divmod(np.arange(self.length, dtype=np.int32), np.int32(self.spec.grid[1]))
        return rows, columns
