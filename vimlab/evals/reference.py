"""What a set of pictures is compared with: the run's own sets, statistics that vimlab wrote, or files of others."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vimlab.evals import features, statistics
from vimlab.evals.evaluator import Subject
from vimlab.evals.extractors import Extractor
from vimlab.evals.frechet import Gaussian

# Of the figures that compare pictures pair by pair, at most so many of each set, spread evenly over it.
PAIRWISE = 10_000


@dataclasses.dataclass(frozen=True)
class Reference:
    """What drawn pictures are compared with.

    Attributes:
      gaussians: of "features" and, where there are any, "spatial".
      rows: f32[M,D], where they are known.
      facts: for the protocol.
    """

    gaussians: Mapping[str, Gaussian]
    rows: np.ndarray | None
    facts: Mapping[str, Any]


def of_eval_set(subject: Subject, extractor: Extractor, which: str = "eval", count: int | None = None) -> Reference:
    """The evaluation or training set as a reference."""
    found = features.of_set(subject, extractor, which, count)
    moments = found.moments()
    facts = {k: v for k, v in found.shards.request.items() if k not in ("of", "shard")} | {"set": which, "count": found.count}
    return Reference({k: m.gaussian() for k, m in moments.items()}, found.array("features", PAIRWISE), facts)


def of_archive(path: str, subject: Subject, extractor: Extractor) -> Reference:
    """The pictures in an archive as a reference: every figure, in any network's features."""
    found = features.of_archive(subject, extractor, path)
    gaussians = {k: m.gaussian() for k, m in found.moments().items()}
    facts = {k: found.shards.request[k] for k in ("file", "sha256", "size", "extractor", "identity")} | {"set": "images", "count": found.count}
    return Reference(gaussians, found.array("features", PAIRWISE), facts)


def of_file(path: str, subject: Subject, extractor: Extractor, purpose: str) -> Reference:
    """Statistics that vimlab wrote, or an outside reference as `outside:PATH`. Raises StatisticsError."""
    if path.startswith("outside:"):
        file = path.removeprefix("outside:")
        gaussian, spatial = statistics.read_outside(file)
        names, rows, facts = {"features": gaussian, "spatial": spatial}, None, {"file": pathlib.Path(file).name, "made_by": "others"}
    else:
        protocol = {"size": subject.protocol["size"], "crop": subject.protocol["crop"]}
        read = statistics.read(path, purpose=purpose, extractor=extractor.name, identity=extractor.identity, protocol=protocol)
        names, rows, facts = {"features": read.features, "spatial": read.spatial}, read.rows, {**read.protocol, "file": pathlib.Path(path).name}
    return Reference({k: g for k, g in names.items() if g is not None}, rows, facts)


def write(path: str, purpose: str, reference: Reference, extractor: Extractor) -> None:
    """Writes its statistics for this purpose, on the first process alone."""
    if jax.process_index() > 0:
        return
    count = reference.facts["count"]
    statistics.write(path, statistics.Statistics(
        purpose=purpose, protocol=reference.facts, extractor=extractor.name, identity=extractor.identity, count=count,
        features=reference.gaussians["features"], spatial=reference.gaussians.get("spatial"), rows=reference.rows,
    ))  # fmt: skip
