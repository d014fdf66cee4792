"""What chips can do, and the topologies they come in, as their vendors state it.

Sources: "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of Google's Cloud TPU documentation (system architecture); NVIDIA's data
sheets of the A100, H100 and H200 in their SXM forms. Peak FLOP/s are those of `vimlab.metrics`. Interconnects are counted
one way, all links of a chip together: half of a figure that is called bidirectional.
"""

import dataclasses
import math
import re

from vimlab.config import ConfigError, suggest
from vimlab.metrics import PEAK_FLOPS

GIB, GB = 1 << 30, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      kind: as `jax.Device.device_kind` names it, a key of PEAK_FLOPS.
      memory: bytes of HBM that a program may use; of TPUs, what the compiler leaves to it of 32, 16, 95 and 32 GiB.
      bandwidth: bytes/s of HBM.
      interconnect: bytes/s one way to its neighbours: ICI, or NVLink within a node.
      host: chips of one host.
      network: bytes/s one way of a chip's share of the network between nodes; 0 for chips whose interconnect spans the whole topology.
    """

    kind: str
    memory: float
    bandwidth: float
    interconnect: float
    host: int
    network: float = 0

    @property
    def peak(self) -> float:
        """Dense bf16 FLOP/s."""
        return PEAK_FLOPS[self.kind]

    @property
    def tpu(self) -> bool:
        return self.kind.startswith("TPU")

    def wire(self, devices: int) -> float:
        """Bytes/s one way of a chip in a collective over that many chips: the network's, where they are more than a node."""
        return self.network if self.network and devices > self.host else self.interconnect


CHIPS = {
    "v4": Chip("TPU v4", 30.75 * GIB, 1228 * GB, 300 * GB, 4),
    "v5e": Chip("TPU v5e", 15.75 * GIB, 819 * GB, 200 * GB, 4),
    "v5p": Chip("TPU v5p", 95.74 * GIB, 2765 * GB, 600 * GB, 4),
    "v6e": Chip("TPU v6e", 31.25 * GIB, 1638 * GB, 400 * GB, 4),
    "a100": Chip("NVIDIA A100", 80 * GB, 2039 * GB, 300 * GB, 8, 25 * GB),
    "h100": Chip("NVIDIA H100", 80 * GB, 3350 * GB, 450 * GB, 8, 50 * GB),
    "h200": Chip("NVIDIA H200", 141 * GB, 4800 * GB, 450 * GB, 8, 50 * GB),
}
# Sides of the largest slice of a TPU that the compiler loads; every side of a smaller one is a power of two.
LARGEST = {"v4": (8, 16, 16), "v5e": (16, 16), "v5p": (8, 8, 8), "v6e": (16, 16)}
EXAMPLES = "v4:8x8x8, v5e:16x16, v5p:4x4x4, v6e:8x8, a100:8, h100:64, h200:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """A named set of chips.

    Attributes:
      name: as it was asked for.
      chip: each of them.
      shape: of a TPU slice, or the number of GPUs.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        return -(-self.chips // self.chip.host)


def topology(name: str) -> Topology:
    """The topology of a name such as `v5e:16x16` or `h100:64`. Raises ConfigError with those known."""
    family, _, size = name.partition(":")
    known = f"known are {', '.join(CHIPS)} with a size, such as {EXAMPLES}"
    if family not in CHIPS:
        raise ConfigError(f"--topology {name!r} is of no known chip{suggest(family, CHIPS)} ({known})")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
        raise ConfigError(f"--topology {name!r} needs a size after the colon ({known})")
    sides = tuple(int(n) for n in size.split("x"))
    if family not in LARGEST:
        if len(sides) != 1:
            raise ConfigError(f"--topology {name!r}: GPUs are counted by one number, as in {family}:{math.prod(sides)}")
        return Topology(name, CHIPS[family], sides)
    largest = LARGEST[family]
    shape = "x".join(map(str, largest))
    if len(sides) != len(largest):
        raise ConfigError(f"--topology {name!r}: a {family} slice has {len(largest)} sides, up to {family}:{shape}")
    if any(n & (n - 1) for n in sides) or any(n > m for n, m in zip(sorted(sides), sorted(largest), strict=True)) or math.prod(sides) < 4:
        raise ConfigError(f"--topology {name!r} is no slice that the compiler knows: sides are powers of two, from 4 chips up to {family}:{shape}")
    return Topology(name, CHIPS[family], sides)
