"""Ids against the stored ones of transformers' CLIPTokenizer; the published forms of a vocabulary agree."""

import gzip
import json
import os

import numpy as np
import pytest
import small_clip

from vimlab.scoring import clip_text
from vimlab.scoring.clip_text import ClipText, open_vocabulary, pieces
from vimlab.scoring.clip_weights import ClipError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    small_clip.write(folder)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return open_vocabulary(str(folder / "merges.txt"))


def test_ids_match_transformers(text):
    found = text.encode(small_clip.TEXTS)
    for row, expected, words in zip(found, small_clip.ANSWERS["ids"], small_clip.TEXTS, strict=True):
        np.testing.assert_array_equal(row, expected, err_msg=words)


def test_ids_match_with_the_true_vocabulary():
    if not os.environ.get("CLIP_VOCABULARY"):
        pytest.skip("CLIP_VOCABULARY names no bpe_simple_vocab_16e6.txt.gz")
    np.testing.assert_array_equal(open_vocabulary(os.environ["CLIP_VOCABULARY"]).encode(small_clip.TEXTS), small_clip.ANSWERS["true_ids"])


def test_pieces_know_letters_from_numerals():
    assert pieces("don't 42½ⅳ 日本語!? '''s") == ["don", "'t", "4", "2", "½", "ⅳ", "日本語", "!?", "'''", "s"]
    assert pieces("é\u0327x ตั") == ["é", "\u0327", "x", "ต", "\u0e31"]  # Marks that combine are no letters.
    assert pieces(" \t") == []


def test_long_texts_keep_their_end(text):
    row = text.encode(["a " * 200])[0]
    assert row[0] == text.size - 2 and row[-1] == text.size - 1 == row.max() and len(row) == 77
    assert text.encode(["a " * 75])[0, -1] == text.size - 1 and text.encode(["a " * 74])[0, -2:].tolist() == [text.size - 1, 0]


def test_every_form_of_a_vocabulary_gives_the_same_ids(folder, text, tmp_path):
    merges = [" ".join(m) for m in small_clip.MERGES]
    with gzip.open(tmp_path / "bpe.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(["a comment", *merges]))
    (tmp_path / "vocab.json").write_text(json.dumps(text._ids))
    (tmp_path / "merges.txt").write_bytes((folder / "merges.txt").read_bytes())
    for name, listed in (("tokenizer.json", merges), ("lists.json", [m.split(" ") for m in merges])):
        (tmp_path / name).write_text(json.dumps({"model": {"vocab": text._ids, "merges": listed}, "added_tokens": [
            {"id": text.size - 1, "content": clip_text.END}]}))
    for name in ("bpe.txt.gz", "vocab.json", "tokenizer.json", "lists.json"):
        np.testing.assert_array_equal(open_vocabulary(str(tmp_path / name)).encode(small_clip.TEXTS), small_clip.ANSWERS["ids"])


def test_mistakes_are_named(tmp_path, text):
    def fails(match, name, content=None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ClipError, match=match):
            open_vocabulary(str(tmp_path / name))

    fails("the CLIP vocabulary '.*none.gz' does not exist; give OpenAI's bpe_simple_vocab", "none.gz")
    fails("cut.gz is not CLIP's vocabulary", "cut.gz", b"\x1f\x8b half")
    fails("three.txt is not CLIP's vocabulary", "three.txt", b"#\na b c\n")
    fails("alone.json is not CLIP's vocabulary .*merges.txt", "alone.json", json.dumps(text._ids).encode())
    few = {"model": {"vocab": {"a": 0, clip_text.START: 1, clip_text.END: 2}, "merges": []}}
    fails("it lacks bytes", "other.json", json.dumps(few).encode())


def test_half_a_surrogate_pair_is_read(text):
    assert text.split("a \ud83d b") == text.split("a ? b") and isinstance(text, ClipText)
