"""CLIP's words: byte-pair encoding of lower-cased text, from the vocabulary file that the user has.

Ids are those of Hugging Face's CLIPTokenizer: NFC, runs of whitespace one space, lower case, then pieces of letters, single
numerals, or other signs, then merges within a piece. OpenAI's own tokenizer first repairs mojibake, straightens quotes (both by
the `ftfy` package) and unescapes HTML; a text with such in it gets other ids there: 12 of PartiPrompts' 1,632, for their ’.
"""

import functools
import gzip
import itertools
import json
import pathlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from vimlab.scoring.clip_weights import ClipError

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
MERGES = 49408 - 2 * 256 - 2  # OpenAI's file lists more than its vocabulary uses.
NEEDED = (
    "give OpenAI's bpe_simple_vocab_16e6.txt.gz, or tokenizer.json, merges.txt or vocab.json (with merges.txt beside it) of a Hugging Face CLIP"
)
# Python's own patterns know letters and numerals only together: the pieces are found in a text of each character's kind.
CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)")
RUN = re.compile(r"L+|N|o+")
SPACE = re.compile(r"[^\S\x1c-\x1f]+")  # Unicode's White_Space: Python counts four separators more.
MARK = re.compile(rf"({re.escape(START)}|{re.escape(END)})")


class ClipText:
    """Texts to ids.

    Args:
      ids: of every piece; a piece that ends a word ends in `</w>`. The end of a text has the largest.
      merges: pairs of pieces, those that are joined first in front.
    """

    def __init__(self, ids: dict[str, int], merges: Sequence[tuple[str, str]]):
        self._ids, self._ranks = ids, {pair: rank for rank, pair in enumerate(merges)}
        self.size = max(ids.values()) + 1
        self._word = functools.lru_cache(1 << 16)(self._merge)

    def split(self, text: str) -> list[int]:
        """The ids of a text of any length, without start and end."""
        found = []
        for part in MARK.split(text):  # The two marks are found in the text as it was typed.
            if part in (START, END):
                found.append(self._ids[part])
            else:
                found += itertools.chain.from_iterable(map(self._word, pieces(clean(part))))
        return found

    def encode(self, texts: Sequence[str], length: int = LENGTH) -> np.ndarray:
        """i32[B,length]: start, the text's ids, end, then zeros, which nothing looks at; a longer text is cut so that the end stays."""
        rows = np.zeros((len(texts), length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            found = [self._ids[START], *self.split(text)[: length - 2], self._ids[END]]
            row[: len(found)] = found
        return rows

    def _merge(self, piece: str) -> tuple[int, ...]:
        """The ids of one piece of text."""
        letters = _byte_letters()
        word = [letters[b] for b in piece.encode()]
        word[-1] += "</w>"
        while len(word) > 1:
            ranked = [(self._ranks[pair], pair) for pair in itertools.pairwise(word) if pair in self._ranks]
            if not ranked:
                break
            (left, right), joined, i = min(ranked)[1], [], 0
            while i < len(word):
                both = word[i : i + 2] == [left, right]
                joined.append(left + right if both else word[i])
                i += 1 + both
            word = joined
        return tuple(self._ids[x] for x in word)


def clean(text: str) -> str:
    """NFC, single spaces, lower case letter by letter; half a surrogate pair becomes `?`."""
    text = unicodedata.normalize("NFC", text.encode(errors="replace").decode())
    return "".join(c.lower() for c in SPACE.sub(" ", text))


def pieces(text: str) -> list[str]:
    """What merges stay within: contractions, runs of letters, single numerals, runs of other signs; spaces fall away."""
    kinds, found, place = "".join(map(_kind, text)), [], 0
    while place < len(text):
        match = CONTRACTION.match(text, place) or RUN.match(kinds, place)
        if match:
            found.append(text[place : match.end()])
        place = match.end() if match else place + 1
    return found


@functools.lru_cache(1 << 12)
def _kind(character: str) -> str:
    if SPACE.match(character):
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "o"


@functools.cache
def _byte_letters() -> list[str]:
    """The printable character that stands for each byte, in the order of bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b if b in shown else next(others)) for b in range(256)]


def open_vocabulary(path: str) -> ClipText:
    """Reads a vocabulary in any of its published forms.

    Raises:
      ClipError: no such file, or one that is no vocabulary of CLIP's.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ClipError(f"the CLIP vocabulary {path!r} does not exist; {NEEDED}")
    try:
        ids, merges = _json(file) if file.suffix == ".json" else _plain(file)
        text = ClipText(ids, merges)
        complete = all(x in ids for x in (START, END, *_byte_letters())) and all(a + b in ids for a, b in merges)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError) as error:
        raise ClipError(f"{path} is not CLIP's vocabulary ({error}); {NEEDED}") from None
    if not complete or ids[END] != text.size - 1:
        raise ClipError(f"{path} is not CLIP's vocabulary (it lacks bytes, merged pieces, {START} or, as its last word, {END}); {NEEDED}")
    return text


def _plain(file: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A list of merges, whose order gives the ids: bytes, bytes that end words, what merges make, the two marks."""
    data = file.read_bytes()
    merges = _pairs((gzip.decompress(data) if file.suffix == ".gz" else data).decode())
    # The bytes that are printable themselves come first.
    letters = sorted(_byte_letters())
    vocabulary = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), START, END]
    return {piece: i for i, piece in enumerate(vocabulary)}, merges


def _json(file: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """tokenizer.json, which holds all, or vocab.json, whose merges lie beside it."""
    content = json.loads(file.read_bytes())
    if "model" not in content:
        return content, _pairs((file.parent / "merges.txt").read_text("utf-8"))
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in content["model"]["merges"]]
    return content["model"]["vocab"] | {a["content"]: a["id"] for a in content.get("added_tokens", ())}, merges


def _pairs(text: str) -> list[tuple[str, str]]:
    """The merges of a list with a line of comment above it."""
    return [(left, right) for left, right in (line.split() for line in text.split("\n")[1 : MERGES + 1] if line)]
