"""What an evaluator is given and gives back, and the result files that carry each figure's protocol."""

import dataclasses
import datetime
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

import vimlab
from vimlab import paths, pictures
from vimlab.config import ConfigError, Duration
from vimlab.data.base import Source, SourceInfo
from vimlab.sampling.sampler import to_host
from vimlab.tokens import TokenSpec

KEPT = "kept"  # In a workdir's evals: what evaluators keep, of the sets and of the newest step alone.
# What only the caller knows of a figure; without any of these no figure is written.
PROTOCOL_KEYS = ("data", "fingerprint", "split", "crop", "size", "dtype", "parameters", "command")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model and the set of images to look at it with.

    Attributes:
      state: handed to the predict functions as it is.
      predict_fns: {"reconstruct": (state, images f32[B,H,W,3] in [0,1]) → f32[B,H,W,3],
        "encode": (state, images) → Tokens, "features": (state, images) → {name: f32[B,C] or f32[depth,B,C]}}, all jitted; a
        generator's have "decode", "nll" and "sample" too.
      batches: starts one pass over the set in its fixed order: {"image": uint8[B,S,S,3], "label": i32[B], "index": i32[B],
        "mask": f32[B]} and, where the model reads it, "text" i32[B,T]; the last batch is filled up to B with examples of
        mask 0. Arrays of NumPy, or global ones of JAX.
      spec: of the tokens that "encode" returns.
      protocol: PROTOCOL_KEYS and whatever else fixes the figures.
      step: of the state.
      source: the set's records, which the "index" of a batch's rows points into; None where they are not at hand.
      condition: what a generator is told: "none", "class" or "text"; for the last two there is a source.
      guided: whether it was trained without its condition too, so that guidance means something.
      ways: data-parallel devices; each always has as many rows at a time, however many devices there are.
      training: opens a number of training examples, or all where there are fewer, cut as the evaluation set is: (what they
        are, one pass in batches of the evaluation's form); None where they are not at hand.
      folder: where evaluators keep what they would not compute twice; `evaluate` sets it.
    """

    state: Any
    predict_fns: Mapping[str, Callable[..., jax.Array]]
    batches: Callable[[], Iterator[Mapping[str, Any]]]
    spec: TokenSpec
    protocol: Mapping[str, Any]
    step: int
    source: Source | None = None
    condition: str = "none"
    guided: bool = False
    ways: int = 1
    training: Callable[[int], tuple[SourceInfo, Iterator[Mapping[str, Any]]]] | None = None
    folder: paths.Path | None = None

    def predict(self, name: str) -> Callable[..., jax.Array]:
        """The predict function of that name. Raises ConfigError where the task has none."""
        if name not in self.predict_fns:
            raise ConfigError(f"this task cannot {name!r}, which an evaluator asked for; it offers {sorted(self.predict_fns)}")
        return self.predict_fns[name]

    def rows(self) -> Iterator[tuple[jax.Array, Mapping[str, Any], np.ndarray]]:
        """One pass: images f32[B,S,S,3] in [0,1], the batch that they are of, and which of its rows are real, bool[B].

        Raises:
          ConfigError: the set is empty.
        """
        count = 0
        for images, batch, real in rows_of(self.batches()):
            count += int(real.sum())
            yield images, batch, real
        if not count:
            raise ConfigError(
                f"the evaluation set {self.protocol['data']!r} (split {self.protocol['split']!r}) holds no images"
            )

    def examples(self) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """One pass: images f32[B,S,S,3] in [0,1] and which of them are real, bool[B]. Raises ConfigError on an empty set."""
        return ((images, real) for images, _, real in self.rows())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What one evaluation found.

    Attributes:
      metrics: names and figures.
      protocol: what the evaluator itself fixes; always the "count" of images.
      pictures: uint8[H,W,3] each.
      arrays: JSON values too large to be figures.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any]
    pictures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Evaluator(Protocol):
    """A section of `config.evals` that can run itself."""

    NAME: ClassVar[str]
    every: Duration

    def run(self, subject: Subject) -> Result:
        """Looks at the set, once. Raises ConfigError where the task cannot do what is asked."""


@jax.jit
def _to_float(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 255


def rows_of(batches: Iterator[Mapping[str, Any]]) -> Iterator[tuple[jax.Array, Mapping[str, Any], np.ndarray]]:
    """Images f32[B,S,S,3] in [0,1], the batch that they are of, and which of its rows are real, bool[B]."""
    return ((_to_float(batch["image"]), batch, to_host(batch["mask"]) > 0) for batch in batches)


def condition_of(batch: Mapping[str, Any]) -> Any:
    """What the generator is told of each row: text ids i32[B,T] where the batch has them, else labels i32[B]."""
    return batch["text"] if "text" in batch else batch["label"]


def evaluate(evaluators: Mapping[str, Evaluator], subject: Subject, workdir: str | os.PathLike) -> dict[str, float]:
    """Runs evaluators and writes `evals/{name}_{step}.json` and `pictures/{name}_{step}.png` into the workdir.

    Returns:
      {"eval/reconstruction/psnr": …}: every figure under its evaluator's name, as the training log takes them.

    Raises:
      ConfigError: the protocol lacks one of PROTOCOL_KEYS, the set is empty, or the task cannot do what is asked.
    """
    check_protocol(subject.protocol)
    workdir, figures = paths.place(workdir), {}
    subject = dataclasses.replace(subject, folder=workdir / "evals" / KEPT)
    for name, evaluator in evaluators.items():
        result = evaluator.run(subject)
        figures |= {f"eval/{name}/{key}": value for key, value in result.metrics.items()}
        if jax.process_index() == 0:
            write_result(workdir, name, subject.step, subject.protocol, result)
    if jax.process_index() == 0:
        _forget_other_steps(subject)
    return figures


def _forget_other_steps(subject: Subject) -> None:
    for folder in subject.folder.glob("step_*"):
        if folder.name != f"step_{subject.step:08d}":
            paths.delete_folder(folder)


def check_protocol(protocol: Mapping[str, Any]) -> None:
    """Raises ConfigError where a protocol lacks one of PROTOCOL_KEYS."""
    if missing := [k for k in PROTOCOL_KEYS if k not in protocol]:
        raise ConfigError(f"an evaluation figure needs its whole protocol; {missing} are missing")


@functools.cache
def code_digest() -> str:
    """Twelve hexadecimal digits that change with any source file of this package: the version of code that has no release yet."""
    digest, root = hashlib.sha256(), pathlib.Path(vimlab.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def write_result(workdir: paths.Path, name: str, step: int, protocol: Mapping[str, Any], result: Result) -> paths.Path:
    """Writes `evals/{name}_{step}.json` and the pictures of one result. Returns the former's path."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    known = {"evaluator": name, "step": step, "version": vimlab.__version__, "code": code_digest(), "jax": jax.__version__, "date": date}
    finite = {k: v if math.isfinite(v) else None for k, v in result.metrics.items()}
    record = {"protocol": {**protocol, **result.protocol, **known}, "metrics": finite, "arrays": result.arrays}
    path = workdir / "evals" / f"{name}_{step:08d}.json"
    pictures.write_whole(path, json.dumps(record, allow_nan=False).encode())
    for key, image in result.pictures.items():
        pictures.save_png(workdir / "pictures" / f"{key}_{step:08d}.png", image)
    return path
