"""How a codebook is used over a stated set of images: usage, perplexity, entropy, dead and busiest codes."""

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from vimlab.config import ConfigError, Duration
from vimlab.evals.evaluator import Result, Subject, to_host


class CodebookStats:
    """Counts token ids batch by batch, on the host.

    Each of the G sub-codes is counted as a codebook of its own: shares are over all G x K entries, entropies are means
    over the sub-codes.

    Attributes:
      counts: i64[G, K], how often each entry was used.
      images: how many images were seen.
    """

    def __init__(self, codes: int, groups: int = 1, batch: int = 256):
        self.counts = np.zeros((groups, codes), np.int64)
        self.images = 0
        self._batch = batch
        self._seen = np.zeros((groups, codes), bool)
        self._batch_usages: list[float] = []

    def update(self, ids: np.ndarray) -> None:
        """Adds the tokens of some images, i32[B, N, G], in the set's order. Raises ValueError on an id outside the codebook."""
        groups, codes = self.counts.shape
        if ids.ndim != 3 or ids.shape[2] != groups or (ids.size and not 0 <= ids.min() <= ids.max() < codes):
            raise ValueError(
                f"token ids must be [images, positions, {groups}] in [0, {codes}), not {ids.shape} from "
                f"{ids.min(initial=0)} to {ids.max(initial=0)}"
            )
        while len(ids):
            # A batch of the per-batch usage ends at a multiple of its size in the set, wherever the caller's batches end.
            head = ids[: self._batch - self.images % self._batch]
            ids = ids[len(head) :]
            for g in range(groups):
                found = np.bincount(head[..., g].ravel(), minlength=codes)
                self.counts[g] += found
                self._seen[g] |= found > 0
            self.images += len(head)
            if self.images % self._batch == 0:
                self._batch_usages.append(float(self._seen.mean()))
                self._seen[:] = False

    def metrics(self) -> dict[str, float]:
        """Figures over everything seen.

        `usage` and `dead_codes` are over the whole set; `usage_batch` is the paper's (Table 4): the share of entries used
        by a batch of 256 images, averaged over the full batches, and absent where the set holds no full batch.
        `perplexity` is exp(entropy), `entropy_bits` is per sub-code, `top_code_share` is of the busiest entry.
        """
        share = self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1).astype(np.float64)
        entropy = float(-(share * np.log(np.where(share > 0, share, 1))).sum(1).mean())
        usage_batch = {"usage_batch": float(np.mean(self._batch_usages))} if self._batch_usages else {}
        return {
            "usage": float((self.counts > 0).mean()),
            **usage_batch,
            "perplexity": math.exp(entropy),
            "entropy_bits": entropy / math.log(2),
            "dead_codes": float((self.counts == 0).sum()),
            "top_code_share": float(share.max()),
        }

    def top(self, n: int = 10) -> list[tuple[int, int, int]]:
        """The busiest entries as (sub-code, index, count), busiest first."""
        order = np.argsort(-self.counts, axis=None, kind="stable")[:n]
        return [
            (int(g), int(k), int(self.counts[g, k])) for g, k in zip(*np.unravel_index(order, self.counts.shape), strict=True)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codebook:
    """Evaluates how much of the codebook the set of images uses.

    Attributes:
      every: how often during training.
      batch: images per batch of `usage_batch` (the paper's figure is at 256).
    """

    NAME: ClassVar[str] = "codebook"
    every: Duration = Duration(1000)
    batch: int = 256

    def __post_init__(self):
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch}, but must be at least 1")

    def run(self, subject: Subject) -> Result:
        """Counts the tokens of every image. Uses predict_fns["encode"]."""
        encode = subject.predict("encode")
        stats = CodebookStats(subject.spec.codes, subject.spec.groups, self.batch)
        for images, real in subject.examples():
            stats.update(to_host(encode(subject.state, images).ids)[real])
        protocol: dict[str, Any] = {
            "count": stats.images,
            "codes": subject.spec.codes,
            "groups": subject.spec.groups,
            "tokens_per_image": subject.spec.length,
            "usage_batch_images": self.batch,
        }
        arrays = {"counts": stats.counts.tolist(), "top_codes": stats.top()}
        return Result(metrics=stats.metrics(), protocol=protocol, arrays=arrays)
