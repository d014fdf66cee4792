"""Evaluators by name, and the config section that turns them on."""

import dataclasses
from collections.abc import Sequence

from vimlab.config import ConfigError
from vimlab.evals.codebook import Codebook
from vimlab.evals.evaluator import Evaluator, Result, Subject, evaluate
from vimlab.evals.reconstruction import Reconstruction

__all__ = ["EVALUATORS", "EvalsConfig", "Evaluator", "Result", "Subject", "evaluate"]

EVALUATORS: dict[str, type] = {Reconstruction.NAME: Reconstruction, Codebook.NAME: Codebook}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalsConfig:
    """What is evaluated during training, each at its own pace; None leaves an evaluator out."""

    reconstruction: Reconstruction | None = None
    codebook: Codebook | None = None

    def enabled(self) -> dict[str, Evaluator]:
        """The evaluators that run during training."""
        return {name: getattr(self, name) for name in EVALUATORS if getattr(self, name) is not None}

    def named(self, names: Sequence[str]) -> dict[str, Evaluator]:
        """The evaluators asked for by name, as the config sets them or else with their defaults. Raises ConfigError."""
        unknown = [n for n in names if n not in EVALUATORS]
        if unknown:
            raise ConfigError(f"evaluator {unknown[0]!r} is unknown; known are {sorted(EVALUATORS)}")
        return {name: getattr(self, name) or EVALUATORS[name]() for name in names}
