"""Evaluators by name, and the config section that turns them on."""

import dataclasses
from collections.abc import Sequence

from vimlab.config import ConfigError
from vimlab.evals.alignment import Alignment, of_shapes
from vimlab.evals.clip_score import ClipScore
from vimlab.evals.codebook import Codebook
from vimlab.evals.distribution import Fid, InceptionScore, Rfid
from vimlab.evals.evaluator import Evaluator, Result, Subject, evaluate
from vimlab.evals.likelihood import Likelihood
from vimlab.evals.probe import Probe
from vimlab.evals.reconstruction import Reconstruction
from vimlab.evals.samples import Samples
from vimlab.evals.token_language import TokenLanguage

__all__ = ["EVALUATORS", "EvalsConfig", "Evaluator", "Result", "Subject", "evaluate", "suited"]

_ALL = (Reconstruction, Rfid, Codebook, TokenLanguage, Likelihood, Samples, Fid, InceptionScore, Alignment, ClipScore, Probe)
EVALUATORS: dict[str, type] = {e.NAME: e for e in _ALL}
SHORT = {"is": InceptionScore.NAME}  # A Python keyword, which no config can have as a key.


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalsConfig:
    """What is evaluated during training, each at its own pace; None leaves an evaluator out."""

    reconstruction: Reconstruction | None = None
    codebook: Codebook | None = None
    likelihood: Likelihood | None = None
    samples: Samples | None = None
    alignment: Alignment | None = None
    rfid: Rfid | None = None
    fid: Fid | None = None
    inception_score: InceptionScore | None = None
    token_language: TokenLanguage | None = None
    probe: Probe | None = None
    clip_score: ClipScore | None = None

    def enabled(self) -> dict[str, Evaluator]:
        """The evaluators that run during training."""
        return {name: getattr(self, name) for name in EVALUATORS if getattr(self, name) is not None}

    def named(self, names: Sequence[str]) -> dict[str, Evaluator]:
        """The evaluators asked for by name, as the config sets them or else with their defaults. Raises ConfigError."""
        names = [SHORT.get(n, n) for n in names]
        unknown = [n for n in names if n not in EVALUATORS]
        if unknown:
            raise ConfigError(f"evaluator {unknown[0]!r} is unknown; known are {sorted(EVALUATORS)}")
        return {name: getattr(self, name) or EVALUATORS[name]() for name in names}


def suited(subject: Subject) -> list[str]:
    """The evaluators that tell of this model on this set: what `vimlab eval` runs unasked."""
    if "nll" not in subject.predict_fns:
        return [Reconstruction.NAME, Codebook.NAME]
    shapes = subject.condition == "text" and of_shapes(subject.source[0].get("caption", ""))
    return [Likelihood.NAME, Samples.NAME] + [Alignment.NAME] * shapes
