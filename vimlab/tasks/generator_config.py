"""The config of a generator's training: the tokenizer it stands on, the model, what is dropped for guidance."""

import dataclasses
from typing import ClassVar

from vimlab.config import ConfigError, Duration
from vimlab.data.text import SentencePiece
from vimlab.export import WEIGHTS
from vimlab.generators.conditioners import NoCondition, TextCondition
from vimlab.generators.generator import GeneratorConfig
from vimlab.optim import Adafactor, AdamW
from vimlab.paths import Path, fetched, is_bucket
from vimlab.tasks.task import RunConfig

TOKENIZER, VOCABULARY = "tokenizer", "vocabulary.model"  # The copies in a generator's workdir.


def holds_tokenizer(workdir: Path) -> bool:
    """Whether a workdir holds its copy of the tokenizer; in a bucket half of one may lie there, whose weights are to come."""
    return (workdir / TOKENIZER / WEIGHTS).is_file() if is_bucket(workdir) else (workdir / TOKENIZER).is_dir()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropConfig:
    """Conditions replaced by the null one in training, which guidance needs.

    Attributes:
      rate: share of examples.
      start: when dropping begins: the whole run, or a last phase of it.
    """

    rate: float = 0.1
    start: Duration = Duration(0)

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"rate is {self.rate}, but must be between 0 and 1; to drop nothing, set drop=none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorRun(RunConfig):
    """The config of a generator's training.

    Attributes:
      tokenizer: a trained tokenizer's workdir, one of its checkpoints, or an export; its config comes with it.
      model: the generator.
      optim: its optimizer.
      drop: what guidance needs; none trains without it.
      replace: share of the tokens read, not of those predicted, that a random one takes the place of in training. A model of
        few pictures otherwise knows each by its first tokens, and neither heeds its condition nor recovers from a bad draw.
      ema: decay of the average of the weights, which is then what is evaluated, sampled and exported.
    """

    NAME: ClassVar[str] = "generator"
    tokenizer: str
    model: GeneratorConfig
    optim: AdamW | Adafactor = AdamW()
    drop: DropConfig | None = None
    replace: float = 0.0
    ema: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        text = isinstance(self.model.condition, TextCondition)
        if text and self.data.text is None:
            raise ConfigError("model.condition is 'text', so data.text must say how captions become ids; set data.text.name=bytes or sentencepiece")
        if self.data.text and not text:
            raise ConfigError(f"data.text is set, but model.condition is {self.model.condition.NAME!r} and reads no text; set data.text=none")
        if self.drop and isinstance(self.model.condition, NoCondition):
            raise ConfigError("drop is set, but model.condition is 'none' and there is nothing to drop; set drop=none")
        for name in ("samples", "alignment"):
            evaluator = getattr(self.evals, name)
            if evaluator and evaluator.guidance not in (None, 1) and not self.drop:
                raise ConfigError(f"evals.{name}.guidance is {evaluator.guidance:g}, but without drop the model never learns to do without its "
                                  f"condition; set drop.rate=0.1, or evals.{name}.guidance=1")
        if not 0 <= self.replace < 1:
            raise ConfigError(f"replace is {self.replace}, but a share of tokens is at least 0 and below 1")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"ema is {self.ema}, but a decay is between 0 and 1; for no average, set ema=none")

    def within(self, workdir: Path) -> "GeneratorRun":
        """The config with the copies that its workdir holds in place of the tokenizer and the vocabulary it was started with."""
        config = self
        if holds_tokenizer(workdir):
            config = dataclasses.replace(config, tokenizer=str(workdir / TOKENIZER))
        if (workdir / VOCABULARY).is_file() and isinstance(config.data.text, SentencePiece):
            text = dataclasses.replace(config.data.text, vocabulary=str(fetched(workdir / VOCABULARY)))
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, text=text))
        return config
