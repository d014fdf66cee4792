"""Statistics of token sequences as of a language: power laws, entropies, codes, n-gram models, what tokens say of a class.

Counts are i64, figures float64, entropies in bits. The measures are those of "Analyzing The Language of Visual Tokens"
(arXiv 2411.05001), but for those that need a parser or word vectors.
"""

import heapq
import itertools
import lzma
import math
from typing import NamedTuple

import numpy as np


class PowerLaw(NamedTuple):
    """y ≈ scale · x^exponent, and the share of the variance of log y that this explains; all NaN of fewer than two points."""

    exponent: float
    scale: float
    r2: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.scale * np.asarray(x, float) ** self.exponent


def power_law(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> PowerLaw:
    """Weighted least squares of log y on log x, all f64[P] and positive."""
    if len(x) < 2:
        return PowerLaw(math.nan, math.nan, math.nan)
    w, a, b = weights / weights.sum(), np.log(x), np.log(y)
    a0, b0 = w @ a, w @ b
    slope = (w @ ((a - a0) * (b - b0))) / (w @ (a - a0) ** 2)
    spread, left = w @ (b - b0) ** 2, w @ (b - b0 - slope * (a - a0)) ** 2
    return PowerLaw(float(slope), math.exp(b0 - slope * a0), float(1 - left / spread) if spread > 0 else 1.0)


def spaced(count: int, points: int = 200) -> np.ndarray:
    """About `points` whole numbers from 1 to `count`, evenly spaced in their logarithm: i64[P]."""
    return np.unique(np.geomspace(1, count, points).round().astype(np.int64))


def zipf(counts: np.ndarray) -> tuple[PowerLaw, np.ndarray]:
    """Frequency over rank.

    Ranks weigh 1/rank, so that each decade of them weighs the same: the many rare tokens would else decide the fit alone.

    Args:
      counts: i64[K], how often each token (or n-gram) occurs.

    Returns:
      the fit, whose exponent is negative, and the counts above 0 from the highest, i64[R].
    """
    ordered = -np.sort(-counts[counts > 0])
    ranks = np.arange(1, len(ordered) + 1)
    return power_law(ranks, ordered, 1 / ranks), ordered


def innovation(tokens: np.ndarray) -> tuple[PowerLaw, np.ndarray, np.ndarray]:
    """Heaps' law: distinct tokens over tokens seen, with an exponent of 1 while all are new and 0 once none is.

    Args:
      tokens: i[M], at least one, in the order in which they are seen.

    Returns:
      the fit, the numbers of tokens seen that it is of, evenly spaced in their logarithm, and of distinct ones: i64[P] each.
    """
    first = np.sort(np.unique(tokens, return_index=True)[1])
    seen = spaced(len(tokens))
    distinct = np.searchsorted(first, seen)
    return power_law(seen, distinct, np.ones(len(seen))), seen, distinct


def entropy(counts: np.ndarray) -> np.ndarray | float:
    """Of the shares, in bits: [..., K] → f64[...]; 0 where nothing was counted."""
    share = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return -(share * np.log2(np.where(share > 0, share, 1))).sum(-1)


def miller_madow(counts: np.ndarray) -> np.ndarray | float:
    """Entropy in bits with Miller and Madow's correction for few samples, (distinct - 1) / (2 · samples · ln 2)."""
    return entropy(counts) + (np.maximum((counts > 0).sum(-1), 1) - 1) / (2 * np.maximum(counts.sum(-1), 1) * math.log(2))


def position_counts(ids: np.ndarray, codes: int) -> np.ndarray:
    """How often each code stands at each position: i[M,N] → i64[N,K]."""
    return np.stack([np.bincount(column, minlength=codes) for column in ids.T])


def huffman_bits(counts: np.ndarray) -> float:
    """Mean length of a token under the Huffman code of these frequencies, in bits; 0 of a single token."""
    heap = [int(c) for c in counts if c]
    total, length = sum(heap), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        length += pair
        heapq.heappush(heap, pair)
    return length / total


def lzma_bits(ids: np.ndarray, codes: int) -> float:
    """Bits per token after LZMA (xz, preset 6), of ids as unsigned integers of the fewest whole bytes, 1, 2 or 4."""
    packed = ids.astype(np.min_scalar_type(codes - 1).newbyteorder("<")).tobytes()
    return 8 * len(lzma.compress(packed, check=lzma.CHECK_NONE, preset=6)) / ids.size


def bigrams(ids: np.ndarray, codes: int) -> np.ndarray:
    """How often each pair of neighbours in raster order occurs in an image, i[M,N] → i64[distinct pairs]."""
    pairs = ids[:, :-1].astype(np.int64) * codes + ids[:, 1:]
    return np.unique(pairs, return_counts=True)[1]


def ngram_perplexities(train: np.ndarray, test: np.ndarray, codes: int, orders: int = 3) -> list[float]:
    """Perplexity per token of n-gram models in raster order, for n from 1 to `orders`, or to an image's length.

    Interpolated absolute discounting (Ney, Essen and Kneser, 1994): with c the counts of training, T the number of distinct
    tokens seen after a context h, and h' the context without its first token,

      p(w | h) = max(c(h w) - D, 0) / c(h) + D T(h) / c(h) · p(w | h'),

    down to 1/codes below the unigrams; p(w | h') alone where h was never seen. D = (n1 + 1) / (n1 + 2 n2 + 2) for each order, of
    the n-grams seen once, n1, and twice, n2. The first tokens of an image have the shorter context that there is.

    Args:
      train, test: i[M,N] and i[L,N], the images' tokens.
    """
    p = np.full(test.shape, 1 / codes)
    # The number of each position's context among all contexts of training, or -1: at first all have the empty one.
    known, asked = np.zeros(train.shape, np.int64), np.zeros(test.shape, np.int64)
    contexts, perplexities = 1, []
    for n in range(min(orders, train.shape[1])):
        grams, numbers, counts = np.unique(known[:, n:] * codes + train[:, n:], return_inverse=True, return_counts=True)
        total = np.bincount(grams // codes, counts, minlength=contexts)
        kinds = np.bincount(grams // codes, minlength=contexts)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        discount = (once + 1) / (once + 2 * twice + 2)
        keys = np.where(asked < 0, -1, asked * codes + test)
        place = np.minimum(np.searchsorted(grams, keys), len(grams) - 1)
        found = grams[place] == keys
        c, t = (np.where(asked < 0, 0, table[asked]) for table in (total, kinds))
        kept = np.where(found, np.maximum(counts[place] - discount, 0), 0)
        p = np.where(c > 0, (kept + discount * t * p) / np.maximum(c, 1), p)
        perplexities.append(float(np.exp(-np.log(p).mean())))
        # An n-gram is the next token's context.
        contexts = len(grams)
        known[:, n + 1 :] = numbers.reshape(len(train), -1)[:, :-1]
        asked = np.concatenate([np.full((len(test), 1), -1), np.where(found, place, -1)[:, :-1]], 1)
    return perplexities


def class_information(ids: np.ndarray, labels: np.ndarray, codes: int) -> float:
    """Mutual information in bits of a token and its image's class: the tokens' entropy less their mean entropy within a class.

    Of counts as they are, so too high where tokens are few; with the labels shuffled it says by how much.

    Args:
      ids: i[M,N].
      labels: i[M].
    """
    within = [(len(part), entropy(np.bincount(part.ravel(), minlength=codes))) for part in _by_class(ids, labels)]
    whole = entropy(np.bincount(ids.ravel(), minlength=codes))
    return float(whole - sum(count * bits for count, bits in within) / len(ids))


def _by_class(ids: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    edges = np.flatnonzero(np.diff(labels[order])) + 1
    return [ids[order[a:b]] for a, b in itertools.pairwise([0, *edges, len(order)])]
