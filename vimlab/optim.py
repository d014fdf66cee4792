"""Optimizers and schedules: AdamW and Adafactor as the papers set them, clipping, and the average of weights."""

import abc
import dataclasses
import re
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from vimlab.adafactor import int8_ema, scale_by_factored_rms
from vimlab.config import ConfigError, Duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim(abc.ABC):
    """What every optimizer has.

    Attributes:
      learning_rate: the peak; this is the rate used, whatever the batch or the number of devices.
      warmup: linear from 0.
      schedule: 'cosine' or 'exponential' to `final` over the rest of the run, or 'constant'.
      final: learning rate at the end, as a share of the peak.
      decay_start: where the decay begins; the end of the warm-up if not set.
      weight_decay: decoupled from the gradient, times the learning rate.
      no_decay: parameters whose path matches this regular expression do not decay; biases, norms and codes.
      clip: global norm that gradients are clipped to.
    """

    learning_rate: float = 1e-4
    warmup: Duration = Duration(0)
    schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    final: float = 0.5
    decay_start: Duration | None = None
    weight_decay: float = 1e-4
    no_decay: str = r"(^|/)(b|bias|scale|codebook|qkv_bias|out_bias)$"
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or not 0 <= self.final <= 1:
            raise ConfigError(f"learning_rate {self.learning_rate} must be positive and final {self.final} within [0, 1]")
        if self.schedule == "exponential" and self.final == 0:
            raise ConfigError("an exponential schedule cannot end at final = 0; use a small positive share")

    def rate(self, total: int, to_steps) -> optax.Schedule:
        """The learning rate as a function of the step; `to_steps` turns a Duration into steps."""
        warmup = to_steps(self.warmup)
        start = warmup if self.decay_start is None else to_steps(self.decay_start)

        def rate(step):
            step = jnp.asarray(step, jnp.float32)
            progress = jnp.clip((step - start) / max(total - start, 1), 0, 1)
            share = {
                "constant": 1.0,
                "cosine": self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress)),
                "exponential": self.final**progress if self.final else 1.0,
            }[self.schedule]
            return self.learning_rate * share * jnp.minimum(1.0, (step + 1) / max(warmup, 1))

        return rate

    def make(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Clipping, the optimizer's own scaling, weight decay, the learning rate: in this order."""
        clip = [optax.clip_by_global_norm(self.clip)] if self.clip else []
        decay = [optax.add_decayed_weights(self.weight_decay, self.decay_mask)] if self.weight_decay else []
        return optax.chain(*clip, self.scaling(), *decay, optax.scale_by_learning_rate(rate))

    def decay_mask(self, params: Any) -> Any:
        """True for the parameters that decay."""
        return jax.tree_util.tree_map_with_path(lambda path, _: not re.search(self.no_decay, _name(path)), params)

    @abc.abstractmethod
    def scaling(self) -> optax.GradientTransformation:
        """From gradients to steps of about unit size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optim):
    """Adam with decoupled weight decay; the defaults are the ViT-VQGAN paper's (section 4.1)."""

    NAME: ClassVar[str] = "adamw"
    b1: float = 0.9
    b2: float = 0.99
    epsilon: float = 1e-8

    def scaling(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adafactor(Optim):
    """Adafactor with a fixed decay, an Adam-like first moment and no parameter scaling, as Parti sets it (section 4.1).

    Parti's own is `moment: int8, weight_decay: 0.045, clip: 4`. Each layer of a scanned stack is a tensor for itself.

    Attributes:
      b1: of the first moment of the update; 0 keeps none.
      b2: of the factored second moment.
      clip_update: root mean square that an update is clipped to, per tensor.
      min_dim: tensors are factored over their two largest dimensions where both have at least this size; attention's are
        (width, head_dim), whole for every head.
      moment: what the first moment is kept in; int8 has a scale for each index but that of axis 0.
      scanned: parameters whose path matches this regular expression stack layers on their first dimension.
    """

    NAME: ClassVar[str] = "adafactor"
    b1: float = 0.9
    b2: float = 0.96
    epsilon: float = 1e-30
    clip_update: float = 1.0
    min_dim: int = 128
    moment: Literal["f32", "int8"] = "f32"
    scanned: str = r"(^|/)blocks/"

    def scaling(self) -> optax.GradientTransformation:
        factored = scale_by_factored_rms(self.b2, self.epsilon, self.clip_update, self.min_dim, self.stacked)
        if not self.b1:
            return factored
        # Of updates without the learning rate, unlike Praxis, which averages them with it: a step has the rate of the schedule
        # at that step. Where the rate changes little in 1 / (1 - b1) steps, the two are the same.
        moments = {"f32": optax.ema(self.b1, debias=False), "int8": int8_ema(self.b1, self.stacked)}
        return optax.chain(factored, moments[self.moment])

    def stacked(self, params: Any) -> Any:
        """True for the parameters that stack layers. Raises ConfigError where one has no dimension to stack them on."""

        def stacks(path, param):
            found = re.search(self.scanned, _name(path)) is not None
            if found and not param.ndim:
                raise ConfigError(f"scanned {self.scanned!r} matches {_name(path)}, a single number; it must match stacks of layers only")
            return found

        return jax.tree_util.tree_map_with_path(stacks, params)


def _name(path: Any) -> str:
    return "/".join(str(getattr(k, "key", k)) for k in path)


def update_average(average: Any, params: Any, decay: float) -> Any:
    """One step of the exponential moving average of weights."""
    return jax.tree.map(lambda a, p: a * decay + p * (1 - decay), average, params)
