"""Every format gives back the records that were put in; specs choose splits and slices; mistakes get one sentence."""

import os
import pickle
import re
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_sets import CLASSES, COUNT, make_tar, picture, png

from vimlab.data.base import Complement, DataError, held_out
from vimlab.data.formats import parquet as parquet_format
from vimlab.data.formats import webdataset
from vimlab.data.images import decode
from vimlab.data.importer import import_dataset
from vimlab.data.sources import open_source, open_splits


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def assert_same(source, numbers=range(COUNT)):
    """The source holds exactly these records of the common set, in any order, with classes and captions."""
    assert len(source) == source.info.size == len(numbers) and source.info.has_captions and source.info.class_names == CLASSES
    found = set()
    for i in range(len(source)):
        record = source[i]
        number = int(re.search(r"\d{4}", record["key"])[0])
        np.testing.assert_array_equal(decode(record["image"]), picture(number))
        assert record["label"] == number % 3 and record["caption"] == f"caption {number}"
        found.add(number)
    assert found == set(numbers)
    for outside in (-1, len(source)):
        with pytest.raises(IndexError):
            source[outside]


def check_sharing(source):
    """Used, pickled, and read from many threads at once, a source gives the same."""
    want = [source[i]["key"] for i in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: copy[i % len(copy)]["key"], range(5 * len(copy)))) == want * 5
    assert copy.info == source.info


def test_folder_of_classes_with_captions(folder):
    source = open_source(str(folder))
    assert_same(source)
    check_sharing(source)
    assert [source[i]["key"] for i in range(2)] == ["ant/0000.png", "ant/0003.png"]


def test_flat_folder_has_no_classes(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    source = open_source(str(tmp_path))
    assert source.info.class_names is None and not source.info.has_captions and set(source[1]) == {"key", "image"}


def test_split_folders_share_one_class_table(tmp_path):
    """A class that `val` lacks must not shift the others' numbers."""
    for split, names in (("train", "abc"), ("val", "ac")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "x.png").write_bytes(png(0))
    source = open_source(f"{tmp_path}#val")
    assert source.info.class_names == ("a", "b", "c") and [source[i]["label"] for i in range(2)] == [0, 2]
    with pytest.raises(DataError, match=r"has the splits \['train', 'val'\]"):
        open_source(str(tmp_path))


def test_tars_as_folder_file_glob_and_braces(tars):
    source = open_source(str(tars))
    assert_same(source)
    check_sharing(source)
    assert_same(open_source(f"{tars}/part-{{00000..00001}}.tar"))
    assert_same(open_source(f"{tars}/part-*.tar"))
    assert_same(open_source(f"wds:{tars}/part-{{00001,00000}}.tar"))
    assert_same(open_source(f"{tars}/part-00001.tar"), range(6, 12))


def test_tar_with_json(tmp_path):
    make_tar(tmp_path / "x.tar", range(COUNT), as_json=True)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    assert_same(open_source(str(tmp_path / "x.tar")))


def test_tar_index_is_kept_and_renewed_when_the_tar_changes(tars, monkeypatch):
    tar = tars / "part-00000.tar"
    open_source(str(tar))
    index = tar.with_name(tar.name + ".index.npz")
    made = index.stat().st_mtime_ns
    scans = []
    scan = webdataset._scan
    monkeypatch.setattr(webdataset, "_scan", lambda path: scans.append(path) or scan(path))
    assert len(open_source(str(tar))) == 6 and not scans and index.stat().st_mtime_ns == made
    make_tar(tar, range(9))
    assert len(open_source(str(tar))) == 9 and len(scans) == 1
    os.utime(tar, ns=(time.time_ns(), time.time_ns() + 10**9))  # same size, later time: made again
    assert len(open_source(str(tar))) == 9 and len(scans) == 2
    index.write_bytes(b"garbage")
    assert len(open_source(str(tar))) == 9 and len(scans) == 3


def test_tar_index_goes_to_the_cache_where_the_folder_is_read_only(tars, tmp_path):
    tars.chmod(0o555)
    try:
        assert len(open_source(str(tars))) == 12
        assert not list(tars.glob("*.npz")) and len(list((tmp_path / "cache").rglob("*.npz"))) == 2
    finally:
        tars.chmod(0o755)


def test_compressed_or_cut_tars_are_named(tmp_path):
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as archive:
        archive.add(__file__, "a.txt")
    with pytest.raises(DataError, match="zipped.tar"):
        open_source(str(tmp_path / "zipped.tar"))


def test_parquet(parquet, monkeypatch):
    source = open_source(str(parquet))
    assert_same(source)
    check_sharing(source)
    monkeypatch.setattr(parquet_format, "CACHE_BYTES", 1)  # keeps a single row group, so rows are read again and again
    assert_same(open_source(f"{parquet}/data/*.parquet"))


def test_plain_binary_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"jpg": [png(0), png(1)], "n": [1, 2]}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"))
    np.testing.assert_array_equal(decode(source[1]["image"]), picture(1))
    assert source.info.class_names is None and not source.info.has_captions
    pq.write_table(pa.table({"n": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"no column with image bytes; its columns are \['n'\]"):
        open_source(str(tmp_path / "b.parquet"))


def test_tfds_directory(tfds_folder):
    assert_same(open_source(f"{tfds_folder}#train"), range(8))
    assert_same(open_source(f"{tfds_folder.parent}#test"), range(8, 12))
    check_sharing(open_source(f"{tfds_folder}#train"))
    keys = [{open_source(f"{tfds_folder}#train{cut}")[i]["key"] for i in range(4)} for cut in ("[:50%]", "[50%:]")]
    assert len(keys[0] | keys[1]) == 8
    with pytest.raises(DataError, match=r"has no split 'tran'.*'test', 'train'"):
        open_source(f"{tfds_folder}#tran")
    assert set(open_splits(str(tfds_folder))) == {"train", "test"}


def test_imported_array_record(folder, tmp_path):
    import_dataset(str(folder), tmp_path / "out", quiet=True)
    source = open_source(str(tmp_path / "out"))
    assert_same(source)
    check_sharing(source)
    shard = next((tmp_path / "out").glob("*.array_record"))
    shard.rename(shard.with_suffix(".gone"))
    with pytest.raises(DataError, match="lacks 'train-00000-of-00001.array_record'"):
        open_source(str(tmp_path / "out"))


def test_emoji_is_embedded():
    train, test = open_source("emoji:train"), open_source("emoji:test")
    assert len(train) == 1434 and len(test) == 200 and train.info.has_captions
    assert not {train[i]["key"] for i in range(1434)} & {test[i]["key"] for i in range(200)}
    assert all(decode(train[i]["image"]).shape == (64, 64, 3) for i in range(0, 1434, 100)) and test[0]["caption"]


def test_emoji_is_what_its_tool_makes(shared_data):
    """The first record of each split, made again from the originals: white ground, area mean, lossless."""
    originals = {r["key"]: r for r in (o[i] for o in [open_source(str(shared_data / "emoji"))] for i in range(len(o)))}
    for spec in ("emoji:train", "emoji:test"):
        record = open_source(spec)[0]
        want = decode(originals[record["key"]]["image"]).reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(decode(record["image"]) - want).max() <= 0.5 and record["caption"] == originals[record["key"]]["caption"]


def test_real_cifar_tars(shared_data):
    train, test = open_source(f"{shared_data}/cifar10#train"), open_source(f"{shared_data}/cifar10#test")
    assert len(train) == 20_000 and len(test) == 2_000 and train.info.class_names[3] == "cat" == test.info.class_names[3]
    record = train[3]
    assert record["label"] == 3 and record["caption"] == "a photo of a cat" and decode(record["image"]).shape == (32, 32, 3)


def test_slices_are_disjoint_and_together_whole(tars):
    parts = [open_source(f"{tars}#{cut}") for cut in ("[:30%]", "[30%:75%]", "train[75%:]")]
    keys = [{part[i]["key"] for i in range(len(part))} for part in parts]
    assert [len(k) for k in keys] == [3, 6, 3] and len(set.union(*keys)) == 12
    assert len(open_source(f"{tars}#[:5]")) == 5
    assert open_source(f"{tars}#[:5]").info.fingerprint != open_source(f"{tars}#[:6]").info.fingerprint
    for wrong in ("[:0]", "[5:5]", "[3:99]", "[5]", "[a:b]"):
        with pytest.raises(DataError, match=re.escape(wrong)):
            open_source(f"{tars}#{wrong}")


def test_shapes_options():
    source = open_source("shapes:train?size=24&count=40&objects=1#[:10]")
    assert len(source) == 10 and source[0]["image"].shape == (24, 24, 3)
    check_sharing(source)
    with pytest.raises(DataError, match="colour='red'.*objects"):
        open_source("shapes:train?colour=red")


@pytest.mark.parametrize("spec,sentence", [
    ("{0}/picturs", r"did you mean '{0}/pictures'\?"),
    ("{0}/picturs/ant", r"did you mean '{0}/pictures'\?"),
    ("emojis:train", r"did you mean 'emoji:train'\?"),
    ("emoji:tain", r"no split 'tain'; did you mean 'train'\?"),
    ("emoji", r"choose one, as in 'emoji#train'"),
    ("{0}/pictures#test", r"has no split 'test'; it has \['train'\]"),
    ("{0}/pictures/ant/0000.png", r"give its folder, '{0}/pictures/ant'"),
    ("{0}/none-{{000..001}}.tar", r"there is no file '{0}/none-000.tar'"),
    ("{0}/empty", r"holds no image"),
    ("wds:{0}/pictures", r"holds no .tar"),
    ("#train", r"is not understood"),
])
def test_mistakes_get_one_sentence(folder, tmp_path, spec, sentence):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=sentence.format(re.escape(str(tmp_path)))) as caught:
        open_source(spec.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_fingerprints_follow_the_data(folder):
    before = open_source(str(folder)).info.fingerprint
    assert open_source(str(folder)).info.fingerprint == before
    (folder / "ant" / "0000.png").write_bytes(png(99) + b"x")
    assert open_source(str(folder)).info.fingerprint != before


@pytest.mark.parametrize("size,count", [(10, 3), (1000, 37), (7, 6), (5, 1)])
def test_held_out_and_complement_partition_evenly(size, count):
    held = held_out(size, count)
    rest = Complement(size, held)
    assert sorted([*held, *(rest[i] for i in range(len(rest)))]) == list(range(size))
    edges = np.arange(count + 1) * size // count
    assert ((held >= edges[:-1]) & (held < edges[1:])).all()


def test_opening_data_needs_neither_tensorflow_nor_torch(tars):
    code = (f"import sys; from vimlab.data.sources import open_source; open_source({str(tars)!r})[0]\n"
            "print(sorted({'tensorflow', 'torch', 'tensorflow_datasets', 'pyarrow'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
