"""Feature extractors by name: what a picture becomes before sets of pictures are compared, and which weights did it.

A config names one as it names a quantizer: `extractor.name=inception`. Each config opens an `Extractor`, whose name stands beside
every figure; only the Inception network with its published weights may call a Fréchet distance "FID".
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import jax
import numpy as np

from vimlab import weights as weight_files
from vimlab.evals import inception, random_features, trained_features
from vimlab.evals.clip_features import ClipFeatures

Features = dict[str, jax.Array]
Resize = Literal["pytorch-fid", "tf1"]


@runtime_checkable
class Extractor(Protocol):
    """A frozen network with its weights.

    Attributes:
      name: printed beside every figure; it changes with everything but the weights that changes features.
      identity: sha256 of the weights file, or of the definition where there is no file.
      weights: a pytree of host arrays, an argument of the compiled function and never captured by it.
      apply: pure (weights, images f32[B,H,W,3] in [0,1]) → {"features": f32[B,D]} and, where the network has them, "spatial" f32[B,S]
        (for sFID) and "logits" f32[B,K] (for the Inception Score). The same object for every extractor of this name, so that `jax.jit`
        compiles it once.
      is_fid: whether a Fréchet distance between its features is FID.
    """

    name: str
    identity: str
    weights: Any
    apply: Callable[[Any, jax.Array], Features]
    is_fid: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """An Extractor; its attributes are described there."""

    name: str
    identity: str
    weights: Any
    apply: Callable[[Any, jax.Array], Features]
    is_fid: bool = False


_INCEPTION = {resize: functools.partial(inception.apply, resize=resize) for resize in ("pytorch-fid", "tf1")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inception:
    """InceptionV3 of 2015-12-05 from pytorch-fid's or torch-fidelity's file, which are the same bytes.

    Attributes:
      weights: path of the file; empty for the weights folder's (`vimlab weights list`).
      resize: "pytorch-fid", or "tf1" for that of torch-fidelity and of guided-diffusion's evaluator; see `inception.apply`.
      allow_unknown: take a file of another hash too; the extractor is then "…-unverified", and its distances are not FID.
    """

    NAME: ClassVar[str] = "inception"
    weights: str = ""
    resize: Resize = "pytorch-fid"
    allow_unknown: bool = False

    def open(self) -> Extractor:
        """Reads the weights. Raises UserError where they are absent, damaged, of another kind, or unknown and not allowed."""
        found = weight_files.locate("inception", path=self.weights, allow_unknown=self.allow_unknown)
        variant = "" if self.resize == "pytorch-fid" else f"-{self.resize}"
        return Network(
            name=f"inception-v3-fid{variant}" + ("" if found.known else "-unverified"),
            identity=found.sha256,
            weights=inception.convert(weight_files.read(found.path), str(found.path)),
            apply=_INCEPTION[self.resize],
            is_fid=found.known is not None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Random:
    """A fixed network of random weights; needs no file. Its figures compare with one another and with nobody else's."""

    NAME: ClassVar[str] = "random"

    def open(self) -> Extractor:
        """The network."""
        weights = random_features.weights()
        digest = hashlib.sha256(random_features.DEFINITION.encode())
        for name in sorted(weights):
            digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
        return Network(name=random_features.VERSION, identity=digest.hexdigest(), weights=weights, apply=random_features.apply)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A small classifier trained on a data set at hand by `vimlab weights train`.

    Attributes:
      weights: path of its file.
    """

    NAME: ClassVar[str] = "trained"
    weights: str = ""

    def open(self) -> Extractor:
        """Reads the weights. Raises ConfigError where they are absent or of another kind."""
        weights = trained_features.read(self.weights)
        return Network(name=trained_features.VERSION, identity=weight_files.sha256(self.weights), weights=weights, apply=trained_features.apply)


# What a config's `extractor` section may be; the first is meant where it names none.
ExtractorConfig = Inception | Random | Trained | ClipFeatures
