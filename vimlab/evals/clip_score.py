"""Whether drawn pictures fit their captions in the space of a pretrained image-text network: CLIP score, with its controls."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from vimlab import pictures
from vimlab.config import ConfigError
from vimlab.evals.drawing import Drawing, first_prompts
from vimlab.evals.evaluator import Result, Subject
from vimlab.scoring.scorers import Clip

SHOWN, LOWEST, COLUMNS = 24, 12, 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScore(Drawing):
    """Draws a picture for each of the first `count` captions, and compares it with its caption.

    `cosine` is the plain mean of cosines. `clip_score` is that of torchmetrics' CLIPScore, 100 times that mean and at least 0. The
    paper's CLIP-S ("CLIPScore: A Reference-free Evaluation Metric for Image Captioning", Hessel et al., 2021) is another: 2.5 times
    each cosine, each at least 0, of captions after the words "A photo depicts".

    Attributes:
      guidance: scale of guidance; 1 is none.
      scorer: the network.
    """

    NAME: ClassVar[str] = "clip_score"
    count: int = 200
    guidance: float = 1.0
    scorer: Clip = Clip()

    def run(self, subject: Subject) -> Result:
        """Draws. Uses predict_fns["sample"] and ["decode"]. Raises ConfigError, and UserError for wrong files, before it draws."""
        if subject.condition != "text":
            raise ConfigError(
                f"clip_score compares pictures with captions, but this model reads none (its condition is {subject.condition!r}); leave it out"
            )
        scorer = self.scorer.open()
        prompts = first_prompts(subject, self.count, lambda images: images[:, 0, 0, 0], distinct=False)
        drawn = self.draw(subject, prompts, self.guidance)
        texts, found, real = scorer.texts(prompts.names), scorer.images(drawn.images), scorer.images(prompts.images)
        cosines = _cosines(found, texts)
        places = np.array(another(prompts.names))
        groups = {"": cosines, "_real": _cosines(real, texts)}
        if len(places):
            groups |= {"_control": _cosines(found, texts[places]), "_real_control": _cosines(real, texts[places])}
        means = {name: float(values.mean()) for name, values in groups.items()}
        metrics = {f"clip_score{name}": max(100 * mean, 0.0) for name, mean in means.items()}
        metrics |= {f"cosine{name}": mean for name, mean in means.items()}
        protocol = {
            **self.protocol(subject, prompts),
            "guidance": self.guidance,
            **scorer.protocol(),
            "clip_score": "max(100 · mean cosine, 0), as torchmetrics' CLIPScore; cosine: the mean itself",
            "real": "the set's own pictures, at the size that the model sees, against their captions",
            "control": "the same pictures against the next other caption, in a circle",
        }
        labels = [f"{c:.3f} {name}" for c, name in zip(cosines, prompts.names, strict=True)]
        lowest = np.argsort(cosines, kind="stable")[:LOWEST]
        shown = {
            self.NAME: pictures.captioned(drawn.images[:SHOWN], labels[:SHOWN], columns=COLUMNS),
            f"{self.NAME}_lowest": pictures.captioned(
                drawn.images[lowest], [labels[i] for i in lowest], columns=COLUMNS // 2, beside=prompts.images[lowest]
            ),
        }
        arrays = {"captions": prompts.names} | {f"cosines{name}": values.tolist() for name, values in groups.items()}
        return Result(metrics=metrics, protocol=protocol, pictures=shown, arrays=arrays)


def _cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """f64[M] of unit vectors f32[M,D]."""
    return (images.astype(np.float64) * texts).sum(-1)


def another(captions: Sequence[str]) -> list[int]:
    """For each caption the place of the next one, in a circle, that reads otherwise; nothing where all read the same."""
    if len(set(captions)) < 2:
        return []
    count = len(captions)
    return [next(j % count for j in range(i + 1, i + count) if captions[j % count] != captions[i]) for i in range(count)]
