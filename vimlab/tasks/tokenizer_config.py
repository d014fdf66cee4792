"""The config of a tokenizer's training: model, losses, optimizers, and what cannot go together."""

import dataclasses
from typing import ClassVar, Literal

from vimlab.config import ConfigError, Duration
from vimlab.optim import Adafactor, AdamW
from vimlab.tasks.task import RunConfig
from vimlab.tokenizers.codebook import ReseedConfig
from vimlab.tokenizers.tokenizer import TokenizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """LPIPS on VGG16.

    Attributes:
      weight: of the loss.
      weights: files with VGG16's convolutions and LPIPS's heads (torch or safetensors), one or two; without any the loss
        is left out, and the log says so.
    """

    weight: float = 0.1
    weights: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The discriminator and its losses.

    Attributes:
      weight: of the generator's adversarial loss.
      form: 'softplus' (non-saturating logistic) or 'hinge'.
      r1: gamma of the R1 penalty, for pixels in [0,1]: a quarter of the usual figure, which is for [-1,1].
      r1_every: steps between two penalties, each of which counts for all of them.
      train_start: when the discriminator begins to train.
      loss_start: when the generator begins to feel it.
      channel_multiplier, base_channels, max_channels, minibatch_group: of the StyleGAN2 discriminator.
    """

    weight: float = 0.1
    form: Literal["softplus", "hinge"] = "softplus"
    r1: float = 2.5
    r1_every: int = 16
    train_start: Duration = Duration(0)
    loss_start: Duration = Duration(0)
    channel_multiplier: float = 2.0
    base_channels: int = 16384
    max_channels: int = 512
    minibatch_group: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses; the defaults are the paper's."""

    l2: float = 1.0
    l1: float = 0.0
    logit_laplace: float = 0.1
    codebook: float = 1.0
    perceptual: PerceptualConfig | None = PerceptualConfig()
    adversarial: AdversarialConfig | None = AdversarialConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerRun(RunConfig):
    """The config of a tokenizer's training.

    Attributes:
      model: the tokenizer.
      loss: its losses.
      optim: of the tokenizer.
      discriminator_optim: of the discriminator; the tokenizer's if not set.
      reseed: when unused codes are moved; none leaves them where they are.
      ema: decay of the average of the tokenizer's weights, which is then what is evaluated and exported.
    """

    NAME: ClassVar[str] = "tokenizer"
    model: TokenizerConfig = TokenizerConfig()
    loss: LossConfig = LossConfig()
    optim: AdamW | Adafactor = AdamW()
    discriminator_optim: AdamW | Adafactor | None = None
    reseed: ReseedConfig | None = ReseedConfig(until=Duration(80, "percent"))
    ema: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("tokens", "text"):
            if getattr(self.data, key) is not None:
                raise ConfigError(f"data.{key} is for generators; a tokenizer reads pictures alone, so set data.{key}=none")
        if self.loss.logit_laplace and self.model.output != "logit_laplace":
            raise ConfigError("loss.logit_laplace needs model.output='logit_laplace'; set it, or loss.logit_laplace=0")
        if self.reseed and self.model.quantizer.bank != "free":
            raise ConfigError("reseed moves codes that have their own parameters; with model.quantizer.bank='linear' set reseed=none")
        gan, size = self.loss.adversarial, self.model.image_size
        if gan and (size < 8 or size & (size - 1)):
            raise ConfigError(f"the discriminator needs model.image_size to be a power of two of at least 8, not {size}; "
                              "choose another, or set loss.adversarial=none")
        if gan and (self.batch_size // self.accumulate) % gan.minibatch_group:
            raise ConfigError(f"batch_size / accumulate is {self.batch_size // self.accumulate}, which is not a multiple of "
                              f"loss.adversarial.minibatch_group {gan.minibatch_group}")
