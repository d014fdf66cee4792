"""Linear probe: what class a picture is of, told from a frozen model's features by a linear classifier (ViT-VQGAN; iGPT)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vimlab.config import ConfigError, Duration
from vimlab.evals import logistic
from vimlab.evals.devices import alone
from vimlab.evals.evaluator import Result, Subject, rows_of, to_host
from vimlab.sampling.sampler import in_groups

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)
PIXELS = 8  # Side of the pictures that the baseline sees.


class Fitted(NamedTuple):
    """A trained probe of features f32[N,D]: `w` f32[D,C] and `b` f32[C] of them less `mean` f64[D], over `scale` f64[D].

    Its weight decay, and its accuracy on the held-out training examples, which chose that.
    """

    w: np.ndarray
    b: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    held_out: float
    weight_decay: float


class Examples(NamedTuple):
    """Pictures that have a class, in their set's order: features by name, f32[M,layers,D], and labels i32[M]."""

    features: dict[str, np.ndarray]
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """Evaluates features, as means over positions, by the accuracy of a linear classifier trained on them.

    Of a generator each block's output is probed, the null condition given, and the block is chosen that does best on held-out
    training examples; of every model the tokenizer's latents and their codes; and, to compare, 8x8 pixels.

    Memory grows with `count` alone, by 4 bytes for each number in the features of a training example: 10,000 of VIM-Base's 24
    blocks of 1536 are 1.5 GB, 50,000 of them 7.4 GB. The evaluation set, of any size, is looked at batch by batch.

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
        train = _joined(_looks(subject, rows_of(batches)), info.size)
        if len(train.labels) < 20:
            raise ConfigError(f"probe found {len(train.labels)} pictures with a class in {info.name!r}, but needs at least 20")
        with alone():
            fitted = self._fit(train, len(classes))
        labels, right = _score(_looks(subject, subject.rows()), fitted)
        if not len(labels):
            raise ConfigError(f"probe found no picture with a class in {subject.protocol['data']!r}; leave it out of --evals")
        found = {
            name: [{"held_out": f.held_out, "accuracy": float(r / len(labels)), "weight_decay": f.weight_decay} for f, r in zip(layers, right[name], strict=True)]
            for name, layers in fitted.items()
        }  # fmt: skip
        common = np.bincount(train.labels, minlength=len(classes)).argmax()
        protocol = {
            "count": len(labels),
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
        return Result(metrics=_metrics(found, float((labels == common).mean())), protocol=protocol, arrays=found)

    def _fit(self, train: Examples, classes: int) -> dict[str, list[Fitted]]:
        """Probes by the features' name, one for each layer."""
        count = len(train.labels)
        held = np.zeros(count, bool)
        held[np.random.default_rng(self.seed).permutation(count)[: count // 10]] = True
        width = max(x.shape[-1] for x in train.features.values())
        return {name: [fit(x[:, n], train.labels, held, classes, width) for n in range(x.shape[1])] for name, x in train.features.items()}


def fit(x: np.ndarray, labels: np.ndarray, held: np.ndarray, classes: int, width: int) -> Fitted:
    """Trains a classifier.

    Args:
      x: features f32[N,D].
      labels: i32[N].
      held: bool[N], the examples that choose the weight decay.
      width: at least D, to which features are filled up with zeros, so that all kinds share one compiled program.
    """
    mean, deviation = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scale = np.where(deviation > 1e-6, deviation, np.inf)  # What never changes says nothing.
    whole = jnp.asarray(np.pad((x - mean) / scale, ((0, 0), (0, width - len(mean)))), jnp.float32)
    weighted = lambda weights, decay: logistic.fit(whole, jnp.asarray(labels, jnp.int32), jnp.asarray(weights, jnp.float32), decay, classes)
    right = lambda params: np.asarray(logistic.predict(params, whole)) == labels
    scores = [float(right(weighted(~held, decay))[held].mean()) for decay in DECAYS]
    best = int(np.argmax(scores))
    params = weighted(np.ones(len(labels)), DECAYS[best])
    return Fitted(np.asarray(params["w"])[: len(mean)], np.asarray(params["b"]), mean, scale, scores[best], DECAYS[best])


def predict(layers: Sequence[Fitted], x: np.ndarray) -> np.ndarray:
    """The likeliest class of each picture by the probe of each layer: f32[N,layers,D] → i32[N,layers]."""
    params = {name: jnp.asarray(np.stack([getattr(f, name) for f in layers])) for name in ("w", "b")}
    mean, scale = (np.stack([getattr(f, name) for f in layers]) for name in ("mean", "scale"))
    return in_groups(lambda x: _predict(params, x), ((x - mean) / scale).astype(np.float32))


_predict = jax.jit(jax.vmap(logistic.predict, (0, 1), 1))


def _looks(subject: Subject, rows: Iterator[tuple[jax.Array, Mapping[str, Any], np.ndarray]]) -> Iterator[Examples]:
    """Batch by batch, the pictures that have a class."""
    features = subject.predict("features")
    for images, batch, real in rows:
        label = to_host(batch["label"])
        kept = real & (label >= 0)
        found = {name: to_host(x) for name, x in {**features(subject.state, images), "pixels": _pixels(images)}.items()}
        yield Examples({name: np.moveaxis(x if x.ndim == 3 else x[None], 1, 0)[kept] for name, x in found.items()}, label[kept])


def _joined(parts: Iterator[Examples], most: int) -> Examples:
    """Parts of `most` pictures or fewer as one; no picture's features are in memory twice."""
    features, labels, at = {}, np.zeros(most, np.int32), 0
    for part in parts:
        features = features or {name: np.empty((most, *x.shape[1:]), np.float32) for name, x in part.features.items()}
        stop = at + len(part.labels)
        labels[at:stop] = part.labels
        for name, x in part.features.items():
            features[name][at:stop] = x
        at = stop
    return Examples({name: x[:at] for name, x in features.items()}, labels[:at])


def _score(parts: Iterator[Examples], fitted: Mapping[str, Sequence[Fitted]]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The labels of all pictures, i32[M], and by the features' name how many of them each layer's probe tells, i64[layers]."""
    labels, right = [np.zeros(0, np.int32)], {name: np.zeros(len(layers), np.int64) for name, layers in fitted.items()}
    for part in parts:
        labels.append(part.labels)
        if len(part.labels):
            with alone():
                for name, layers in fitted.items():
                    right[name] += (predict(layers, part.features[name]) == part.labels[:, None]).sum(0)
    return np.concatenate(labels), right


@jax.jit
def _pixels(images: jax.Array) -> jax.Array:
    small = jax.image.resize(images, (len(images), PIXELS, PIXELS, 3), "linear", antialias=True)
    return small.reshape(len(images), -1)


def _metrics(found: Mapping[str, list[dict[str, float]]], chance: float) -> dict[str, float]:
    metrics = {}
    if "blocks" in found:
        best = int(np.argmax([p["held_out"] for p in found["blocks"]]))
        metrics |= {"block_accuracy": found["blocks"][best]["accuracy"], "best_block": float(best + 1)}
    metrics |= {f"{name}_accuracy": probes[0]["accuracy"] for name, probes in found.items() if name != "blocks"}
    return metrics | {"chance_accuracy": chance}
