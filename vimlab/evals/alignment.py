"""Whether drawn pictures show what their captions say, read from the pixels: for captions of the shapes world alone."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from vimlab import pictures
from vimlab.config import ConfigError
from vimlab.data.base import DataError
from vimlab.data.formats import synthetic
from vimlab.evals.drawing import Drawing, first_prompts
from vimlab.evals.evaluator import Result, Subject

KINDS = ("count", "colour", "shape", "size", "relation")
SHOWN, COLUMNS = 24, 6
Verdicts = list[dict[str, bool]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment(Drawing):
    """Draws a picture for each of the first `count` captions, and verifies every statement of the caption in it.

    Attributes:
      guidance: scale whose figures are the plain ones; None is 3 for a model that was trained for guidance, else 1.
      scales: further ones to draw at, for the curve.
    """

    NAME: ClassVar[str] = "alignment"
    count: int = 200
    guidance: float | None = None
    scales: tuple[float, ...] = (1.0,)

    def run(self, subject: Subject) -> Result:
        """Draws at every scale. Uses predict_fns["reconstruct"], ["sample"] and ["decode"]."""
        if subject.condition != "text":
            raise ConfigError(f"alignment verifies captions, but this model reads none (its condition is {subject.condition!r}); leave it out")
        reconstruct = subject.predict("reconstruct")
        prompts = first_prompts(subject, self.count, lambda images: reconstruct(subject.state, images), distinct=False)
        held_out = _held_out(prompts.names)
        guidance = self.guidance if self.guidance is not None else 3.0 if subject.guided else 1.0
        scales = sorted({guidance, *self.scales})
        drawn = {scale: self.draw(subject, prompts, scale).images for scale in scales}
        verdicts = {scale: _verify(drawn[scale], prompts.names) for scale in scales}
        points = {s: shares(verdicts[s], held_out) | control(drawn[s], prompts.names, held_out) for s in scales}
        ceiling = shares(_verify(pictures.to_uint8(prompts.found), prompts.names), held_out)
        groups, failed = [name for name, _ in _groups(held_out)], _failed(prompts.names, verdicts[guidance])
        metrics = points[guidance] | {f"{name}_ceiling": ceiling[name] for name in groups}
        metrics |= {f"{name}_at_{s:g}": points[s][name] for s in scales if s != guidance for name in groups}
        return Result(
            metrics=metrics,
            protocol=self.protocol(subject, prompts) | {"guidance": guidance, "scales": scales} | _terms(held_out),
            pictures={self.NAME: _grid(drawn[guidance], prompts.names, held_out, verdicts[guidance])} | _failures(drawn[guidance], failed),
            arrays={
                "curve": [{"guidance": s} | points[s] for s in scales],
                "ceiling": ceiling,
                "failed": failed,
            },
        )


def _terms(held_out: np.ndarray) -> dict[str, str]:
    """The protocol's own words for the figures."""
    return {
        "seen": f"share of pictures that meet their whole caption, over {int((~held_out).sum())} captions without a held-out pair",
        "held_out": f"the same over {int(held_out.sum())} captions with a pair of colour and shape that training never showed",
        "control": "the same pictures verified against the next other caption of their group, in a circle",
        "ceiling": "the tokenizer's reconstructions of the real pictures, against their captions",
        "right": "share of the statements of a kind that hold, over all captions",
        "verifier": "vimlab.data.formats.synthetic.verify, from pixels",
    }


def of_shapes(caption: str) -> bool:
    """Whether a caption is of the shapes world's grammar."""
    try:
        synthetic.parse(caption)
    except DataError:
        return False
    return True


def _held_out(captions: Sequence[str]) -> np.ndarray:
    """bool[M]. Raises ConfigError where a caption is not of the shapes world."""
    for caption in captions:
        if not of_shapes(caption):
            raise ConfigError(
                f"alignment is for captions of the shapes world, which {caption!r} is not; leave it out, or set data.eval=shapes:test"
            )
    return np.array([synthetic.is_held_out(caption) for caption in captions])


def _verify(images: np.ndarray, captions: Sequence[str]) -> Verdicts:
    return [synthetic.verify(image, caption) for image, caption in zip(images, captions, strict=True)]


def shares(verdicts: Verdicts, held_out: np.ndarray) -> dict[str, float]:
    """What share of M pictures meet every statement, "seen" and "held_out" by bool[M], and of the statements of each kind.

    A group without captions and a kind that no caption states are absent.
    """
    whole = np.array([all(v.values()) for v in verdicts])
    found = {name: float(whole[group].mean()) for name, group in _groups(held_out)}
    for kind in KINDS:
        statements = [ok for v in verdicts for name, ok in v.items() if name.split()[0] == kind]
        if statements:
            found[f"{kind}_right"] = float(np.mean(statements))
    return found


def control(images: np.ndarray, captions: Sequence[str], held_out: np.ndarray) -> dict[str, float]:
    """What share of the pictures of each group meet another caption of it, the next in a circle that states something else."""
    stated, found = [synthetic.parse(caption) for caption in captions], {}
    for name, group in _groups(held_out):
        places = np.flatnonzero(group)
        pairs = []
        for n, place in enumerate(places):
            others = (p for p in np.roll(places, -n) if stated[p] != stated[place])
            pairs += [(place, other) for other in [next(others, None)] if other is not None]
        if pairs:
            found[f"{name}_control"] = float(np.mean([all(synthetic.verify(images[i], captions[j]).values()) for i, j in pairs]))
    return found


def _groups(held_out: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The groups that have a member, and who that is, bool[M]."""
    return [(name, group) for name, group in (("seen", ~held_out), ("held_out", held_out)) if group.any()]


def _failed(captions: Sequence[str], verdicts: Verdicts) -> list[dict[str, Any]]:
    """The captions that were not met, their pictures' places, and which of their statements do not hold."""
    wrong = [[name for name, ok in v.items() if not ok] for v in verdicts]
    return [{"caption": caption, "picture": i, "wrong": names} for i, (caption, names) in enumerate(zip(captions, wrong, strict=True)) if names]


def _failures(images: np.ndarray, failed: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The pictures that miss the most of their captions, under what they miss."""
    worst = sorted(failed, key=lambda f: -len(f["wrong"]))[:SHOWN]
    labels = [f"{f['caption']}; not found: {', '.join(f['wrong'])}" for f in worst]
    return {"alignment_failed": pictures.captioned(images[[f["picture"] for f in worst]], labels, columns=COLUMNS)} if worst else {}


def _grid(images: np.ndarray, captions: Sequence[str], held_out: np.ndarray, verdicts: Verdicts) -> np.ndarray:
    """The first pictures, ticked or crossed."""
    labels = [f"held out: {c}" if h else c for c, h in zip(captions, held_out, strict=True)][:SHOWN]
    return pictures.captioned(images[:SHOWN], labels, columns=COLUMNS, marks=[all(v.values()) for v in verdicts[:SHOWN]])
