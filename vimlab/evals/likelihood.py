"""How well a generator predicts the tokens of held-out images: bits per token, beside the entropy of their frequencies."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from vimlab.config import Duration
from vimlab.evals.codebook import CodebookStats
from vimlab.evals.evaluator import Result, Subject, condition_of, to_host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Evaluates -log p(tokens | condition) of every image, the model given all tokens before each.

    Attributes:
      every: how often during training.
    """

    NAME: ClassVar[str] = "likelihood"
    every: Duration = Duration(1000)

    def run(self, subject: Subject) -> Result:
        """Scores every image's tokens under its own condition. Uses predict_fns["encode"] and ["nll"]."""
        encode, nll = subject.predict("encode"), subject.predict("nll")
        frequencies = CodebookStats(subject.spec.codes, subject.spec.groups)
        nats, size = [], 0
        for images, batch, real in subject.rows():
            ids = encode(subject.state, images).ids
            frequencies.update(to_host(ids)[real])
            scores = nll(subject.state, ids[..., 0], condition_of(batch))
            nats.append(to_host(scores)[real].astype(np.float64).sum(1))
            size = math.prod(images.shape[1:])
        # One number an image, in the set's order and in f64: no batch size or number of devices enters the mean.
        per_image = np.concatenate(nats)
        per_token = float(per_image.mean()) / subject.spec.length
        bits, unigram = per_token / math.log(2), frequencies.metrics()["entropy_bits"]
        metrics = {
            "bits_per_token": bits,
            "nats_per_token": per_token,
            "bits_per_dim": bits * subject.spec.length / size,
            "unigram_bits": unigram,
            "margin_bits": unigram - bits,
        }
        protocol = {
            "count": len(per_image),
            "tokenizer": dataclasses.asdict(subject.spec),
            "tokens_per_image": subject.spec.length,
            "condition": subject.condition,
            "bits_per_token": "teacher-forced -log2 p(token | tokens before it, the image's own condition), mean over tokens and images; "
            "guidance, temperature and filters have no part in it",
            "bits_per_dim": f"bits per image over {size} numbers; of a lossy code, so no density of pixels",
            "unigram_bits": "entropy of the pooled frequencies of these very tokens",
        }
        return Result(metrics=metrics, protocol=protocol)
