"""Importing keeps every record, in the same bytes whatever happens on the way; check and preview tell what is there."""

import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import msgpack
import numpy as np
import pytest
from PIL import Image
from small_sets import CLASSES, COUNT, Memory, picture, png

from vimlab.data import inspect
from vimlab.data.base import DataError
from vimlab.data.commands import main
from vimlab.data.images import decode
from vimlab.data.importer import import_dataset, write_dataset
from vimlab.data.sources import open_source
from vimlab.data.transforms import Resize, Tokenizer


def test_manifest_and_records(folder, tmp_path):
    manifest = import_dataset(str(folder), tmp_path / "out", shard_records=5, quiet=True)
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest
    entry = manifest["splits"]["train"]
    assert manifest["class_names"] == list(CLASSES) and entry["labels"] == {"0": 4, "1": 4, "2": 4}
    assert manifest["caption_field"] == "caption"
    assert entry["count"] == COUNT and [s["count"] for s in entry["shards"]] == [5, 5, 2] and entry["captions"] == COUNT
    before, after = open_source(str(folder)), open_source(str(tmp_path / "out"))
    assert all(before[i] == after[i] for i in range(COUNT))  # encoded bytes kept as they are
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".array_record"] * 3 + [".json"]


def test_the_stored_form_is_as_documented(folder, tmp_path):
    """Read with array_record and msgpack alone."""
    from array_record.python.array_record_module import ArrayRecordReader

    import_dataset(str(folder), tmp_path / "out", quiet=True)
    reader = ArrayRecordReader(str(tmp_path / "out/train-00000-of-00001.array_record"))
    record = msgpack.unpackb(reader.read([0])[0])
    assert record == {"key": "ant/0000.png", "label": 0, "caption": "caption 0", "image": png(0)}
    assert "group_size:1," in reader.writer_options_string()
    reader.close()


def test_every_format_imports_to_the_same_pictures(folder, tars, parquet, tfds_folder, tmp_path):
    for name, spec, count in (("tars", tars, COUNT), ("parquet", parquet, COUNT), ("tfds", tfds_folder, 8)):
        manifest = import_dataset(str(spec), tmp_path / "out" / name, quiet=True)
        assert manifest["class_names"] == list(CLASSES) and manifest["splits"]["train"]["count"] == count
        source = open_source(f"{tmp_path / 'out' / name}#train")
        for i in range(count):
            number = int(re.search(r"\d{4}", source[i]["key"])[0])  # TFDS keeps an order of its own
            np.testing.assert_array_equal(decode(source[i]["image"]), picture(number))
            assert source[i]["label"] == number % 3 and source[i]["caption"] == f"caption {number}"
    assert manifest["splits"]["test"]["count"] == 4


def test_size_resizes_the_shorter_side_and_never_enlarges(folder, tmp_path):
    import_dataset(str(folder), tmp_path / "small", size=10, quiet=True)
    want = picture(0).reshape(10, 2, 12, 2, 3).mean((1, 3))
    assert np.abs(decode(open_source(str(tmp_path / "small"))[0]["image"]) - want).max() <= 0.5
    import_dataset(str(folder), tmp_path / "same", size=50, quiet=True)
    np.testing.assert_array_equal(decode(open_source(str(tmp_path / "same"))[0]["image"]), picture(0))
    import_dataset(str(folder), tmp_path / "jpeg", size=10, form="jpeg", quiet=True)
    assert open_source(str(tmp_path / "jpeg"))[0]["image"].startswith(b"\xff\xd8")
    shapes = "shapes:test?size=32&count=6"
    import_dataset(shapes, tmp_path / "shapes", quiet=True)
    np.testing.assert_array_equal(decode(open_source(str(tmp_path / "shapes"))[5]["image"]), open_source(shapes)[5]["image"])


SLOW_IMPORT = """
import sys, time
from vimlab.data import importer
from vimlab.data.sources import open_source
class Slow:
    def __init__(self): self.source = open_source("shapes:train?size=16&count=60"); self.info = self.source.info
    def __len__(self): return 60
    def __getitem__(self, i): time.sleep(float(sys.argv[2])); return self.source[i]
importer.write_dataset({"train": Slow()}, sys.argv[1], origin="x", shard_records=10, threads=1, quiet=True)
"""


def test_a_killed_import_goes_on_and_ends_in_the_same_bytes(tmp_path):
    """Really killed (SIGKILL) in the middle of a shard; finished shards are kept, and the result equals a straight run's."""
    partial = tmp_path / "out.partial"
    first = subprocess.Popen([sys.executable, "-c", SLOW_IMPORT, str(tmp_path / "out"), "0.03"])
    deadline = time.monotonic() + 60
    while len(list(partial.glob("*.done"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    kept = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.array_record") if p.with_suffix(".done").exists()}
    assert 2 <= len(kept) < 6 and not (tmp_path / "out").exists()
    subprocess.run([sys.executable, "-c", SLOW_IMPORT, str(tmp_path / "out"), "0"], check=True)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == made for name, made in kept.items())
    subprocess.run([sys.executable, "-c", SLOW_IMPORT, str(tmp_path / "straight"), "0"], check=True)
    files = sorted(p.name for p in (tmp_path / "straight").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "out").iterdir())
    for name in files:
        a, b = ((tmp_path / side / name).read_bytes() for side in ("out", "straight"))
        assert a == b.replace(b'"straight"', b'"out"')


def test_an_import_does_not_touch_what_is_there(folder, tmp_path):
    import_dataset(str(folder), tmp_path / "out", quiet=True)
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial/letter.txt").touch()
    with pytest.raises(DataError, match="mine.partial' holds something else than the beginning of this import"):
        import_dataset(str(folder), tmp_path / "mine", quiet=True)
    with pytest.raises(DataError, match="exists already"):
        import_dataset(str(folder), tmp_path / "out", quiet=True)
    shutil.move(tmp_path / "out", tmp_path / "other")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/request.json").write_text('{"origin": "something else"}')
    with pytest.raises(DataError, match=r"beginning of another import \(origin 'something else', not '.*pictures'\); remove it"):
        import_dataset(str(folder), tmp_path / "out", quiet=True)


def test_bad_images_are_left_out_and_listed_unless_too_many(folder, tmp_path):
    (folder / "bee" / "0004.png").write_bytes(png(4)[:50])
    manifest = import_dataset(str(folder), tmp_path / "out", max_bad=0.1, quiet=True)
    assert manifest["splits"]["train"]["bad"] == ["bee/0004.png"] and len(open_source(str(tmp_path / "out"))) == COUNT - 1
    with pytest.raises(DataError, match=r"1 of 12 images of 'pictures' cannot be .* more than 1.0%, among them 'bee/0004.png'"):
        import_dataset(str(folder), tmp_path / "again", quiet=True)


def test_splits_must_share_their_classes(tmp_path):
    records = [{"key": "a", "image": png(0), "label": 0}]
    splits = {"train": Memory(records, class_names=("x",)), "val": Memory(records, class_names=("y",))}
    with pytest.raises(DataError, match="different classes"):
        write_dataset(splits, tmp_path / "out", origin="memory", quiet=True)


def test_check_counts_what_is_there(folder, capsys):
    (folder / "bee" / "0004.png").write_bytes(png(4)[:50])
    (folder / "cat" / "0005.png").write_bytes(png(2))
    (folder / "cat" / "0008.txt").write_text(" \n")
    report = inspect.check(str(folder))["train"]
    assert report["records"] == 12 and list(report["bad"]) == ["bee/0004.png"] and report["duplicates"] == 1
    assert report["classes"] == {"ant": 4, "bee": 3, "cat": 4} and report["captions"] == 10 and report["empty_captions"] == 1
    assert report["height"] == [20, 20, 20] and report["width"] == [24, 24, 24] and report["words"] == pytest.approx(20 / 11)
    assert main(["check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "bee/0004.png" in out and "least 'bee' 3, most 'ant' 4" in out


def test_check_finds_a_damaged_shard(folder, tmp_path, capsys):
    import_dataset(str(folder), tmp_path / "out", shard_records=6, quiet=True)
    assert main(["check", str(tmp_path / "out")]) == 0
    shard = tmp_path / "out/train-00001-of-00002.array_record"
    data = bytearray(shard.read_bytes())
    at = data.index(b"caption 1") + 8  # one character of a caption: the image still decodes
    data[at] = ord("8")
    shard.write_bytes(data)
    assert main(["check", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert shard.name in out and "train-00000-of-00002" not in out


def test_preview_shows_the_crops_with_their_names(folder, tmp_path):
    """The first cell of a 16-pixel preview is the first record's own crop, enlarged ten times."""
    options = ["--size", "16", "--crop", "resize", "--count", "12", "--columns", "4"]
    assert main(["preview", str(folder), str(tmp_path / "a/p.png"), *options]) == 0
    sheet = np.asarray(Image.open(tmp_path / "a/p.png"))
    cell = sheet[44 : 44 + 160, 12 : 12 + 160]
    np.testing.assert_array_equal(cell[5::10, 5::10], Resize()(picture(0), 16))
    assert sheet.shape[1] == 12 + 4 * 172 and (sheet[206:224, 12:172] < 128).any()  # dark letters below
    inspect.preview(str(folder), tmp_path / "b.png", crop=Tokenizer(), image_size=16)
    assert Image.open(tmp_path / "b.png").width > 160


def test_preview_marks_what_cannot_be_decoded(folder, tmp_path):
    (folder / "ant" / "0000.png").write_bytes(b"no")
    inspect.preview(str(folder), tmp_path / "p.png", crop=Resize(), image_size=16, count=2)
    assert tuple(np.asarray(Image.open(tmp_path / "p.png"))[80, 50]) == (230, 200, 200)


def test_command_import(folder, tmp_path, capsys):
    assert main(["import", str(folder), str(tmp_path / "out"), "--size", "12", "--shard-records", "7"]) == 0
    out = capsys.readouterr().out
    assert "train: 12 records in 2 shards" in out and f"{tmp_path}/out#train" in out and "3 classes and captions" in out
    with pytest.raises(SystemExit):
        main(["import", str(folder), str(tmp_path / "x"), "--size", "0"])


def test_embedded_set_is_whole():
    """Its manifest's hashes hold, and so does the attribution that its licences ask for."""
    report = {split: (r["records"], r["captions"], len(r["bad"])) for split, r in inspect.check("emoji").items()}
    assert report == {"train": (1434, 1434, 0), "test": (200, 200, 0)}
    root = pathlib.Path(inspect.__file__).parent / "embedded/emoji"
    assert "Apache License" in (root / "ATTRIBUTION.md").read_text() and sum(p.stat().st_size for p in root.iterdir()) < 4e6
    assert inspect._damaged(root, "train") == inspect._damaged(root, "test") == []


def test_progress_names_the_time_left(monkeypatch):
    from vimlab.data import shards

    clock = iter([0.0, 11.0, 12.0, 13.0])
    monkeypatch.setattr(shards.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    progress = shards.Progress(100, quiet=False)
    progress.skip(40)
    progress.add()
    assert "41 of 100 images, 0/s, 10:49 left" in out.getvalue()  # 59 left at 1 in 11 s


def test_nothing_is_left_beside_the_result(folder, tmp_path):
    before = set(os.listdir(tmp_path))
    import_dataset(str(folder), tmp_path / "out", quiet=True)
    assert set(os.listdir(tmp_path)) - before == {"out"}
