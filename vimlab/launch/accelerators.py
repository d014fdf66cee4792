"""TPU slices by the names of `vimlab plan`, as in v5e:4x4: chips, hosts, and what Google Cloud and GKE call them."""

import dataclasses
import math

from vimlab.config import ConfigError, suggest


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of TPUs.

    Attributes:
      gke: value of the node label cloud.google.com/gke-tpu-accelerator.
      cloud: prefix of the Cloud TPU accelerator type.
      cloud_unit: what that type counts per chip: 2 TensorCores on v4 and v5p, else 1 chip.
      runtime: software of Cloud TPU VMs.
      dimensions: of the network of chips.
    """

    gke: str
    cloud: str
    cloud_unit: int
    runtime: str
    dimensions: int


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", "v4", 2, "tpu-ubuntu2204-base", 3),
    "v5e": Generation("tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite", 2),
    "v5p": Generation("tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5", 3),
    "v6e": Generation("tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e", 2),
}
# Generations with a flat network come in these shapes only.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice of TPUs.

    Attributes:
      name: as given, v5e:4x4.
      generation: what it is made of.
      topology: 4x4.
      chips: in all.
      chips_per_host: of one host, which runs one process.
    """

    name: str
    generation: Generation
    topology: str
    chips: int
    chips_per_host: int

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def cloud_type(self) -> str:
        """The accelerator type of Cloud TPU, as in v5litepod-16."""
        return f"{self.generation.cloud}-{self.chips * self.generation.cloud_unit}"


def parse_slice(name: str, chips_per_host: int | None = None) -> Slice:
    """v5e:4x4 or v4:2x2x4 → Slice.

    Args:
      name: generation and topology.
      chips_per_host: of the machines, where there is a choice: eight chips of a 2x4 are on two hosts, or on one.

    Raises:
      ConfigError: a generation, a shape or a machine that does not exist.
    """
    kind, _, topology = name.partition(":")
    if kind not in GENERATIONS:
        raise ConfigError(f"--topology {name!r} names no known TPU{suggest(kind, GENERATIONS)} (known are {', '.join(GENERATIONS)}, as in v5e:4x4)")
    generation = GENERATIONS[kind]
    if generation.dimensions == 2 and topology not in FLAT:
        raise ConfigError(f"--topology {name!r} has a shape that {kind} does not come in (it comes in {', '.join(FLAT)})")
    if generation.dimensions == 3 and not _is_block(topology):
        raise ConfigError(f"--topology {name!r} has a shape that {kind} does not come in: three sizes in rising order, each 1, 2 or a multiple "
                          "of 4, as in 2x2x1, 2x2x4, 4x4x4 or 8x8x16")
    chips = math.prod(int(s) for s in topology.split("x"))
    usual = min(chips, 4)
    if chips_per_host not in (None, usual, *([8] if topology == "2x4" else [])):
        raise ConfigError(f"--chips-per-host {chips_per_host} is not what hosts of {name} have: {usual}{', or 8' if topology == '2x4' else ''}")
    return Slice(name, generation, topology, chips, chips_per_host or usual)


def _is_block(topology: str) -> bool:
    """Whether it is a part of a block of 4 x 4 x 4 chips, or some blocks joined."""
    sizes = [int(s) if s.isdecimal() else 0 for s in topology.split("x")]
    whole = all(s in (1, 2) or s and s % 4 == 0 for s in sizes)
    return len(sizes) == 3 and whole and math.prod(sizes) % 4 == 0 and (sizes == sorted(sizes) or sizes == [2, 2, 1])
