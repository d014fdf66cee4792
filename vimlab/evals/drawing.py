"""What evaluators that draw pictures share: the first conditions of the evaluation set, and how pictures are drawn for them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vimlab.config import ConfigError, Duration
from vimlab.evals.evaluator import Subject, condition_of, to_host
from vimlab.sampling.decode import Knobs, knobs
from vimlab.sampling.guidance import Schedule
from vimlab.sampling.sampler import Drawn, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Conditions of the evaluation set, with the pictures that they belong to.

    Attributes:
      names: what people call them: captions, or names of classes; empty where the model is told nothing.
      conditions: what the model reads, labels i32[M] or text ids i32[M,T].
      images: uint8[M,S,S,3].
      found: what `look` made of the images, [M,…].
    """

    names: list[str]
    conditions: np.ndarray
    images: np.ndarray
    found: np.ndarray


def first_prompts(subject: Subject, count: int, look: Callable[[jax.Array], jax.Array], *, distinct: bool) -> Prompts:
    """The first `count` conditions of the set, or as many as there are; with `distinct`, each only once.

    Args:
      look: called on the images f32[B,S,S,3] of every batch that has one of them.

    Raises:
      ConfigError: the set is empty.
    """
    known: set[bytes] = set()
    names, parts = [], []
    for images, batch, real in subject.rows():
        conditions = to_host(condition_of(batch))
        chosen = []
        for row in np.flatnonzero(real):
            key = conditions[row].tobytes()
            if len(names) + len(chosen) < count and not (distinct and key in known):
                known.add(key)
                chosen.append(row)
        if chosen:
            labels, places = to_host(batch["label"]), to_host(batch["index"])
            names += [_name(subject, int(places[row]), int(labels[row])) for row in chosen]
            parts.append([conditions[chosen], to_host(batch["image"])[chosen], to_host(look(images))[chosen]])
        if len(names) == count:
            break
    conditions, images, found = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Prompts(names=names, conditions=conditions, images=images, found=found)


def _name(subject: Subject, index: int, label: int) -> str:
    if subject.condition == "text":
        return subject.source[index].get("caption", "")
    if subject.condition == "class":
        return subject.source.info.class_names[label] if label >= 0 else "no class"
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pictures are drawn.

    Attributes:
      every: how often during training.
      count: conditions to draw for, the first of the set.
      temperature: 0 takes the likeliest token.
      top_k: how many of the likeliest tokens may be drawn; 0 is all.
      top_p: only the likeliest tokens that have this share of the probability together; 1 is all.
      schedule: of guidance, from the first token to the last.
      seed: picture i is drawn with seed + i, whatever else is set.
      rows_per_device: pictures that each device draws at a time, on any number of devices. It fixes the last bits of the logits,
        and is therefore part of the protocol; more keep an accelerator busier and take more of its memory.
    """

    every: Duration = Duration(1000)
    count: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    schedule: Schedule = "constant"
    seed: int = 0
    rows_per_device: int = 32

    def __post_init__(self):
        if self.count is not None and self.count < 1:
            raise ConfigError(f"count is {self.count}, but must be at least 1")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"temperature {self.temperature} and top_k {self.top_k} must not be negative, and top_p {self.top_p} must be above 0 "
                "and at most 1"
            )
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is {self.seed}, but must be from 0 to {2**31 - 1}")
        if self.rows_per_device < 1:
            raise ConfigError(f"rows_per_device is {self.rows_per_device}, but must be at least 1")

    def draw(self, subject: Subject, prompts: Prompts, guidance: float) -> Drawn:
        """A picture for each of M prompts. Uses predict_fns["sample"] and ["decode"]; raises as `sampler` does."""
        count = len(prompts.conditions)
        sampler, settings = self.sampler(subject, guidance)
        return sampler.draw(prompts.conditions, np.arange(self.seed, self.seed + count, dtype=np.uint32), settings)

    def sampler(self, subject: Subject, guidance: float) -> tuple[Sampler, Knobs]:
        """What draws pictures, and its settings.

        Raises:
          ConfigError: guidance other than 1 of a model that was trained without dropping its condition.
        """
        sample, decode = subject.predict("sample"), subject.predict("decode")
        if guidance != 1 and not subject.guided:
            raise ConfigError(
                f"guidance is {guidance:g}, but this model never learned to do without its condition; evaluate at guidance 1, or train "
                "with config.drop.rate=0.1"
            )
        settings = knobs(
            subject.spec.length, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, guidance=guidance, schedule=self.schedule
        )
        bind = lambda fn: lambda *args: fn(subject.state, *args)
        return Sampler(bind(sample), bind(decode), rows=self.rows_per_device, ways=subject.ways), settings

    def protocol(self, subject: Subject, prompts: Prompts) -> dict[str, Any]:
        """What fixes the draws, but for guidance."""
        return {"count": len(prompts.conditions), "condition": subject.condition, **self.settings(), "seeds": "picture i has seed + i"}

    def settings(self) -> dict[str, Any]:
        """How pictures are drawn, but for guidance."""
        return {key: getattr(self, key) for key in ("temperature", "top_k", "top_p", "schedule", "seed", "rows_per_device")}
