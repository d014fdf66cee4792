"""What a generator draws: pictures for the first conditions of the evaluation set, beside the real ones."""

import dataclasses
from typing import ClassVar

import numpy as np

from vimlab import pictures
from vimlab.evals.drawing import Drawing, first_prompts
from vimlab.evals.evaluator import Result, Subject
from vimlab.sampling.sampler import GROUP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples(Drawing):
    """Draws a picture for each of the first `count` distinct captions or classes; for a model without a condition, for seeds.

    Attributes:
      guidance: scale of guidance; 1 is none.
    """

    NAME: ClassVar[str] = "samples"
    guidance: float = 1.0
    rows_per_device: int = GROUP

    def run(self, subject: Subject) -> Result:
        """Draws. Uses predict_fns["encode"], ["sample"] and ["decode"]."""
        told, encode = subject.condition != "none", subject.predict("encode")
        prompts = first_prompts(subject, self.count, lambda images: encode(subject.state, images).ids, distinct=told)
        drawn = self.draw(subject, prompts, self.guidance)
        metrics = {
            "log_prob_per_token": float(drawn.log_probs.astype(np.float64).mean()),
            "distinct_share": len(np.unique(drawn.ids)) / subject.spec.codes,
            "distinct_share_real": len(np.unique(prompts.found)) / subject.spec.codes,
        }
        protocol = {
            **self.protocol(subject, prompts),
            "guidance": self.guidance,
            "log_prob_per_token": "nats, of each token under the distribution that it was drawn from; 0 at temperature 0",
            "distinct_share": "share of the codebook that occurs in the drawn pictures; real: in as many pictures of the set",
        }
        captions = prompts.names if told else [f"seed {self.seed + i}" for i in range(len(prompts.names))]
        grid = pictures.captioned(drawn.images, captions, beside=prompts.images if told else None)
        return Result(metrics=metrics, protocol=protocol, pictures={self.NAME: grid})
