"""Features of sets of pictures — of a data set, of reconstructions, of drawings — each kept in shards as they are made."""

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vimlab.config import ConfigError
from vimlab.evals import shards
from vimlab.evals.archives import ImageArchive
from vimlab.evals.devices import spread
from vimlab.evals.evaluator import Subject, rows_of, to_host
from vimlab.evals.extractors import Extractor
from vimlab.evals.frechet import Moments
from vimlab.evals.shards import Arrays, Shards
from vimlab.weights import sha256


def featurise(extractor: Extractor, images: np.ndarray) -> Arrays:
    """All that an extractor gives of pictures uint8[M,H,W,3], f32[M,…] by name."""
    return spread(extractor.apply, extractor.weights, images)


class Pass:
    """The pictures of a set by place, from one pass over it; places are asked for in rising order."""

    def __init__(self, batches: Iterator[Mapping[str, Any]], look: Callable[[jax.Array], Any] | None = None) -> None:
        self._rows, self._look, self._at = rows_of(batches), look, 0
        self._waiting: list[Arrays] = []

    def take(self, start: int, stop: int) -> Arrays:
        """{"image": uint8[n,H,W,3], "real": bool[n], "looked": what `look` made of the pictures} of places start to stop."""
        parts = []
        while self._at < stop:
            if not self._waiting:
                images, batch, real = next(self._rows)
                wanted = self._look and self._at + len(real) > start  # What was looked at before an interruption is only passed by.
                looked = {"looked": to_host(self._look(images))} if wanted else {}
                self._waiting.append({"image": to_host(batch["image"]), "real": real} | looked)
            rows = self._waiting.pop()
            count = min(len(rows["real"]), stop - self._at)
            if count < len(rows["real"]):
                self._waiting.append({name: x[count:] for name, x in rows.items()})
            skip = min(max(0, start - self._at), count)
            if skip < count:
                parts.append({name: x[skip:count] for name, x in rows.items()})
            self._at += count
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def of_set(subject: Subject, extractor: Extractor, which: str, count: int | None = None) -> "Features":
    """Features of the evaluation set ("eval") or of `count` training pictures, all by default, under its crop ("train"). Raises ConfigError."""
    if which == "eval":
        info, size, start = subject.source.info, len(subject.source), subject.batches
    else:
        if subject.training is None:
            raise ConfigError("the training set is not at hand; compare with the evaluation set")
        count = sys.maxsize if count is None else count
        info, _ = subject.training(count)
        size, start = info.size, lambda: subject.training(count)[1]
    request = {"of": "set", "fingerprint": info.fingerprint, "name": info.name, **_shape(subject), **_network(extractor)}
    pictures = functools.cache(lambda: Pass(start()))

    def make(first: int, last: int) -> Arrays:
        rows = pictures().take(first, last)
        return featurise(extractor, rows["image"]) | {"real": rows["real"]}

    return Features(Shards(subject.folder / "sets", request, size, make), extractor)


def of_archive(subject: Subject, extractor: Extractor, path: str) -> "Features":
    """Features of the pictures in an `.npz` of guided-diffusion's kind, at the model's size. Raises ArchiveError, and ConfigError for other sizes."""
    archive, side = ImageArchive(path), subject.protocol["size"]
    if archive.shape[1:3] != (side, side):
        raise ConfigError(f"the pictures in {path} are {archive.shape[1]}x{archive.shape[2]}, but this model's are {side}x{side}; give others")
    request = {"of": "archive", "file": archive.path.name, "sha256": sha256(path), "size": side, **_network(extractor)}
    parts = functools.cache(lambda: enumerate(archive.batches(shards.SIZE)))

    def make(first: int, last: int) -> Arrays:
        images = next(x for i, x in parts() if i * shards.SIZE == first)  # What was looked at before an interruption is only passed by.
        return featurise(extractor, images) | {"real": np.ones(len(images), bool)}

    return Features(Shards(subject.folder / "sets", request, archive.shape[0], make), extractor)


def of_reconstructions(subject: Subject, extractor: Extractor) -> "Features":
    """Features of what the model makes of the evaluation set, rounded to 8 bits. Uses predict_fns["reconstruct"]."""
    reconstruct = subject.predict("reconstruct")
    look = lambda images: jnp.round(jnp.clip(reconstruct(subject.state, images).astype(jnp.float32), 0, 1) * 255).astype(jnp.uint8)
    pictures = functools.cache(lambda: Pass(subject.batches(), look))
    request = {"of": "reconstructions", "fingerprint": subject.source.info.fingerprint, **_shape(subject), **_network(extractor), **_model(subject)}

    def make(first: int, last: int) -> Arrays:
        rows = pictures().take(first, last)
        return featurise(extractor, rows["looked"]) | {"real": rows["real"]}

    return Features(Shards(_of_step(subject), request, len(subject.source), make), extractor)


def of_drawings(subject: Subject, extractor: Extractor, request: Mapping[str, Any], count: int, draw: Callable[[np.ndarray], np.ndarray],
                keep: bool) -> "Features":  # fmt: skip
    """Features of what a generator draws.

    Args:
      request: JSON values that fix the drawings, beside the model.
      draw: pictures uint8[n,H,W,3] of places i64[n].
      keep: whether the pictures themselves are kept, under "image".
    """
    request = {"of": "drawings", "pictures": keep, **request, **_network(extractor), **_model(subject)}

    def make(first: int, last: int) -> Arrays:
        images = draw(np.arange(first, last))
        return featurise(extractor, images) | {"real": np.ones(len(images), bool)} | ({"image": images} if keep else {})

    return Features(Shards(_of_step(subject), request, count, make), extractor)


class Features:
    """Features of a set of pictures; those that could not be read are left out.

    Attributes:
      shards: where they are kept.
      count: pictures that could be read; known once `moments` or `array` has gone through all.
    """

    def __init__(self, shards: Shards, extractor: Extractor) -> None:
        self.shards, self._extractor = shards, extractor

    def moments(self) -> dict[str, Moments]:
        """Of "features" and, where the network has them, "spatial"; made and stored as far as they are missing."""
        found: dict[str, Moments] = {}
        for shard in self.shards:
            for name in {"features", "spatial"} & shard.keys():
                found.setdefault(name, Moments(shard[name].shape[1])).add(shard[name][shard["real"]])
        self.count = found["features"].count
        return found

    def places(self, most: int | None = None) -> np.ndarray:
        """Of `most` pictures spread evenly over all, or of all: i64[n]."""
        total = self.shards.count
        return np.arange(total) if most is None or most >= total else np.arange(most) * total // most

    def array(self, name: str, most: int | None = None) -> np.ndarray:
        """One array of all pictures, or of `most` spread evenly over them; fewer by those that could not be read."""
        start, parts, places = 0, [], self.places(most)
        for shard in self.shards:
            size = len(shard["real"])
            chosen = np.zeros(size, bool)
            chosen[places[(places >= start) & (places < start + size)] - start] = True
            parts.append(shard[name][chosen & shard["real"]])
            start += size
        return np.concatenate(parts)


def _shape(subject: Subject) -> dict[str, Any]:
    return {"crop": subject.protocol["crop"], "size": subject.protocol["size"]}


def _network(extractor: Extractor) -> dict[str, Any]:
    return {"extractor": extractor.name, "identity": extractor.identity}


def _model(subject: Subject) -> dict[str, Any]:
    return {"step": subject.step, "dtype": subject.protocol["dtype"], "weights": _digest(subject.state)}


def _of_step(subject: Subject):
    return subject.folder / f"step_{subject.step:08d}"


def _digest(state: Any) -> str:
    """Tells apart the weights of two runs that reached the same step; of extremes, which no order of summation changes."""
    leaves = [x for x in jax.tree.leaves(state) if isinstance(x, jax.Array | np.ndarray) and jnp.issubdtype(x.dtype, jnp.floating) and x.size]
    extremes = jax.jit(lambda leaves: [jnp.stack([x.min(), x.max()]).astype(jnp.float32) for x in leaves])(leaves)
    return hashlib.sha256(b"".join(to_host(x).tobytes() for x in extremes)).hexdigest()[:16]
