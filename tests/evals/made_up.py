"""A generator whose every answer is known: its four tokens spell the number of a picture, which decoding looks up."""

import jax.numpy as jnp
import numpy as np

from vimlab.data.base import Record, SourceInfo
from vimlab.data.formats.synthetic import Shapes
from vimlab.data.text import Bytes
from vimlab.evals import Subject
from vimlab.sampling.decode import Samples
from vimlab.tokens import Tokens, TokenSpec

SIZE = 32
SPEC = TokenSpec(grid=(2, 2), codes=16)
TEXT = Bytes(length=64).open()
PROTOCOL = dict(
    data="shapes:test", fingerprint="c0ffee", split="test", crop="resize", size=SIZE, dtype="float32", parameters="average",
    command="vimlab eval",
)  # fmt: skip


class Listed:
    """Records from a list, their classes named "class 0", "class 1", …"""

    def __init__(self, records: list[Record]):
        self._records = records
        names = tuple(f"class {i}" for i in range(40))
        self.info = SourceInfo("listed", len(records), names, True, "c0ffee")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return self._records[index]


def shapes(count: int, *, start: int = 0) -> list[Record]:
    """Records of the shapes world's test split; those at odd places have a held-out pair."""
    source = Shapes("test", size=SIZE, count=start + count)
    return [source[i] for i in range(start, start + count)]


def spell(numbers: np.ndarray) -> jnp.ndarray:
    """Numbers below 16^4 as ids i32[B,4,1]."""
    return jnp.int32(np.stack([numbers >> shift & 15 for shift in (12, 8, 4, 0)], -1)[..., None])


def read(ids: np.ndarray) -> np.ndarray:
    return np.asarray(ids) @ np.array([4096, 256, 16, 1])


class Painter:
    """Predict functions that draw pictures from a list.

    Args:
      pictures: uint8[P,32,32,3].
      choose: (what the model is told as bytes or label, seed, guidance at the last token) → number of a picture.

    Attributes:
      calls: (rows, seeds, knobs) of every call of "sample".
    """

    def __init__(self, pictures, choose):
        self._pictures, self._choose, self.calls = np.asarray(pictures), choose, []

    def sample(self, state, condition, seeds, knobs):
        self.calls.append((len(condition), seeds.tolist(), knobs))
        told = [TEXT.decode(c) if c.ndim else int(c) for c in condition]
        numbers = np.array([self._choose(t, int(s), float(knobs.guidance[-1])) for t, s in zip(told, seeds, strict=True)])
        # Seed s has log-probabilities -s, -2s, -3s, -4s.
        log_probs = -seeds[:, None].astype(np.float32) * np.arange(1, 5)
        return Samples(Tokens(spell(numbers), SPEC), jnp.float32(log_probs), jnp.int32(4))

    def decode(self, state, ids):
        return self._pictures[read(ids)].astype(np.float32) / 255

    @staticmethod
    def encode(state, images):
        """The number that a picture's first two levels spell."""
        levels = np.round(np.asarray(images)[:, 0, 0, :2] * 255).astype(int)
        return Tokens(spell(levels[:, 0] * 256 + levels[:, 1]), SPEC)

    @staticmethod
    def reconstruct(state, images):
        return np.asarray(images)

    def functions(self):
        return {name: getattr(self, name) for name in ("sample", "decode", "encode", "reconstruct")}


def batches(records, size, *, text):
    """One pass; the last batch is filled up with rows of mask 0 that point nowhere."""
    for start in range(0, len(records), size):
        rows = records[start : start + size]
        missing = size - len(rows)
        images = [r["image"] for r in rows] + [np.full((SIZE, SIZE, 3), 255, np.uint8)] * missing
        batch = {
            "image": np.stack(images),
            "label": np.array([r["label"] for r in rows] + [-1] * missing, np.int32),
            "index": np.arange(start, start + size, dtype=np.int32),
            "mask": (np.arange(size) < len(rows)).astype(np.float32),
        }
        yield batch | ({"text": np.stack([TEXT.encode(c) for c in [r["caption"] for r in rows] + [""] * missing])} if text else {})


def subject(records, functions, *, size: int = 8, condition: str = "text", **more) -> Subject:
    fields = dict(
        state=None, predict_fns=functions, batches=lambda: batches(records, size, text=condition == "text"), spec=SPEC, protocol=PROTOCOL,
        step=7, source=Listed(records), condition=condition, guided=True,
    )  # fmt: skip
    return Subject(**fields | more)


def renamed(records, captions) -> list[Record]:
    """The records under other captions."""
    return [Record(**r | {"caption": c}) for r, c in zip(records, captions, strict=True)]
