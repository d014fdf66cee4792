"""Text to ids against literals and the library itself; vocabularies are trained anew, and every refusal is read."""

import concurrent.futures
import pathlib
import pickle
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import sentencepiece
from small_sets import COUNT, Memory

from vimlab.config import ConfigError, resolve
from vimlab.data import commands
from vimlab.data.base import DataError
from vimlab.data.sources import open_source
from vimlab.data.text import END, NULL, PAD, Bytes, SentencePiece, captions_of, clean, lengths, train_vocabulary

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = 512


@pytest.fixture(scope="module")
def emoji():
    return list(captions_of(open_source("emoji:train")))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory, emoji):
    path = tmp_path_factory.mktemp("text") / "emoji.model"
    train_vocabulary(emoji, path, size=SIZE)
    return str(path)


@pytest.fixture(params=["bytes", "bpe"])
def config(request, vocabulary):
    """Makes the config of each tokenizer from its length."""
    return lambda length=128: Bytes(length=length) if request.param == "bytes" else SentencePiece(vocabulary=vocabulary, length=length)


def refusal(function, *args, **kwargs) -> str:
    """The one sentence that a mistake is answered with."""
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 250
    return message


def train_foreign(path, **options):
    """A vocabulary as others make it."""
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["some words", "more words"]), model_writer=file, vocab_size=268,
                                                 byte_fallback=True, minloglevel=2, **options)
    return str(path)


def test_bytes_are_their_values_after_the_reserved_ids():
    tokenizer = Bytes(length=12).open()
    assert tokenizer.size == 259 and (PAD, NULL, END) == (0, 1, 2)
    ids = tokenizer.encode("aé\0🎉")
    assert ids.dtype == np.int32
    assert ids.tolist() == [100, 0xC3 + 3, 0xA9 + 3, 3, 0xF0 + 3, 0x9F + 3, 0x8E + 3, 0x89 + 3, 2, 0, 0, 0]


def test_pieces_are_those_of_the_library(vocabulary, emoji):
    tokenizer = SentencePiece(vocabulary=vocabulary).open()
    library = sentencepiece.SentencePieceProcessor(model_file=vocabulary)
    assert tokenizer.size == SIZE == library.get_piece_size()
    assert [library.id_to_piece(i) for i in range(4)] == ["<pad>", "<null>", "<end>", "<unk>"]
    for caption in emoji:
        want = library.encode(caption)
        assert tokenizer.encode(caption)[: len(want) + 2].tolist() == [*want, END, PAD]
    assert sum(tokenizer.count(c) for c in emoji) < 0.6 * sum(len(c) for c in emoji), "pieces are longer than characters"


def test_the_empty_and_the_dropped_text(config):
    tokenizer = config(4).open()
    assert tokenizer.encode("").tolist() == tokenizer.encode(" \n").tolist() == [END, PAD, PAD, PAD]
    assert tokenizer.null().tolist() == [NULL, PAD, PAD, PAD] and tokenizer.null().dtype == np.int32
    assert tokenizer.decode(tokenizer.null()) == tokenizer.decode(tokenizer.encode("")) == ""


def test_no_text_spells_a_reserved_id(config):
    for text in ("<pad><null><end>", "<null>", "</s> <s> <unk>", "\0\1\2", "<0x00>"):
        ids = config().open().encode(text)
        assert ids.tolist().index(END) == lengths(ids) - 1 and not np.isin(ids[: lengths(ids) - 1], [PAD, NULL, END]).any()


@pytest.mark.parametrize("text,want", [
    ("  a\t red \r\n\u00a0\u2003circle ", "a red circle"), ("A Red", "A Red"), ("cafe\u0301", "caf\u00e9"), ("ﬁ ①", "ﬁ ①"),
    ("half \ud83d", "half ?"), ("", ""),
])
def test_texts_are_cleaned(config, text, want):
    assert clean(text) == want
    tokenizer = config().open()
    np.testing.assert_array_equal(tokenizer.encode(text), tokenizer.encode(want))
    assert tokenizer.decode(tokenizer.encode(text)) == want


def test_captions_come_back(config, emoji):
    tokenizer = config().open()
    assert len(emoji) == 1434
    assert all(tokenizer.decode(tokenizer.encode(caption)) == caption for caption in emoji)


def test_any_unicode_comes_back(config):
    """Random assigned characters of all planes; U+2581 is SentencePiece's own sign for a space."""
    rng, tokenizer = np.random.default_rng(0), config(512).open()
    known = [i for i in range(1, 0x110000) if unicodedata.category(chr(i)) not in ("Cs", "Cn", "Co") and i != 0x2581]
    for points in rng.choice(known, (200, 40)):
        text = "".join(map(chr, points))
        want = " ".join(unicodedata.normalize("NFC", text).split())
        assert tokenizer.decode(tokenizer.encode(text, truncate=False)) == want


def test_cutting_keeps_the_end_and_the_size(config):
    text = "a woman in a red coat, 1 ☃"
    whole = config(128).open().encode(text)
    count = int(lengths(whole))
    assert config(128).open().count(text) == count > 8
    for length in range(2, count + 3):
        tokenizer = config(length).open()
        ids = tokenizer.encode(text)
        kept = min(length, count) - 1
        assert tokenizer.count(text) == count, "the count is of the whole text"
        assert ids.shape == (length,) and ids[kept] == END and not ids[kept + 1 :].any()
        np.testing.assert_array_equal(ids[:kept], whole[:kept])


def test_half_a_character_shows(config):
    tokenizer = config(128).open()
    ids = tokenizer.encode("\U0001f98a")
    cut = ids[: lengths(ids) - 2]  # Without its END and its last byte.
    assert set(tokenizer.decode(cut).strip()) == {"\ufffd"} and tokenizer.decode(ids) == "\U0001f98a"


def test_a_long_prompt_is_refused_where_it_must_not_be_cut(config):
    text = "a woman in a red coat " * 20
    count = config().open().count(text)
    exact, short = config(count).open(), config(count - 1).open()
    np.testing.assert_array_equal(exact.encode(text, truncate=False), exact.encode(text))
    message = refusal(short.encode, text, truncate=False)
    assert f"has {count - 1} tokens, but at most {count - 2} fit; shorten it" in message
    assert "'a woman in a red coat" in message and message.count("woman") < 5


def test_lengths_count_what_is_not_padding(config):
    tokenizer = config(16).open()
    batch = np.stack([tokenizer.null(), tokenizer.encode(""), tokenizer.encode("a" * 99)])
    assert lengths(batch).tolist() == [1, 1, 16] and lengths(batch).dtype == np.int32
    assert lengths(batch[None]).shape == (1, 3) and lengths(batch[2]).shape == ()


def test_fingerprints_tell_vocabulary_and_length(config, tmp_path):
    assert config(8).open().fingerprint == config(8).open().fingerprint != config(9).open().fingerprint
    files = {name: tmp_path / f"{name}.model" for name in ("one", "copy", "two")}
    train_vocabulary(["other words"], files["one"], size=270)
    train_vocabulary(["uther wurds"], files["two"], size=270)
    files["copy"].write_bytes(files["one"].read_bytes())
    one, copy, two = (SentencePiece(vocabulary=str(path)).open().fingerprint for path in files.values())
    assert one == copy and len({one, two, Bytes().open().fingerprint}) == 3
    assert files["one"].stat().st_size == files["two"].stat().st_size, "not told by size"


def test_it_pickles_and_needs_its_file_no_more(config, vocabulary, tmp_path, emoji):
    tokenizer = config(32).open()
    if isinstance(config(), SentencePiece):
        copy = tmp_path / "copy.model"
        copy.write_bytes(pathlib.Path(vocabulary).read_bytes())
        tokenizer = SentencePiece(vocabulary=str(copy), length=32).open()
        copy.unlink()
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again.size, again.length, again.fingerprint) == (tokenizer.size, 32, tokenizer.fingerprint)
    for caption in emoji[:100]:
        np.testing.assert_array_equal(again.encode(caption), config(32).open().encode(caption))


def test_threads_share_it(config, emoji):
    tokenizer = config(32).open()
    want = np.stack([tokenizer.encode(c) for c in emoji])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(np.stack(list(pool.map(tokenizer.encode, emoji))), want)


def test_configs_choose_by_name():
    assert resolve(Bytes, {"name": "bytes", "length": 40}) == Bytes(length=40)
    assert resolve(SentencePiece, {"name": "sentencepiece", "vocabulary": "a.model"}) == SentencePiece(vocabulary="a.model", length=128)
    assert Bytes(length=2).open().encode("ab").tolist() == [100, END]
    for schema, more in ((Bytes, {}), (SentencePiece, {"vocabulary": "a"})):
        with pytest.raises(ConfigError, match="^config: length is 1, but must be at least 2"):
            resolve(schema, {"length": 1, **more})


def test_files_that_are_no_vocabulary(vocabulary, tmp_path):
    whole = pathlib.Path(vocabulary).read_bytes()
    opens = lambda path: SentencePiece(vocabulary=str(path)).open()
    assert "did you mean 'emoji.model'?" in refusal(opens, vocabulary.replace("emoji", "emojis"))
    for path in (tmp_path / "no" / "such.model", tmp_path, ""):
        assert refusal(opens, path) == f"there is no text vocabulary {str(path)!r}; `vimlab data vocab SRC OUT.model` trains one"
    for content in (b"", b"some text\n", (ROOT / "README.md").read_bytes(), whole[: len(whole) // 2]):
        (tmp_path / "bad.model").write_bytes(content)
        assert "bad.model' is not a whole SentencePiece model; `vimlab data vocab" in refusal(opens, tmp_path / "bad.model")


def test_vocabularies_of_others(tmp_path):
    """The default ids are refused; those of ours are welcome, whatever the pieces are called."""
    path = train_foreign(tmp_path / "default.model")
    assert "has pad -1, bos 1, eos 2, but ids 0, 1, 2 must be pad, null (bos) and end" in refusal(SentencePiece(vocabulary=path).open)
    path = train_foreign(tmp_path / "nonull.model", pad_id=0, bos_id=-1, eos_id=2, unk_id=1)
    assert "has pad 0, bos -1, eos 2" in refusal(SentencePiece(vocabulary=path).open)
    path = train_foreign(tmp_path / "ours.model", pad_id=0, bos_id=1, eos_id=2, unk_id=3)
    assert SentencePiece(vocabulary=path, length=9).open().encode("words")[-1] == PAD


def test_without_the_library(vocabulary, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    for use in (SentencePiece(vocabulary=vocabulary).open, lambda: train_vocabulary(["a"], tmp_path / "a.model")):
        assert refusal(use) == 'text vocabularies need sentencepiece; install it with `pip install "vimlab[text]"`'


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_is_deterministic_and_silent(kind, emoji, tmp_path, capfd):
    for name, texts in (("a", emoji), ("b", iter(emoji)), ("c", emoji[1:])):
        train_vocabulary(texts, tmp_path / f"{name}.model", size=400, kind=kind)
    a, b, c = ((tmp_path / f"{name}.model").read_bytes() for name in "abc")
    assert a == b != c and capfd.readouterr() == ("", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "b.model", "c.model"]


def test_the_kinds_differ(emoji, tmp_path):
    pieces = {}
    for kind in ("bpe", "unigram"):
        train_vocabulary(emoji, tmp_path / kind, size=400, kind=kind)
        library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / kind))
        pieces[kind] = {library.id_to_piece(i) for i in range(400)}
    assert pieces["bpe"] != pieces["unigram"]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sizes_that_captions_do_not_support(kind, emoji, tmp_path):
    """The sizes that the sentences name work, and the next ones do not."""
    train = lambda size: train_vocabulary(emoji[:300], tmp_path / f"{size}.model", size=size, kind=kind)
    message = refusal(train, 16000)
    assert message.startswith(f"these captions support no {kind} vocabulary of size 16000; give a size of at most ")
    most = int(re.search(r"at most (\d+)", message)[1])
    message = refusal(train, 261)
    assert message.startswith(f"these captions need a {kind} vocabulary larger than 261; give a size of at least ")
    least = int(re.search(r"at least (\d+)", message)[1])
    for size in (least, most):
        train(size)
        assert SentencePiece(vocabulary=str(tmp_path / f"{size}.model")).open().size == size
    for size in (least - 1, most + 1):
        refusal(train, size)
    for size in (1, 260):
        assert refusal(train, size).startswith(f"a vocabulary of size {size} holds nothing beside the 260 ids")


def test_training_overwrites_nothing_and_reads_nothing_first(tmp_path):
    (tmp_path / "mine.model").write_text("mine")
    texts = iter(["a", "b"])
    assert "mine.model' exists and is not overwritten" in refusal(train_vocabulary, texts, tmp_path / "mine.model")
    assert (tmp_path / "mine.model").read_text() == "mine" and next(texts) == "a"


def test_training_without_captions_or_with_a_broken_source(tmp_path):
    assert "there is no caption to train" in refusal(train_vocabulary, ["", " \n"], tmp_path / "a.model")

    def broken():
        yield "a"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train_vocabulary(broken(), tmp_path / "a.model")
    assert not list(tmp_path.iterdir())


def test_long_captions_teach_too(tmp_path):
    """SentencePiece passes over sentences of more than 4192 bytes where it is not told otherwise."""
    train_vocabulary(["zebra crossing " * 1000], tmp_path / "long.model", size=290)
    assert SentencePiece(vocabulary=str(tmp_path / "long.model")).open().count("zebra crossing") == 3


def test_captions_of_a_source():
    records = [{"key": str(i), **({"caption": text} if text is not None else {})} for i, text in enumerate(["b", "", None, " ", "a  c"])]
    assert list(captions_of(Memory(records))) == ["b", "a  c"]
    assert refusal(captions_of, Memory([{"key": "0"}], "bare")).startswith("'bare' has no captions; choose a source that has")


def test_the_command_reports_lengths(folder, tmp_path, capsys):
    longest = next(folder.rglob("0007.txt"))
    longest.write_text(" ".join(np.random.default_rng(0).choice(list("abcdefgh"), 150)))
    next(folder.rglob("0003.txt")).write_text("")
    out = tmp_path / "new" / "pictures.model"
    assert commands.main(["vocab", str(folder), str(out), "--size", "284", "--kind", "unigram"]) == 0
    library = sentencepiece.SentencePieceProcessor(model_file=str(out))
    texts = [f"caption {i}" for i in range(COUNT) if i not in (3, 7)] + [longest.read_text()]
    counts = sorted(len(library.encode(text)) + 1 for text in texts)
    assert counts[-1] > 128 > counts[-2]
    assert capsys.readouterr().out.splitlines() == [
        f"11 captions read; wrote {out}, a unigram vocabulary of 284 ids",
        f"tokens in a caption with its end: median {counts[5]}, 99th percentile {counts[-1]}, longest {counts[-1]}; 1 are longer than 128",
    ]
    for file in folder.rglob("*.txt"):
        file.unlink()
    assert "has no captions" in refusal(commands.main, ["vocab", str(folder), str(tmp_path / "none.model")])


def test_the_command_in_another_process_writes_the_same_bytes(vocabulary, tmp_path):
    vocab = [sys.executable, "-m", "vimlab", "data", "vocab", "emoji:train", str(tmp_path / "emoji.model")]
    done = subprocess.run([*vocab, "--size", str(SIZE)], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("1,434 captions read; wrote ")
    assert (tmp_path / "emoji.model").read_bytes() == pathlib.Path(vocabulary).read_bytes()
    done = subprocess.run(vocab, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("vimlab: error: ") and "not overwritten" in done.stderr
