"""What is told of two sets of pictures by their features: every figure under its own name, what fixes it, and what is too little for it."""

from typing import Any

from vimlab.config import ConfigError
from vimlab.evals.extractors import Extractor
from vimlab.evals.features import Features
from vimlab.evals.frechet import frechet_distance
from vimlab.evals.kernel_distance import kernel_distance
from vimlab.evals.manifold import manifold_metrics
from vimlab.evals.reference import PAIRWISE, Reference

SUBSET = 1000  # Pictures in a subset of the kernel distance, as published (Binkowski et al., 2018, and torch-fidelity's default).
LEAST = 6  # Pictures that precision, recall, density and coverage need, with up to five neighbours.


def compare(found: Features, reference: Reference, extractor: Extractor) -> dict[str, float]:
    """Every figure; those that need rows of the reference only where it has them. Raises ConfigError where the sets are too small for one."""
    moments, suffix = found.moments(), suffix_of(extractor)
    if found.count < 2:
        raise ConfigError(f"a Fréchet distance needs at least 2 pictures, but only {found.count} could be had")
    titles = {"features": "fid", "spatial": "sfid"} if extractor.is_fid else {"features": "frechet" + suffix, "spatial": "spatial_frechet" + suffix}
    figures = {
        titles[name]: frechet_distance(moments[name], gaussian) for name, gaussian in reference.gaussians.items() if name in moments
    }
    if reference.rows is not None:
        rows = found.array("features", PAIRWISE)
        figures |= {name + suffix: value for name, value in manifold_metrics(rows, reference.rows).items()}
        size = _subset(len(rows), len(reference.rows))
        # Other subsets have another spread, and of few pictures another mean by chance: no figure to hold against published ones.
        kid = ("" if size == SUBSET else f"_subsets_of_{size}") + suffix
        figures["kid" + kid], figures["kid_std" + kid] = kernel_distance(rows, reference.rows, subset_size=size)
    return figures


def _subset(*counts: int) -> int:
    """Pictures in a subset of the kernel distance: 1,000 as published; of a smaller set half of it, so that subsets differ."""
    return SUBSET if min(counts) >= SUBSET else min(counts) // 2


def suffix_of(extractor: Extractor) -> str:
    return "" if extractor.is_fid else "_" + extractor.name.replace("-", "_")


def terms_of(found: Features, reference: Reference, extractor: Extractor) -> dict[str, Any]:
    """What fixes these figures, for their protocol."""
    terms = {
        "extractor": extractor.name,
        "extractor_identity": extractor.identity,
        "reference": dict(reference.facts),
        "rounding": "uint8",
        "covariance": "divided by count - 1",
    }
    if reference.rows is not None:
        size = _subset(min(found.count, PAIRWISE), len(reference.rows))
        small = f", half of the smaller set, which has no subsets of the published {SUBSET:,}" if size != SUBSET else ""
        terms |= {
            "kid": f"unbiased, cubic kernel, mean over 100 pairs of subsets of {size:,}{small}",
            "precision": f"improved precision and recall with 3 neighbours, density and coverage with 5, of at most {PAIRWISE:,} pictures of each set",
        }
    return terms


def check_sets(name: str, count: int, reference: Reference, write_to: str | None) -> None:
    """Raises ConfigError where precision and its kin cannot be had, or the reference not be written, before anything is drawn."""
    if write_to and "count" not in reference.facts:
        raise ConfigError(f"evals.{name}.write_reference cannot write {reference.facts['file']}, which does not say what it is of; leave it out")
    if reference.rows is not None and min(count, len(reference.rows)) < LEAST:
        raise ConfigError(f"evals.{name} compares {count} pictures with {len(reference.rows)}, but precision, recall, density and coverage need at "
                          f"least {LEAST} of each; give more")  # fmt: skip
