"""Linear probe: what class a picture is of, told from a frozen model's features by a linear classifier (ViT-VQGAN; iGPT)."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vimlab.config import ConfigError, Duration
from vimlab.evals import logistic
from vimlab.evals.devices import alone
from vimlab.evals.evaluator import Result, Subject, rows_of, to_host

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)
PIXELS = 8  # Side of the pictures that the baseline sees.


class Probed(NamedTuple):
    """Accuracies of a probe: on the held-out training examples, which chose its weight decay, and on the evaluation set."""

    held_out: float
    accuracy: float
    weight_decay: float


class Examples(NamedTuple):
    """Features by name, f32[M,D] or f32[depth,M,D], and labels i32[M], of pictures in their set's order."""

    features: dict[str, np.ndarray]
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """Evaluates features, as means over positions, by the accuracy of a linear classifier trained on them.

    Of a generator each block's output is probed, the null condition given, and the block is chosen that does best on held-out
    training examples; of every model the tokenizer's latents and their codes; and, to compare, 8x8 pixels.

    Attributes:
      every: how often during training.
      count: training examples, spread evenly over the training set, under evaluation's crop.
      seed: of the choice of the tenth of them that is held out.
    """

    NAME: ClassVar[str] = "probe"
    every: Duration = Duration(5000)
    count: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 20:
            raise ConfigError(f"count is {self.count}, but a probe needs at least 20 training examples, of which it holds out a tenth")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, but must not be negative")

    def run(self, subject: Subject) -> Result:
        """Trains and measures. Uses predict_fns["features"] and the training set.

        Raises:
          ConfigError: there are no classes, no training set, or too few pictures with a class.
        """
        subject.predict("features")
        classes = None if subject.source is None else subject.source.info.class_names
        if not classes:
            raise ConfigError(f"probe learns to tell classes, but {subject.protocol['data']!r} has none; leave it out of --evals")
        if subject.training is None:
            raise ConfigError("probe learns from the training set, which is not at hand here; run it as `vimlab eval --evals probe`")
        info, batches = subject.training(self.count)
        train, test = _look(subject, rows_of(batches)), _look(subject, subject.rows())
        if len(train.labels) < 20 or not len(test.labels):
            raise ConfigError(f"probe found {len(train.labels)} pictures with a class in {info.name!r} and {len(test.labels)} in "
                              f"{subject.protocol['data']!r}, but needs at least 20 and 1")  # fmt: skip
        with alone():
            found = self._probe(train, test, len(classes))
        common = np.bincount(train.labels, minlength=len(classes)).argmax()
        protocol = {
            "count": len(test.labels),
            "classes": len(classes),
            "train_data": info.name,
            "train_fingerprint": info.fingerprint,
            "train_count": len(train.labels),
            "held_out": len(train.labels) // 10,
            "seed": self.seed,
            "features": "means over positions; a generator is given the null condition"
            + ("" if subject.guided or subject.condition == "none" else ", which it was not trained with"),
            "latents": "as they are compared with the codes; quantized: the codes in their place",
            "pixels": f"resized to {PIXELS}x{PIXELS}, antialiased",
            "recipe": "features standardised by the training examples' mean and deviation; multinomial logistic regression, mean "
            "cross-entropy + decay/2 |w|^2, no decay of the bias; full-batch L-BFGS in f32 from zeros until the gradient's norm is "
            f"{logistic.TOLERANCE:g} or for {logistic.STEPS} steps; decay, and the block, chosen on the held-out tenth, then trained on all",
            "decays": DECAYS,
            "chance_accuracy": "of always naming the training examples' commonest class",
        }
        arrays = {name: [p._asdict() for p in probes] for name, probes in found.items()}
        return Result(metrics=_metrics(found, float((test.labels == common).mean())), protocol=protocol, arrays=arrays)

    def _probe(self, train: Examples, test: Examples, classes: int) -> dict[str, list[Probed]]:
        """Probes by the features' name, for blocks one each."""
        count = len(train.labels)
        held = np.zeros(count, bool)
        held[np.random.default_rng(self.seed).permutation(count)[: count // 10]] = True
        layers = lambda x: x if x.ndim == 3 else x[None]
        width = max(x.shape[-1] for x in train.features.values())
        return {
            name: [
                probe((x, train.labels), (y, test.labels), held, classes, width)
                for x, y in zip(layers(of), layers(test.features[name]), strict=True)
            ]
            for name, of in train.features.items()
        }


def probe(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], held: np.ndarray, classes: int, width: int) -> Probed:
    """Trains a classifier on features and measures it.

    Args:
      train, test: features f32[N,D] and labels i32[N].
      held: bool[N], the training examples that choose the weight decay.
      width: at least D, to which features are filled up with zeros, so that all kinds share one compiled program.
    """
    mean, deviation = train[0].mean(0, dtype=np.float64), train[0].std(0, dtype=np.float64)
    scale = np.where(deviation > 1e-6, deviation, np.inf)  # What never changes says nothing.
    room = ((0, 0), (0, width - len(mean)))
    x, y = (jnp.asarray(np.pad((features - mean) / scale, room), jnp.float32) for features, _ in (train, test))
    labels = jnp.asarray(train[1], jnp.int32)
    right = lambda params, x, labels: np.asarray(logistic.predict(params, x)) == labels
    scores = []
    for decay in DECAYS:
        params = logistic.fit(x, labels, jnp.asarray(~held, jnp.float32), decay, classes)
        scores.append(float(right(params, x, train[1])[held].mean()))
    best = int(np.argmax(scores))
    params = logistic.fit(x, labels, jnp.ones(len(labels), jnp.float32), DECAYS[best], classes)
    return Probed(scores[best], float(right(params, y, test[1]).mean()), DECAYS[best])


def _look(subject: Subject, rows: Iterator[tuple[jax.Array, Mapping[str, Any], np.ndarray]]) -> Examples:
    """The features of all pictures that have a class."""
    features, parts, labels = subject.predict("features"), [], [np.zeros(0, np.int32)]
    for images, batch, real in rows:
        label = to_host(batch["label"])
        kept = real & (label >= 0)
        found = {**features(subject.state, images), "pixels": _pixels(images)}
        parts.append({name: to_host(x)[..., kept, :] for name, x in found.items()})
        labels.append(label[kept])
    return Examples({name: np.concatenate([p[name] for p in parts], -2) for name in parts[0]}, np.concatenate(labels))


@jax.jit
def _pixels(images: jax.Array) -> jax.Array:
    small = jax.image.resize(images, (len(images), PIXELS, PIXELS, 3), "linear", antialias=True)
    return small.reshape(len(images), -1)


def _metrics(found: Mapping[str, list[Probed]], chance: float) -> dict[str, float]:
    metrics = {}
    if "blocks" in found:
        best = int(np.argmax([p.held_out for p in found["blocks"]]))
        metrics |= {"block_accuracy": found["blocks"][best].accuracy, "best_block": float(best + 1)}
    metrics |= {f"{name}_accuracy": probes[0].accuracy for name, probes in found.items() if name != "blocks"}
    return metrics | {"chance_accuracy": chance}
