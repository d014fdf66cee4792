"""A token cache holds what an encoder makes of the very crops that a run on pixels would see, and says when it does not."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import msgpack
import numpy as np
import pytest
from small_sets import CLASSES, Memory, plain, png

from vimlab.config import ConfigError
from vimlab.data import cache
from vimlab.data.base import DataError
from vimlab.data.cache import Recipe, check_cache, finish, write_shards
from vimlab.data.formats.tokens import TokenRecords, pack, unpack
from vimlab.data.pipeline import Center, DataConfig, Generator, Resize, Tokenizer, TrainPipeline, open_train_eval
from vimlab.data.shards import claim, partial_of
from vimlab.data.sources import open_source
from vimlab.data.text import Bytes
from vimlab.tokens import TokenSpec

SPEC = TokenSpec((2, 2), 1000)


def sums(images):
    """An encoder: the sum of each quarter's bytes, modulo the codes; it shows in every token which crop was seen."""
    assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 8)[:2] + (3,)
    quarters = images.reshape(-1, 2, 4, 2, 4, 3).astype(np.int32).sum((2, 4, 5)).reshape(-1, 4, 1)
    return quarters % SPEC.codes


def recipe(source, data=None, **changes):
    data = data or DataConfig(train="memory")
    arguments = {"views": 1, "seed": 3, "tokenizer": "f" * 16, "image_size": 8, "dtype": "float32", "spec": SPEC, "shard_records": 7}
    return Recipe(source=source, data=data, **arguments | changes)


def make(folder, *args, encode=sums, batch_size=8, **changes):
    """A whole cache, opened."""
    what, partial = recipe(*args, **changes), partial_of(folder)
    claim(partial, what.request, "cache")
    write_shards(what, partial, encode, batch_size=batch_size, quiet=True)
    finish(what, partial, folder, "runs/tokenizer")
    return TokenRecords(folder)


def pictures(count=30):
    return Memory([{"key": f"k{i}", "image": png(i), "label": i % 3, "caption": f"caption {i}"} for i in range(count)], "memory", CLASSES, "5eed")


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("crop", [Tokenizer(), Generator(), Center(), Resize(flip=True)])
@pytest.mark.parametrize("views", [1, 2, 3])
def test_batches_are_the_tokens_of_the_batches_of_pixels(tmp_path, crop, views, batch_size):
    source, text = pictures(), Bytes(length=16).open()
    source.records[4]["image"] = source.records[29]["image"] = png(0)[:40]
    records = make(tmp_path / "out", source, DataConfig(train="memory", crop=crop, max_bad=1.0), views=views, batch_size=batch_size)
    same = {"image_size": 8, "crop": crop, "batch_size": 8, "seed": 3, "text": text, "max_bad": 1.0}
    pixels, tokens = TrainPipeline(source, views=views, **same), TrainPipeline(records, **same)
    stream = tokens.iterate(0)
    for step in range(30 * views // 4):  # Twice through all views.
        want, got = pixels.batch(step), next(stream)
        assert got.keys() == {"tokens", "label", "index", "text"} and got["tokens"].dtype == np.int32
        np.testing.assert_array_equal(got["tokens"], sums(want.pop("image")))
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
    stream.close()


def test_no_image_is_read_to_train_on_tokens(tmp_path, monkeypatch):
    records = make(tmp_path / "out", pictures())
    monkeypatch.setattr("vimlab.data.examples.decode", None)
    batch = TrainPipeline(records, image_size=8, crop=Tokenizer(), batch_size=8, seed=3).batch(0)
    assert batch["tokens"].shape == (8, 4, 1) and batch.keys() == {"tokens", "label", "index"}


def test_records_and_manifest(tmp_path):
    source = pictures(16)
    source.records[7]["image"] = png(0)[:40]
    del source.records[3]["caption"], source.records[3]["label"]
    records = make(tmp_path / "out", source, DataConfig(train="memory#train", crop=Tokenizer(flip=False), max_bad=1.0), views=2, seed=5)
    assert len(records) == 16 and records.spec == SPEC and records.views == 2
    assert records.info == dataclasses.replace(source.info, name="memory as tokens (out)")  # Data's fingerprint, classes and size.
    assert records[7] | {"ids": 0} == records[8] | {"ids": 0} == {"key": "k8", "index": 8, "label": 2, "caption": "caption 8", "ids": 0}
    assert records[3].keys() == {"key", "index", "ids"} and records[3]["ids"].shape == (2, 4, 1) and records[3]["ids"].dtype == np.int32
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest == records.manifest and manifest["tokenizer"] == {"fingerprint": "f" * 16, "path": "runs/tokenizer"}
    assert manifest["data"] == {"source": "memory#train", "holdout": 0, "name": "memory", "fingerprint": "5eed", "size": 16}
    assert manifest["crop"] == {"name": "tokenizer", "low": 1.125, "high": 1.5, "flip": False}
    assert (manifest["views"], manifest["seed"], manifest["image_size"], manifest["replaced"], manifest["captions"]) == (2, 5, 8, 1, True)
    assert [s["count"] for s in manifest["shards"]] == [7, 7, 2]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"manifest.json", *(s["file"] for s in manifest["shards"])}


def test_the_stored_form_is_as_documented(tmp_path):
    """Read with array_record and msgpack alone."""
    from array_record.python.array_record_module import ArrayRecordReader

    make(tmp_path / "out", pictures(5), views=2)
    reader = ArrayRecordReader(str(tmp_path / "out/tokens-00000-of-00001.array_record"))
    record = msgpack.unpackb(reader.read([3])[0])
    reader.close()
    assert record.keys() == {"key", "index", "label", "caption", "ids"} and record["key"] == "k3" and record["index"] == 3
    np.testing.assert_array_equal(np.frombuffer(record["ids"], "<u2").reshape(2, 4, 1), TokenRecords(tmp_path / "out")[3]["ids"])


@pytest.mark.parametrize("codes, size", [(65536, 2), (65537, 4)])
def test_large_codebooks_have_wide_ids(codes, size):
    spec, ids = TokenSpec((1, 3), codes, groups=2), np.array([[[0, 1], [2, 3], [4, codes - 1]]], np.int32)
    data = pack({"key": "a", "index": 0, "ids": ids}, codes)
    assert len(msgpack.unpackb(data)["ids"]) == 6 * size
    np.testing.assert_array_equal(unpack(data, spec, 1)["ids"], ids)
    with pytest.raises(ValueError, match="reshape"):
        unpack(data, spec, 2)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("count", [2, 3])
def test_processes_write_what_one_would(tmp_path, count):
    make(tmp_path / "one", pictures())
    what, partial = recipe(pictures()), partial_of(tmp_path / "some")
    claim(partial, what.request, "cache")
    for process in reversed(range(count)):
        with pytest.raises(DataError, match=r"tokens-0000\d-of-00005.array_record' is not finished"):
            finish(what, partial, tmp_path / "some", "runs/tokenizer")
        write_shards(what, partial, sums, batch_size=8, process_index=process, process_count=count, quiet=True)
        there = {int(p.name.split("-")[1]) % count for p in partial.glob("*.done")}
        assert there == set(range(process, count))
    finish(what, partial, tmp_path / "some", "runs/tokenizer")
    assert files(tmp_path / "one") == files(tmp_path / "some")


SLOW = """
import pathlib, sys, time
sys.path[:0] = sys.argv[3:]
import test_tokens as t
def slow(images): time.sleep(float(sys.argv[2])); return t.sums(images)
t.make(pathlib.Path(sys.argv[1]), t.pictures(), views=2, encode=slow)
"""


def test_a_killed_cache_goes_on_and_ends_in_the_same_bytes(tmp_path, request):
    """Really killed (SIGKILL) in the middle of a shard; finished shards are kept, and the result equals a straight run's."""
    script = lambda seconds: [sys.executable, "-c", SLOW, str(tmp_path / "out"), seconds, str(request.path.parent)]
    partial = tmp_path / "out.partial"
    first = subprocess.Popen(script("0.1"))
    end = time.monotonic() + 120
    while len(list(partial.glob("*.done"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    kept = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.array_record") if p.with_suffix(".done").exists()}
    assert 2 <= len(kept) < 5 and not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="out' is not finished; run the same `vimlab tokenize` again"):
        TokenRecords(tmp_path / "out")
    subprocess.run(script("0"), check=True)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == made for name, made in kept.items())
    make(tmp_path / "straight", pictures(), views=2)
    assert files(tmp_path / "out") == files(tmp_path / "straight")


def test_a_beginning_is_continued_only_by_the_same_recipe(tmp_path):
    data = DataConfig(train="memory", holdout=2)
    changes = [("tokenizer.fingerprint 'f+', not 'e+'", {"tokenizer": "e" * 16}), ("views 1, not 2", {"views": 2}), ("seed 3, not 4", {"seed": 4}),
               ("data.holdout 2, not 3", {"data": dataclasses.replace(data, holdout=3)}), ("dtype 'float32', not 'bfloat16'", {"dtype": "bfloat16"}),
               ("data.source 'memory', not 'm'", {"data": dataclasses.replace(data, train="m")}),
               ("crop.name 'tokenizer', not 'center'", {"data": dataclasses.replace(data, crop=Center())}),
               ("data.fingerprint '5eed', not '0'", {"source": Memory(pictures().records, class_names=CLASSES)})]
    claim(partial_of(tmp_path / "out"), recipe(pictures(), data).request, "cache")
    for message, change in changes:
        other = recipe(**{"source": pictures(), "data": data} | change)
        with pytest.raises(DataError, match=rf"out.partial' is the beginning of another cache \({message}\)"):
            claim(partial_of(tmp_path / "out"), other.request, "cache")
    claim(partial_of(tmp_path / "out"), recipe(pictures(), data).request, "cache")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="out' exists already"):
        partial_of(tmp_path / "out")


def test_too_many_bad_images_end_it(tmp_path):
    source = plain(200)
    for i in range(0, 200, 10):
        source.records[i]["image"] = b"no"
    with pytest.raises(DataError, match=r"images of 'memory' cannot be decoded \(data.max_bad is 0.01\)"):
        make(tmp_path / "out", source, shard_records=50)


def test_a_missing_or_damaged_cache_is_one_sentence(tmp_path, folder):
    with pytest.raises(DataError, match="there is no token cache in '.*none'; make one with"):
        TokenRecords(tmp_path / "none")
    with pytest.raises(DataError, match="emoji' is in format '1', but token caches are in format 'tokens 1'"):
        TokenRecords(cache.__file__.replace("cache.py", "embedded/emoji"))
    records = make(tmp_path / "out", pictures(), views=2)
    with pytest.raises(DataError, match="is in format tokens 1, but"):
        open_source(str(tmp_path / "out"))
    shard = tmp_path / "out/tokens-00001-of-00005.array_record"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: -len(whole) // 2] + b"\0" + whole[-len(whole) // 2 + 1 :])
    with pytest.raises(DataError, match=r"record \d+ of the token cache '.*out' is damaged .*remove the folder and run `vimlab tokenize` again"):
        [TokenRecords(tmp_path / "out")[i] for i in range(30)]
    shard.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=rf"00001-of-00005.array_record' has {len(whole) - 1} bytes, not the {len(whole)} that"):
        TokenRecords(tmp_path / "out")
    shard.unlink()
    with pytest.raises(DataError, match="00001-of-00005.array_record' has 0 bytes"):
        TokenRecords(tmp_path / "out")
    (tmp_path / "out/manifest.json").write_text("{")
    with pytest.raises(DataError, match="is not a manifest of `vimlab tokenize`"):
        TokenRecords(tmp_path / "out")
    assert len(records) == 30


def test_a_run_gets_only_what_it_would_make_itself(tmp_path):
    data = DataConfig(train="memory", holdout=2, crop=Tokenizer(low=1.2))
    records = make(tmp_path / "out", pictures(), data, views=2)
    mine = {"tokenizer_fingerprint": "f" * 16, "spec": SPEC, "data": data, "seed": 3}
    check_cache(records, **mine)
    check_cache(records, **mine | {"data": dataclasses.replace(data, views=2, threads=3, eval_crop=Resize())})
    for message, change in [
        ("another tokenizer, 'f+' .of 'runs/tokenizer'., than this run's 'e+'; change config.tokenizer,", {"tokenizer_fingerprint": "e" * 16}),
        ("another kind of tokens, .*1000.*than.*999", {"spec": TokenSpec((2, 2), 999)}),
        ("another data, 'memory', than this run's 'm'; change config.data.train,", {"data": dataclasses.replace(data, train="m")}),
        ("another holdout, 2, than this run's 3; change config.data.holdout,", {"data": dataclasses.replace(data, holdout=3)}),
        ("another crop, .*1.2.*, than this run's .*1.125", {"data": dataclasses.replace(data, crop=Tokenizer())}),
        ("another number of views, 2, than this run's 1; change config.data.views,", {"data": dataclasses.replace(data, views=1)}),
        ("another seed, 3, than this run's 4; change config.seed,", {"seed": 4}),
    ]:
        with pytest.raises(ConfigError, match=rf"^the token cache '.*out' was made with {message}"):
            check_cache(records, **mine | change)


@pytest.mark.parametrize("crop, counts", [(Center(), False), (Resize(), False), (Resize(flip=True), True), (Generator(), True)])
def test_the_seed_counts_where_the_crop_is_random(tmp_path, crop, counts):
    data = DataConfig(train="memory", crop=crop)
    ask = lambda: check_cache(make(tmp_path / "out", pictures(5), data), tokenizer_fingerprint="f" * 16, spec=SPEC, data=data, seed=4)
    if not counts:
        return ask()
    with pytest.raises(ConfigError, match="another seed"):
        ask()


def test_training_opens_the_cache_and_evaluation_the_pixels(tmp_path, folder):
    data = DataConfig(train=str(folder), holdout=3)
    whole, held = open_train_eval(data)
    make(tmp_path / "out", whole, data)
    data = dataclasses.replace(data, tokens=str(tmp_path / "out"))
    train, evaluation = open_train_eval(data)
    assert isinstance(train, TokenRecords) and train.info.fingerprint == whole.info.fingerprint and len(train) == 9
    assert evaluation.info == held.info and evaluation[0] == held[0]
    other = dataclasses.replace(data, holdout=0)
    assert open_train_eval(other)[1] is None and open_train_eval(dataclasses.replace(other, text=Bytes()))[0].info.has_captions
    with pytest.raises(DataError, match="token cache .* was made from other data than .* without 4 held out"):
        open_train_eval(dataclasses.replace(data, holdout=4))
    with pytest.raises(DataError, match="does not exist"):
        open_train_eval(dataclasses.replace(other, eval=str(tmp_path / "gone")))
    (folder / "ant").rename(folder / "asp")
    with pytest.raises(DataError, match="the classes of .* differ .*ant"):
        open_train_eval(dataclasses.replace(other, eval=str(folder)))
