"""The circular schedule of a pipeline over the mesh's `stage` axis: which layers a stage has, when it computes them, and what that costs.

Layer l of a stack belongs to stage (l // per) mod S, where a visit is `per` consecutive layers. The batch goes through in M
microbatches; each passes the ring of S stages R times, once a round, as many at a time as there are stages, so that a
microbatch that leaves the last stage enters the first at once, with no queue between. "GPipe" (Huang et al., 2019) is R = 1;
more rounds fill and empty the ring in shorter steps (Parti, section 3.2 of the paper and lingvo's circular schedule).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from vimlab.parallel.rules import ShardingError


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The sizes of one.

    Attributes:
      depth: layers.
      stages: S.
      microbatches: M, a multiple of S.
      rounds: R; stages x rounds divides the depth (see `check_pipelines`).
    """

    depth: int
    stages: int
    microbatches: int
    rounds: int = 1

    @property
    def per_visit(self) -> int:
        """Layers that a microbatch passes in one visit to a stage."""
        return self.depth // (self.stages * self.rounds)

    @property
    def iterations(self) -> int:
        """Visits that each stage has time for in one pass: R M, and S - 1 in which the ring fills or empties."""
        return self.rounds * self.microbatches + self.stages - 1

    @property
    def bubble(self) -> float:
        """The share of a pass in which a stage is idle."""
        return bubble_fraction(self.stages, self.microbatches, self.rounds)

    def layers(self, stage: int) -> tuple[int, ...]:
        """The layers that a stage computes, in the order of its rounds."""
        first = [(r * self.stages + stage) * self.per_visit for r in range(self.rounds)]
        return tuple(f + i for f in first for i in range(self.per_visit))

    def visit(self, stage: Any, iteration: Any) -> tuple[Any, Any]:
        """(microbatch, round) of a stage at an iteration, numbers or arrays; out of range where it is idle."""
        since, circle = iteration - stage, self.rounds * self.stages
        return since // circle * self.stages + since % self.stages, since % circle // self.stages


def bubble_fraction(stages: int, microbatches: int, rounds: int = 1) -> float:
    """(S - 1) / (R M + S - 1), the share of a pass that a stage is idle: 32% of 16 stages and 32 microbatches, 10% in 4 rounds."""
    return (stages - 1) / (rounds * microbatches + stages - 1)


def check_pipelines(mesh: Mesh, pipelines: Mapping[str, Pipeline]) -> None:
    """Raises ShardingError, with sizes that do, unless stages and rounds divide the depth of each stack, given by its name."""
    fits = lambda stages, more: all(p.depth % (stages * (p.rounds if p.rounds == 1 else more)) == 0 for p in pipelines.values())
    for name, p in pipelines.items():
        if p.depth % (p.stages * p.rounds):
            sizes = [(s, r) for s in range(1, mesh.size + 1) for r in range(1, p.depth + 1) if mesh.size % s == 0 and fits(s, r)]
            stage, rounds = min(sizes, key=lambda size: (abs(math.log(size[0] / p.stages)), abs(size[1] - p.rounds)))
            raise ShardingError(f"config.mesh has {p.stages} stages, which the {name} of {p.depth} layers passes in {p.rounds} rounds, and their product "
                                f"does not divide the layers; stage={stage}, rounds={rounds} would do")
