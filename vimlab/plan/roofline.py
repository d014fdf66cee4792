"""From work and speeds to times: the roofline of a step, and the whole run at stated efficiencies."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vimlab.plan.chips import Topology
from vimlab.plan.volumes import Collective

EFFICIENCIES = (0.3, 0.4, 0.5)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time of a step, were everything overlapped: the longest of three.

    Attributes:
      compute: seconds of the executed FLOPs at the chips' peak.
      memory: seconds of the memory traffic.
      interconnect: seconds of what each chip sends.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.interconnect)

    @property
    def bound(self) -> str:
        """What it is that takes the longest."""
        times = dataclasses.asdict(self)
        return max(times, key=times.get)


def roofline(where: Topology, flops: float, traffic: float, collectives: Sequence[Collective]) -> Roofline:
    """The roofline of a step.

    Args:
      flops: executed, all chips together; what stages compute in vain while a pipeline fills is among them.
      traffic: bytes to and from the memory of one chip.
      collectives: of the step; in each a chip sends `wire` bytes over all its links.
    """
    chip = where.chip
    wire = sum(c.wire / chip.wire(c.group) for c in collectives)
    return Roofline(flops / (where.chips * chip.peak), traffic / chip.bandwidth, wire)


def whole_run(where: Topology, model_flops: float, steps: int, best: float, efficiencies: Sequence[float] = EFFICIENCIES) -> list[dict[str, Any]]:
    """Seconds of a step, hours and chip-hours of the run at some model FLOPs utilisations (MFU).

    Args:
      model_flops: of a step, recomputation not counted.
      best: seconds that the roofline allows; an efficiency that would need less is marked as out of reach.
    """
    rows = []
    for mfu in efficiencies:
        seconds = model_flops / (where.chips * where.chip.peak * mfu)
        hours = seconds * steps / 3600
        rows.append({"mfu": mfu, "step_seconds": seconds, "hours": hours, "chip_hours": hours * where.chips, "within_roofline": seconds >= best})
    return rows
