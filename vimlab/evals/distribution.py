"""How a set of pictures differs from a reference set: Fréchet and kernel distances, precision and recall, the Inception Score.

Generated pictures are compared as their protocol says; reconstructions with the very crops that they were made of, which is what
"reconstruction FID" means. A Fréchet distance is called FID where the network is the published Inception alone; else every figure
carries its network's name.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from vimlab import pictures
from vimlab.config import ConfigError, Duration
from vimlab.evals import features, neighbours, protocols
from vimlab.evals.archives import write_images
from vimlab.evals.compared import check_sets, compare, suffix_of, terms_of
from vimlab.evals.drawing import Drawing
from vimlab.evals.evaluator import Result, Subject
from vimlab.evals.extractors import Extractor, ExtractorConfig, Inception
from vimlab.evals.features import Features
from vimlab.evals.inception_score import check_count, inception_score
from vimlab.evals.plan import conditions_of
from vimlab.evals.reference import PAIRWISE, Reference, of_archive, of_eval_set, of_file, write

SHOWN, UNLIKE = 16, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated(Drawing):
    """Draws as many pictures as the protocol says; what evaluators of drawn sets share.

    Attributes:
      count: pictures; None is the protocol's number, or, without one, as many as the evaluation set has.
      protocol: a name of `protocols.PROTOCOLS`; None lets the other fields say.
      plan: of the conditions; see `protocols.Protocol`. None is the protocol's, or else "balanced" for classes and "set" for captions.
      guidance: scale of guidance; 1 is none.
      extractor: the network whose features are compared.
      pictures: an `.npz` file to write all pictures to, as others' evaluators read them; None writes none.
    """

    count: int | None = None
    protocol: str | None = None
    plan: protocols.Plan | None = None
    guidance: float = 1.0
    extractor: ExtractorConfig = Inception()
    pictures: str | None = None

    def settled(self, subject: Subject) -> tuple[int, str]:
        """Count and plan. Raises ConfigError where the protocol is not for this run, or says otherwise."""
        whole = len(subject.source) if subject.source else 0
        if self.protocol is None:
            return self.count or whole, self.plan or ("balanced" if subject.condition == "class" else "set")
        protocol = protocols.named(self.protocol, "generation")
        protocols.check(self.protocol, protocol, subject)
        count = protocol.count or whole
        for name, mine, its in (("count", self.count or None, count), ("plan", self.plan, protocol.plan)):
            if mine not in (None, its):
                raise ConfigError(f"evals.{self.NAME}.{name} is {mine!r}, but protocol {self.protocol!r} fixes it at {its!r}; leave one of them out")
        return count, protocol.plan

    def features(self, subject: Subject, extractor: Extractor) -> tuple[Features, dict[str, Any], Callable[[np.ndarray], np.ndarray]]:
        """Features of the pictures to draw; the protocol; and what draws the pictures of places i64[n], uint8[n,H,W,3]."""
        count, plan = self.settled(subject)
        if count < 2:
            raise ConfigError(f"evals.{self.NAME} compares sets, and one of {count} pictures is none; give it a count")
        conditions = conditions_of(subject, plan, count, self.seed)
        sampler, settings = self.sampler(subject, self.guidance)
        seeds = np.arange(self.seed, self.seed + count, dtype=np.uint32)
        draw = lambda places: sampler.draw(conditions[places], seeds[places], settings).images
        request = self.settings() | {"guidance": self.guidance, "plan": plan, "set": subject.source.info.fingerprint if subject.source else None}
        found = features.of_drawings(subject, extractor, request, count, draw, self.pictures is not None)
        protocol = request | {"named": self.protocol, "count": count, "condition": subject.condition, "seeds": "picture i has seed + i"}
        return found, protocol, draw

    def export(self, found: Features) -> None:
        """Writes all pictures, where that was asked for."""
        if self.pictures is None:
            return
        images = (shard["image"] for shard in found.shards)
        if jax.process_index() == 0:
            write_images(self.pictures, images, count=found.shards.count)
        else:
            collections.deque(images, maxlen=0)  # The first process reads each shard for all.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fid(Generated):
    """Compares drawn pictures with a reference: FID, sFID, KID, precision, recall, density, coverage; and looks for copies of training pictures.

    Attributes:
      reference: "eval" or "train", the run's sets under its evaluation crop; a file of statistics that vimlab wrote; `outside:PATH`,
        the statistics in a file of pytorch-fid's or in a reference batch of guided-diffusion's; or `images:PATH`, the pictures in
        such a batch, which allow every figure.
      write_reference: a file to write the reference's statistics to; None writes none.
      memorised: training pictures, spread over the set, among which the nearest to each drawn one is looked for; None looks for none.
    """

    NAME: ClassVar[str] = "fid"
    reference: str = "eval"
    write_reference: str | None = None
    memorised: int | None = 2000

    def run(self, subject: Subject) -> Result:
        """Draws and compares. Uses predict_fns["sample"] and ["decode"]."""
        count = self._check(subject)
        extractor = self.extractor.open()
        reference = self._reference(subject, extractor)
        check_sets(self.NAME, count, reference, self.write_reference)
        found, protocol, draw = self.features(subject, extractor)
        metrics = compare(found, reference, extractor)
        self.export(found)
        if self.write_reference:
            write(self.write_reference, "generation", reference, extractor)
        shown, arrays, first = self._show(found, reference, draw)
        if self.memorised:
            metrics |= self._memory(subject, extractor, found, first[: neighbours.SHOWN], shown)
            protocol["memorised"] = f"mean distance to the nearest of {self.memorised:,} training pictures, drawn over unseen real ones"
        return Result(metrics=metrics, protocol=protocol | terms_of(found, reference, extractor), pictures=shown, arrays=arrays)

    def _reference(self, subject: Subject, extractor: Extractor) -> Reference:
        if self.reference in ("eval", "train"):
            return of_eval_set(subject, extractor, self.reference)
        if self.reference.startswith("images:"):
            return of_archive(self.reference.removeprefix("images:"), subject, extractor)
        return of_file(self.reference, subject, extractor, "generation")

    def _show(self, found: Features, reference: Reference, draw: Callable) -> tuple[dict[str, np.ndarray], dict[str, Any], np.ndarray]:
        """Grids of the first pictures and of those farthest from every real one; which those are; and the first pictures themselves."""
        places, arrays = np.arange(min(SHOWN, found.count)), {}
        if reference.rows is not None:
            distances = neighbours.nearest(found.array("features", PAIRWISE), reference.rows)[0][:, 0]
            far = np.argsort(-distances, kind="stable")[:UNLIKE]
            unlike = found.places(PAIRWISE)[far]
            arrays["unlike"] = [{"picture": int(p), "distance": float(d)} for p, d in zip(unlike, distances[far], strict=True)]
            places = np.concatenate([places, unlike])
        images = draw(places)
        first, rest = images[:SHOWN][: found.count], images[min(SHOWN, found.count) :]
        shown = {"drawn": pictures.grid([first[i : i + 8] for i in range(0, len(first), 8)])}
        if len(rest):
            labels = [f"picture {u['picture']}, {u['distance']:.3g} away" for u in arrays["unlike"]]
            shown["drawn_unlike"] = pictures.captioned(rest, labels, columns=UNLIKE)
        return shown, arrays, first

    def _memory(self, subject: Subject, extractor: Extractor, found: Features, first: np.ndarray, shown: dict[str, np.ndarray]) -> dict[str, float]:
        """How near drawn pictures come to training pictures; adds the nearest of each of the first ones to `shown`."""
        training = features.of_set(subject, extractor, "train", self.memorised).array("features")
        drawn, real = found.array("features", PAIRWISE), features.of_set(subject, extractor, "eval").array("features", PAIRWISE)
        _, places = neighbours.nearest(features.featurise(extractor, first)["features"], training, min(neighbours.NEAREST, len(training)))
        shown["neighbours"] = neighbours.grid(subject, self.memorised, first, places)
        return {"nearest_training" + suffix_of(extractor): neighbours.ratio(drawn, real, training)}

    def _check(self, subject: Subject) -> int:
        """How many pictures to draw. Raises ConfigError for what is wrong before anything is computed."""
        if self.protocol and protocols.named(self.protocol, "generation").reference == "outside" and self.reference in ("eval", "train"):
            about = protocols.PROTOCOLS[self.protocol].about
            raise ConfigError(f"protocol {self.protocol!r} compares with {about}; set evals.fid.reference=outside:PATH to that file")
        if self.memorised and subject.training is None:
            raise ConfigError("evals.fid.memorised looks among training pictures, which are not at hand; set evals.fid.memorised=none")
        return self.settled(subject)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InceptionScore(Generated):
    """How sure a classifier is of each drawn picture, and how evenly its classes are met.

    Attributes:
      splits: parts of the set, over which mean and deviation are taken.
    """

    NAME: ClassVar[str] = "inception_score"
    splits: int = 10

    def run(self, subject: Subject) -> Result:
        """Draws and classifies. Uses predict_fns["sample"] and ["decode"]."""
        extractor, size = self.extractor.open(), subject.protocol["size"]
        if "logits" not in jax.eval_shape(extractor.apply, extractor.weights, jax.ShapeDtypeStruct((1, size, size, 3), np.float32)):
            raise ConfigError(f"the Inception Score needs a classifier, which {extractor.name} is not; set evals.inception_score.extractor.name=inception")
        check_count(self.settled(subject)[0], self.splits)
        found, protocol, _ = self.features(subject, extractor)
        mean, deviation = inception_score((shard["logits"] for shard in found.shards), found.shards.count, splits=self.splits)
        self.export(found)
        name = "inception_score" + suffix_of(extractor)
        terms = {"extractor": extractor.name, "extractor_identity": extractor.identity, "splits": self.splits, "order": "shuffled, seed 2020"}
        return Result(metrics={name: mean, name + "_std": deviation}, protocol=protocol | terms)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rfid:
    """Compares reconstructions with the pictures that they are of.

    Attributes:
      every: how often during training.
      protocol: a name of `protocols.PROTOCOLS`; None is over the whole evaluation set.
      reference: "eval", the very pictures; or statistics of them, for reconstruction, that vimlab wrote.
      extractor: the network whose features are compared.
      write_reference: a file to write the reference's statistics to; None writes none.
    """

    NAME: ClassVar[str] = "rfid"
    every: Duration = Duration(1000)
    protocol: str | None = None
    reference: str = "eval"
    extractor: ExtractorConfig = Inception()
    write_reference: str | None = None

    def run(self, subject: Subject) -> Result:
        """Reconstructs and compares. Uses predict_fns["reconstruct"]."""
        if self.protocol:
            protocols.check(self.protocol, protocols.named(self.protocol, "reconstruction"), subject)
        extractor = self.extractor.open()
        if self.reference == "eval":
            reference = of_eval_set(subject, extractor)
        else:
            reference = of_file(self.reference, subject, extractor, "reconstruction")
        check_sets(self.NAME, len(subject.source), reference, self.write_reference)
        found = features.of_reconstructions(subject, extractor)
        metrics = {f"r{name}": value for name, value in compare(found, reference, extractor).items()}
        if self.write_reference:
            write(self.write_reference, "reconstruction", reference, extractor)
        return Result(metrics=metrics, protocol={"named": self.protocol, "count": found.count} | terms_of(found, reference, extractor))
