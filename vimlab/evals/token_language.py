"""The tokens of a set of images as a language: how frequent, how new, how compressible, how predictable its words are."""

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from vimlab.config import ConfigError, Duration
from vimlab.evals import token_statistics as statistics
from vimlab.evals.evaluator import Result, Subject, to_host

ORDERS = ("unigrams", "bigrams", "trigrams")
EARLY = 100  # Images; the paper finds nearly the whole vocabulary in as many.
SHUFFLES = 5
PROTOCOL = {
    "order": "raster, within an image",
    "zipf": "least squares of log frequency on log rank over the tokens that occur, each decade of ranks weighing the same",
    "heaps": "least squares of log distinct tokens on log tokens seen, at points evenly spaced in the latter, images shuffled with seed 0",
    "vocabulary_share_100": f"of the tokens that occur, those in the first {EARLY} images so shuffled",
    "saving": "bits per token below log2(codes), as a share of log2(codes); Huffman's code is made from these very frequencies",
    "lzma": "xz, preset 6, of ids as unsigned integers of 1, 2 or 4 bytes; the dictionary is part of it",
    "perplexity": "per token, of n-grams with interpolated absolute discounting, D = (n1 + 1)/(n1 + 2 n2 + 2) for each order, down to "
    "1/codes; counted on images 0, 2, 4, … and measured on 1, 3, 5, …",
    "position_entropy": "over images, with Miller and Madow's correction",
    "class_information": "mutual information of a token and its image's class, from counts as they are; shuffled: mean of "
    f"{SHUFFLES} such figures with the classes shuffled over the images, which is what chance alone gives",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLanguage:
    """Evaluates the statistics of "Analyzing The Language of Visual Tokens" (arXiv 2411.05001) on the set's tokens.

    Memory grows with the set, by some 80 bytes a token, while n-grams are counted, of which most occur once: 50,000 images of 256
    tokens need 1 GB, of 1,024 tokens 4 GB.

    Attributes:
      every: how often during training.
    """

    NAME: ClassVar[str] = "token_language"
    every: Duration = Duration(5000)

    def run(self, subject: Subject) -> Result:
        """Tokenizes every image. Uses predict_fns["encode"].

        Raises:
          ConfigError: tokens of several sub-codes, or fewer than two images.
        """
        if subject.spec.groups != 1:
            raise ConfigError(f"token_language takes a token for a word, but this tokenizer's have {subject.spec.groups} sub-codes; leave it out "
                              "of --evals")  # fmt: skip
        encode, ids, labels = subject.predict("encode"), [], []
        for images, batch, real in subject.rows():
            ids.append(to_host(encode(subject.state, images).ids)[real, :, 0])
            labels.append(to_host(batch["label"])[real])
        # One row an image, in the set's order: no batch size or number of devices enters what follows.
        return self._figures(np.concatenate(ids), np.concatenate(labels), subject)

    def _figures(self, ids: np.ndarray, labels: np.ndarray, subject: Subject) -> Result:
        codes, length = subject.spec.codes, subject.spec.length
        if len(ids) < 2:
            raise ConfigError(f"token_language counts n-grams on one half of the images and measures on the other, but {subject.protocol['data']!r} "
                              "holds only one")  # fmt: skip
        counts = np.bincount(ids.ravel(), minlength=codes)
        fixed, huffman, packed = math.log2(codes), statistics.huffman_bits(counts), statistics.lzma_bits(ids, codes)
        metrics = {
            "entropy_bits": float(statistics.entropy(counts)),
            "huffman_bits": huffman,
            "huffman_saving": 1 - huffman / fixed,
            "lzma_bits": packed,
            "lzma_saving": 1 - packed / fixed,
        }
        laws, curves = _laws(ids, counts, codes)
        perplexities = statistics.ngram_perplexities(ids[::2], ids[1::2], codes, len(ORDERS))
        at = statistics.miller_madow(statistics.position_counts(ids, codes))
        metrics |= laws | {f"perplexity_{name}": value for name, value in zip(ORDERS, perplexities, strict=False)}
        metrics |= {f"position_entropy_{name}": float(getattr(at, name)()) for name in ("mean", "min", "max")}
        metrics |= _classes(ids[labels >= 0], labels[labels >= 0], codes)
        arrays = {**curves, "position_entropy": at.reshape(subject.spec.grid).round(6).tolist()}
        return Result(metrics=metrics, protocol={"count": len(ids), "codes": codes, "tokens_per_image": length} | PROTOCOL, arrays=arrays)


def _laws(ids: np.ndarray, counts: np.ndarray, codes: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures of Zipf's and Heaps' laws, and the curves that they are fitted to, as JSON values."""
    metrics, curves = {}, {}
    for name, these in (("unigrams", counts), ("bigrams", statistics.bigrams(ids, codes))):
        fit, ordered = statistics.zipf(these)
        metrics |= {f"zipf_exponent_{name}": -fit.exponent, f"zipf_r2_{name}": fit.r2}
        ranks = statistics.spaced(len(ordered)) if len(ordered) else np.zeros(0, int)
        curves[f"rank_frequency_{name}"] = _curve(ranks, ordered[ranks - 1], fit)
    shuffled = ids[np.random.default_rng(0).permutation(len(ids))]
    fit, seen, distinct = statistics.innovation(shuffled.ravel())
    metrics |= {"heaps_exponent": fit.exponent, "heaps_r2": fit.r2}
    if len(ids) > EARLY:
        metrics["vocabulary_share_100"] = len(np.unique(shuffled[:EARLY])) / int((counts > 0).sum())
    return metrics, {**curves, "innovation": _curve(seen, distinct, fit)}


def _curve(x: np.ndarray, y: np.ndarray, fit: statistics.PowerLaw) -> dict[str, list]:
    return {"x": x.tolist(), "y": y.tolist(), "fit": [float(f"{v:.6g}") for v in fit(x)] if math.isfinite(fit.exponent) else []}


def _classes(ids: np.ndarray, labels: np.ndarray, codes: int) -> dict[str, float]:
    """What a token says of the class of its image; nothing where the images are not of several classes."""
    if len(np.unique(labels)) < 2:
        return {}
    rng = np.random.default_rng(0)
    shuffled = [statistics.class_information(ids, rng.permutation(labels), codes) for _ in range(SHUFFLES)]
    return {
        "class_information_bits": statistics.class_information(ids, labels, codes),
        "class_information_shuffled_bits": float(np.mean(shuffled)),
        "class_entropy_bits": float(statistics.entropy(np.bincount(labels))),
    }
