"""Protocols by name: what must be equal for two figures of sets of pictures to be comparable, frozen.

A name in a result is a promise: change nothing here, add a new name. What a protocol leaves open (temperature, guidance, filters,
seed, dtype) is written into each result beside it.
"""

import dataclasses
from typing import Literal

from vimlab.config import ConfigError, suggest
from vimlab.evals.evaluator import Subject

Purpose = Literal["generation", "reconstruction"]
Plan = Literal["balanced", "random", "set"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a figure is over.

    Attributes:
      purpose: of its reference statistics.
      size: side of the pictures in pixels, drawn or reconstructed at, and of the reference.
      crop: name of the evaluation crop of the reference.
      count: pictures; None is as many as the evaluation set has.
      condition: what the generator is told, "class" or "text"; None for reconstructions.
      plan: of the conditions: "balanced", picture i has class i mod K; "random", uniform from the seed; "set", the evaluation
        set's own in its order, over again where more are drawn.
      classes: K, where there are classes.
      reference: "eval", the evaluation set; "outside", a file that the user has.
      about: of the reference, in words: what it is and where it is published.
    """

    purpose: Purpose
    size: int
    crop: str
    count: int | None = None
    condition: str | None = None
    plan: Plan | None = None
    classes: int | None = None
    reference: Literal["eval", "outside"] = "eval"
    about: str = ""


_IMAGENET = dict(
    purpose="generation", size=256, crop="center", count=50_000, condition="class", classes=1000, reference="outside",
    about="guided-diffusion's VIRTUAL_imagenet256_labeled.npz (github.com/openai/guided-diffusion, evaluations/README.md)",
)  # fmt: skip
_COCO = dict(purpose="generation", size=256, crop="center", count=30_000, condition="text", plan="set")
PROTOCOLS: dict[str, Protocol] = {
    "adm-50k-balanced": Protocol(**_IMAGENET, plan="balanced"),
    "adm-50k-random": Protocol(**_IMAGENET, plan="random"),
    "rfid-50k-val": Protocol(purpose="reconstruction", size=256, crop="center", count=50_000, about="ImageNet's 50,000 validation pictures"),
    "coco-30k-dalle-crop": Protocol(**_COCO, about="30,000 caption and picture pairs of MS-COCO 2014 validation, DALL-E's central square"),
    "ln-coco-30k": Protocol(**_COCO, about="30,000 pairs of Localized Narratives on MS-COCO validation, central square"),
    "cifar10-10k-balanced": Protocol(
        purpose="generation", size=32, crop="resize", count=10_000, condition="class", plan="balanced", classes=10,
        about="CIFAR-10's 10,000 test pictures",
    ),
    "cifar10-rfid-10k": Protocol(purpose="reconstruction", size=32, crop="resize", count=10_000, about="CIFAR-10's 10,000 test pictures"),
    "shapes-2k": Protocol(
        purpose="generation", size=32, crop="resize", count=2000, condition="text", plan="set", about="shapes:test, 2,000 pictures"
    ),
    "shapes-rfid-2k": Protocol(purpose="reconstruction", size=32, crop="resize", count=2000, about="shapes:test, 2,000 pictures"),
    "emoji-32": Protocol(purpose="generation", size=32, crop="resize", condition="text", plan="set", about="held-out emoji of vimlab's demo"),
}  # fmt: skip


def named(name: str, purpose: Purpose) -> Protocol:
    """A protocol of this purpose. Raises ConfigError on an unknown name, or one of the other purpose."""
    fitting = sorted(n for n, p in PROTOCOLS.items() if p.purpose == purpose)
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol {name!r} is unknown{suggest(name, fitting)} (for {purpose} there are {', '.join(fitting)})")
    if PROTOCOLS[name].purpose != purpose:
        raise ConfigError(f"protocol {name!r} is for {PROTOCOLS[name].purpose}, not for {purpose}; choose one of {', '.join(fitting)}")
    return PROTOCOLS[name]


def check(name: str, protocol: Protocol, subject: Subject) -> None:
    """Raises ConfigError where a model or its evaluation set is not what a protocol is about."""
    found = {"size": subject.protocol["size"], "crop": subject.protocol["crop"]["name"]}
    asked = {"size": protocol.size, "crop": protocol.crop}
    if protocol.purpose == "generation":
        found["condition"], asked["condition"] = subject.condition, protocol.condition
    if protocol.classes:
        found["classes"], asked["classes"] = len(subject.source.info.class_names or ()) if subject.source else 0, protocol.classes
    if protocol.reference == "eval" and protocol.count:
        found["evaluation pictures"] = len(subject.source) if subject.source else 0
        asked["evaluation pictures"] = protocol.count
    for key, value in asked.items():
        if found[key] != value:
            raise ConfigError(f"protocol {name!r} is for {key} {value!r}, but this run has {found[key]!r}; choose another protocol or data")
