"""Text becomes ids: UTF-8 bytes or SentencePiece, with the same reserved ids, and the training of a vocabulary.

Both read a text in one way: Unicode's NFC, every run of whitespace one space, none at the ends, case kept.
"""

import abc
import dataclasses
import hashlib
import os
import pathlib
import re
import types
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np

from vimlab.config import ConfigError, suggest
from vimlab.data.base import DataError, Source, fingerprint
from vimlab.paths import write_whole

PAD = 0  # After the end.
NULL = 1  # Stands alone for a text that was dropped: guidance's empty condition.
END = 2  # After the last id of every text, the empty one too.
RESERVED = 3
LENGTH = 128
LEAST_SIZE = 260  # SentencePiece's pieces beside those it learns: the reserved ids, its `unknown`, the 256 bytes.
HOW_TO_TRAIN = "`vimlab data vocab SRC OUT.model` trains one"
Kind = Literal["bpe", "unigram"]


class TextTokenizer(abc.ABC):
    """Texts to ids of one length, and back. Thread-safe; pickles without open handles.

    Attributes:
      size: how many ids there are, the reserved ones included.
      length: ids in an encoded text.
      fingerprint: sixteen hexadecimal digits that change with the vocabulary and with the length.
    """

    def __init__(self, size: int, length: int, vocabulary: str):
        self.size, self.length, self.fingerprint = size, length, fingerprint([vocabulary, length])

    @abc.abstractmethod
    def _split(self, text: str) -> list[int]:
        """The ids of a clean text, none of them reserved."""

    @abc.abstractmethod
    def _join(self, ids: list[int]) -> str:
        """The text of ids that are not reserved; a character cut in half shows as U+FFFD."""

    def encode(self, text: str, *, truncate: bool = True) -> np.ndarray:
        """i32[length]: the text's ids, END, then PAD; a longer text is cut so that END still fits.

        Raises:
          DataError: the text does not fit, and `truncate` is off.
        """
        ids = self._split(clean(text))
        if len(ids) >= self.length and not truncate:
            shown = text if len(text) <= 60 else text[:59] + "…"
            raise DataError(f"the prompt {shown!r} has {len(ids)} tokens, but at most {self.length - 1} fit; shorten it")
        return self._padded([*ids[: self.length - 1], END])

    def null(self) -> np.ndarray:
        """i32[length]: NULL, then PAD."""
        return self._padded([NULL])

    def count(self, text: str) -> int:
        """How many ids the whole text takes, END among them; it is cut where they are more than `length`."""
        return len(self._split(clean(text))) + 1

    def decode(self, ids: np.ndarray) -> str:
        """The text of i32[N], each below `size`, up to the first END; PAD and NULL show as nothing."""
        listed = ids.tolist()
        listed = listed[: listed.index(END)] if END in listed else listed
        return self._join([i for i in listed if i not in (PAD, NULL)])

    def _padded(self, ids: list[int]) -> np.ndarray:
        return np.pad(np.array(ids, np.int32), (0, self.length - len(ids)), constant_values=PAD)


class _ByteTokenizer(TextTokenizer):
    def _split(self, text: str) -> list[int]:
        return [byte + RESERVED for byte in text.encode()]

    def _join(self, ids: list[int]) -> str:
        return bytes(i - RESERVED for i in ids).decode(errors="replace")


class _PieceTokenizer(TextTokenizer):
    def __init__(self, processor: Any, length: int, vocabulary: str):
        super().__init__(processor.get_piece_size(), length, vocabulary)
        self._processor = processor  # All in memory, constant, and it pickles as the bytes of its model.

    def _split(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def _join(self, ids: list[int]) -> str:
        return self._processor.decode(ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bytes:
    """The bytes of UTF-8, each an id: needs no file and knows every text.

    Attributes:
      length: ids in an encoded text; one of them is its end.
    """

    NAME: ClassVar[str] = "bytes"
    length: int = LENGTH

    def __post_init__(self):
        _check_length(self.length)

    def open(self) -> TextTokenizer:
        """The tokenizer; 259 ids."""
        return _ByteTokenizer(256 + RESERVED, self.length, self.NAME)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePiece:
    """The pieces of a trained vocabulary; U+2581, which stands for a space there, is read as one.

    Attributes:
      vocabulary: path of a SentencePiece model with our reserved ids, as `train_vocabulary` writes it.
      length: ids in an encoded text; one of them is its end.
    """

    NAME: ClassVar[str] = "sentencepiece"
    vocabulary: str
    length: int = LENGTH

    def __post_init__(self):
        _check_length(self.length)

    def open(self) -> TextTokenizer:
        """The tokenizer, which needs the file no longer.

        Raises:
          DataError: no such file, no SentencePiece model, other reserved ids than ours, or no sentencepiece installed.
        """
        path = pathlib.Path(self.vocabulary).expanduser()
        if not path.is_file():
            near = suggest(path.name, [p.name for p in path.parent.glob("*.model")])
            raise DataError(f"there is no text vocabulary {self.vocabulary!r}{near}; {HOW_TO_TRAIN}")
        model = path.read_bytes()
        processor = _library().SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise DataError(f"text vocabulary {self.vocabulary!r} is not a whole SentencePiece model; {HOW_TO_TRAIN}") from None
        if (processor.pad_id(), processor.eos_id()) != (PAD, END) or not processor.is_control(NULL):
            raise DataError(f"text vocabulary {self.vocabulary!r} has pad {processor.pad_id()}, bos {processor.bos_id()}, eos "
                            f"{processor.eos_id()}, but ids {PAD}, {NULL}, {END} must be pad, null (bos) and end; {HOW_TO_TRAIN}")
        return _PieceTokenizer(processor, self.length, hashlib.sha256(model).hexdigest())


def clean(text: str) -> str:
    """The text as tokenizers read it: NFC, single spaces, none at the ends; half a surrogate pair becomes `?`."""
    return " ".join(unicodedata.normalize("NFC", text).encode(errors="replace").decode().split())


def lengths(ids: np.ndarray) -> np.ndarray:
    """i32[..., length] → i32[...]: how many ids are not PAD."""
    return np.asarray(np.sum(ids != PAD, axis=-1, dtype=np.int32))


def captions_of(source: Source) -> Iterator[str]:
    """The captions of a source in its order, without the empty ones. Raises DataError where it has none."""
    if not source.info.has_captions:
        raise DataError(f"{source.info.name!r} has no captions; choose a source that has, or write them beside its images")
    return filter(clean, (source[i].get("caption", "") for i in range(len(source))))


def train_vocabulary(captions: Iterable[str], out: str | os.PathLike, size: int = 16000, kind: Kind = "bpe") -> None:
    """Trains a SentencePiece vocabulary and writes it; the same captions in the same order give the same bytes.

    Characters beyond 99.95% of the text, and those never seen, are spelled in bytes, so that no text is unknown.

    Args:
      captions: read once, and held in memory.
      out: a new file; it appears whole or not at all.
      size: how many ids the vocabulary has, the reserved ones and the bytes included.
      kind: SentencePiece's model type.

    Raises:
      DataError: the file exists, there is no caption, a size that the captions do not support, or no sentencepiece.
    """
    if pathlib.Path(out).exists():
        raise DataError(f"{str(out)!r} exists and is not overwritten; give another name, or remove it first")
    if size <= LEAST_SIZE:
        raise DataError(f"a vocabulary of size {size} holds nothing beside the {LEAST_SIZE} ids that are always there; choose a larger one")
    library, model = _library(), bytearray()
    # A list, for the trainer would turn what the iterator raises into an error of its own.
    texts = list(filter(None, map(clean, captions)))
    if not texts:
        raise DataError(f"there is no caption to train {str(out)!r} on; choose a source whose captions are not empty")
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=types.SimpleNamespace(write=model.extend), vocab_size=size,
            model_type=kind, pad_id=PAD, bos_id=NULL, bos_piece="<null>", eos_id=END, eos_piece="<end>", unk_id=RESERVED,
            byte_fallback=True, normalization_rule_name="identity",  # `clean` has normalised.
            max_sentence_length=1 << 20,  # Bytes; longer ones are passed over.
            minloglevel=2)
    except RuntimeError as error:
        raise DataError(_why(str(error), size, kind)) from None
    write_whole(out, bytes(model))


def _why(message: str, size: int, kind: str) -> str:
    """The sentence for an error of the trainer."""
    if most := re.search(r"a value <= (\d+)", message):
        return f"these captions support no {kind} vocabulary of size {size}; give a size of at most {most[1]}, or more captions"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"these captions need a {kind} vocabulary larger than {size}; give a size of at least {least[1]}"
    return f"SentencePiece cannot train on these captions: {message}"


def _check_length(length: int) -> None:
    if length < 2:
        raise ConfigError(f"length is {length}, but must be at least 2, for a token and the end")


def _library() -> types.ModuleType:
    try:
        import sentencepiece
    except ImportError:
        raise DataError("text vocabularies need sentencepiece; install it with `pip install \"vimlab[text]\"`") from None
    return sentencepiece
