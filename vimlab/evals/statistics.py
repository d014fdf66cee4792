"""Statistics of a set of features in a file that says what they are of and for, and refuses to serve for anything else.

A file is an `.npz` with `mu` and `sigma`, and `mu_s` and `sigma_s` where the network has spatial features: the names that
pytorch-fid and guided-diffusion read and write, so that each can read the other's. Ours add `description`, JSON.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vimlab.config import ConfigError, UserError
from vimlab.evals.archives import DAMAGE
from vimlab.evals.frechet import Gaussian
from vimlab.paths import beside, check, fetched, place

# What a set stands for decides how its images are prepared; figures against the statistics of the other purpose mean nothing.
PURPOSES = ("generation", "reconstruction")
VERSION = 1


class StatisticsError(UserError):
    """Statistics that are absent, damaged, or of another purpose, extractor or protocol than asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statistics:
    """What is known of a reference set.

    Attributes:
      purpose: one of PURPOSES.
      protocol: JSON values that fix the set: data, fingerprint, split, crop, resize, size, …
      extractor: the name of the network that the features are of.
      identity: of its weights.
      count: images.
      features: their Gaussian, D dimensions.
      spatial: the Gaussian of the spatial features (sFID), where the network has them.
      rows: f32[M,D], the features themselves, or of a large set those of M images spread evenly over it, where kernel distance,
        precision and recall are wanted.

    Raises:
      ConfigError: another purpose, or rows that are none, or more than, the `count` features that the Gaussian is of.
    """

    purpose: str
    protocol: Mapping[str, Any]
    extractor: str
    identity: str
    count: int
    features: Gaussian
    spatial: Gaussian | None = None
    rows: np.ndarray | None = None

    def __post_init__(self):
        if self.purpose not in PURPOSES:
            raise ConfigError(f"the purpose of statistics is {self.purpose!r}, but must be one of {list(PURPOSES)}")
        if self.rows is None:
            return
        if self.rows.ndim != 2 or not 1 <= len(self.rows) <= self.count or self.rows.shape[1] != len(self.features.mean):
            raise ConfigError(f"{self.count} images have {len(self.features.mean)} features each, but rows is {self.rows.shape}")


def write(path: str | os.PathLike, statistics: Statistics) -> None:
    """Writes statistics to an `.npz` file, which appears whole or not at all."""
    facts = {key: getattr(statistics, key) for key in ("purpose", "extractor", "identity", "count")}
    description = {"version": VERSION, **facts, "protocol": dict(statistics.protocol)}
    arrays = {"description": np.array(json.dumps(description, allow_nan=False))}
    arrays |= {"mu": statistics.features.mean, "sigma": statistics.features.covariance}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    if statistics.rows is not None:
        arrays["rows"] = np.asarray(statistics.rows, np.float32)
    with beside(path) as file:
        np.savez(file, **arrays)


def read(
    path: str | os.PathLike, *, purpose: str, extractor: str, identity: str, protocol: Mapping[str, Any] | None = None
) -> Statistics:
    """Reads statistics that `write` wrote, if they are the ones asked for.

    Args:
      path: of the file.
      purpose: one of PURPOSES.
      extractor, identity: of the network that they are to be compared under.
      protocol: what must be equal in the file's protocol; it may hold more.

    Raises:
      StatisticsError: the file is absent or damaged, was written by another program, or is of another purpose, extractor or
        protocol; the message names the difference.
    """
    arrays = _load(path)
    if "description" not in arrays:
        raise StatisticsError(
            f"{path} does not say what it is of, as statistics from other programs do not; name it as an outside reference instead"
        )
    try:
        found = json.loads(arrays["description"].item())
        if found["version"] > VERSION:
            raise StatisticsError(f"{path} was written by a newer version ({found['version']} over {VERSION}); update vimlab")
        facts = {key: found[key] for key in ("purpose", "extractor", "identity", "count", "protocol")}
        _compare(path, facts, {"purpose": purpose, "extractor": extractor, "identity": identity}, protocol or {})
        features, spatial = _gaussians(path, arrays)
        return Statistics(**facts, features=features, spatial=spatial, rows=arrays.get("rows"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, StatisticsError):
            raise
        raise StatisticsError(f"{path} is damaged: its description does not fit its arrays ({error}); make it anew") from error


def read_outside(path: str | os.PathLike) -> tuple[Gaussian, Gaussian | None]:
    """The statistics in a file of pytorch-fid's (`mu`, `sigma`) or in a reference batch of guided-diffusion's (`mu_s` and
    `sigma_s` too, for sFID), which say nothing of the images and the network that they are of: that is for the user to know.

    Returns:
      The Gaussians of the features and, where there is one, of the spatial features.

    Raises:
      StatisticsError: the file is absent, damaged, or holds no statistics.
    """
    return _gaussians(path, _load(path))


def _load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays but images, which a reference batch may hold by gigabytes."""
    check(place(path), "the statistics file")
    if not place(path).is_file():
        raise StatisticsError(f"the statistics file {str(path)!r} does not exist")
    try:
        with np.load(fetched(place(path)), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if not name.startswith("arr_")}
    except (*DAMAGE, TypeError) as error:  # A bare array cannot be closed.
        raise StatisticsError(f"{path} is damaged or no .npz file ({error}); make it anew or fetch it again") from error


def _compare(path: str | os.PathLike, found: dict, wanted: dict, protocol: Mapping[str, Any]) -> None:
    made = f"{path} holds statistics"
    if found["purpose"] != wanted["purpose"]:
        raise StatisticsError(f"{made} for {found['purpose']}, which are of no use for {wanted['purpose']}; give or make others")
    if found["extractor"] != wanted["extractor"]:
        raise StatisticsError(f"{made} of the extractor {found['extractor']!r}, but this figure is of {wanted['extractor']!r}")
    if found["identity"] != wanted["identity"]:
        raise StatisticsError(
            f"{made} of {found['extractor']!r} with other weights ({found['identity'][:12]}…) than those given "
            f"({wanted['identity'][:12]}…); give the same weights, or make the statistics anew"
        )
    for key, value in json.loads(json.dumps(dict(protocol))).items():
        if key not in found["protocol"]:
            raise StatisticsError(f"{made} that do not say their {key!r}, which must be {value!r}; make them anew")
        if found["protocol"][key] != value:
            raise StatisticsError(
                f"{made} whose {key} is {found['protocol'][key]!r}, but this protocol's is {value!r}; give or make others"
            )


def _gaussians(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> tuple[Gaussian, Gaussian | None]:
    if not {"mu", "sigma"} <= set(arrays):
        raise StatisticsError(f"{path} holds no statistics, which would be named mu and sigma, but only {sorted(arrays)}")
    features = _gaussian(path, arrays["mu"], arrays["sigma"])
    if not {"mu_s", "sigma_s"} <= set(arrays):
        return features, None
    return features, _gaussian(path, arrays["mu_s"], arrays["sigma_s"])


def _gaussian(path: str | os.PathLike, mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise StatisticsError(f"{path} holds a mean of shape {mean.shape} and a covariance of {covariance.shape}; make it anew")
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    scale = np.abs(covariance).max(initial=0)
    if not (np.isfinite(mean).all() and np.isfinite(scale) and np.abs(covariance - covariance.T).max(initial=0) <= 1e-4 * scale):
        raise StatisticsError(f"{path} holds numbers that are not finite, or a covariance that is not symmetric; make it anew")
    return Gaussian(mean, covariance)
