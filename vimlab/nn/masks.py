"""Which position may see which: static attention masks, held by NumPy, that a jitted program is specialised to."""

import dataclasses
import functools

import numpy as np

from vimlab.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Mask:
    """Which positions a query may see in self-attention over L positions: the one rule of all layouts.

    Position i sees j where `block[j] < block[i]`, or where the blocks are equal and `intra[i] or j <= i`. Where `offsets` is
    given, i and j at or beyond `prefix` must also have `i - j` in `offsets`; queries and keys before the prefix follow the
    first rule alone. Hashable and compared by value: a field of a module, a static argument.

    Attributes:
      block: L block numbers; a position sees the blocks of smaller number whole.
      intra: L flags; whether the position sees its own block whole too, rather than up to itself.
      offsets: distances i - j; 0, the position itself, must be among them.
      prefix: positions at the start that `offsets` does not concern.

    Raises:
      ValueError: no positions, other lengths of `block` and `intra`, offsets without 0, or a prefix outside 0..L.
    """

    block: tuple[int, ...]
    intra: tuple[bool, ...]
    offsets: tuple[int, ...] | None = None
    prefix: int = 0

    def __post_init__(self):
        if not self.block or len(self.block) != len(self.intra):
            raise ValueError(f"a mask needs a block and a flag for each position, not {len(self.block)} and {len(self.intra)}")
        if self.offsets is not None and 0 not in self.offsets:
            raise ValueError(f"offsets {self.offsets} lack 0, and a position that sees nothing has no softmax")
        if not 0 <= self.prefix <= self.length:
            raise ValueError(f"a prefix of {self.prefix} is not within the mask's {self.length} positions")

    @property
    def length(self) -> int:
        """L, the number of positions."""
        return len(self.block)

    @property
    def window(self) -> int:
        """The furthest distance i - j that is seen from the prefix on: the largest offset, L - 1 without offsets."""
        return self.length - 1 if self.offsets is None else max(self.offsets)

    @property
    def is_causal(self) -> bool:
        """Whether each position sees itself and all before it, and nothing else."""
        return np.array_equal(self.allowed(), np.tri(self.length, dtype=bool))

    @property
    def is_full(self) -> bool:
        """Whether every position sees every position."""
        return bool(self.allowed().all())

    def allowed(self) -> np.ndarray:
        """bool[L, L], read-only and shared by equal masks: row i marks the positions that i sees."""
        return _allowed(self)


@functools.lru_cache(maxsize=32)
def _allowed(mask: Mask) -> np.ndarray:
    block, position = np.asarray(mask.block), np.arange(mask.length)
    distance = position[:, None] - position
    allow = block < block[:, None]
    allow |= (block == block[:, None]) & (np.asarray(mask.intra)[:, None] | (distance >= 0))
    if mask.offsets is not None:
        exempt = position < mask.prefix
        allow &= exempt[:, None] | exempt | np.isin(distance, mask.offsets)
    allow.flags.writeable = False
    return allow


def causal(length: int) -> Mask:
    """Each of `length` positions sees itself and all before it."""
    return Mask((0,) * length, (False,) * length)


def full(length: int) -> Mask:
    """Every one of `length` positions sees all."""
    return Mask((0,) * length, (True,) * length)


def conv_offsets(width: int, kernel: int) -> tuple[int, ...]:
    """Raster distances i - j that DALL-E's convolution-shaped attention sees on a grid `width` columns wide, ascending.

    They are the causal half of a centred kernel x kernel window: the position and kernel // 2 before it in its row, and the
    whole window's width in each of the kernel // 2 rows above. A window that leaves the grid sideways goes on in the raster,
    at the far end of the row above or below, so that every position has the same distances. On a grid narrower than the
    window rows overlap: a distance counts once, and never forward.

    Raises:
      ConfigError: a kernel that is even or a size below 1.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ConfigError(f"a convolution-shaped mask needs an odd kernel, which has a centre, not {kernel}")
    if width < 1:
        raise ConfigError(f"a convolution-shaped mask needs a grid at least one column wide, not {width}")
    half = kernel // 2
    above = {dy * width - dx for dy in range(1, half + 1) for dx in range(-half, half + 1)}
    return tuple(sorted(d for d in above | set(range(half + 1)) if d >= 0))
