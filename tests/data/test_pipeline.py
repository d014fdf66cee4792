"""A batch is a function of (seed, step) alone: not of processes, threads or restarts. Bad images are counted, not fatal."""

import multiprocessing
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from absl import logging
from small_sets import Memory, plain, png

from vimlab import config
from vimlab.data.base import DataError
from vimlab.data.examples import view_rng
from vimlab.data.images import decode
from vimlab.data.pipeline import Center, DataConfig, EvalPipeline, Resize, Tokenizer, TrainPipeline, open_train_eval
from vimlab.data.prefetch import prefetch_to_mesh
from vimlab.data.text import Bytes


def make(source=None, **changes):
    arguments = {"image_size": 8, "crop": Tokenizer(), "batch_size": 8, "seed": 3} | changes
    return TrainPipeline(plain(50) if source is None else source, **arguments)


def random_pictures(count=30):
    return Memory([{"key": str(i), "image": png(i), "label": i, "caption": f"caption {i}"} for i in range(count)])


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def number(batch):
    """Which records the pictures of `plain` show."""
    return batch["image"][:, 0, 0, 0].astype(int)


def test_shapes_and_types():
    batch = make(random_pictures()).batch(0)
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "image": ((8, 8, 8, 3), "uint8"), "label": ((8,), "int32"), "index": ((8,), "int64")}
    np.testing.assert_array_equal(batch["label"], batch["index"])
    no_labels = Memory([{"key": "a", "image": png(0)}])
    assert (make(no_labels).batch(0)["label"] == -1).all()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_hold_stretches_of_one_batch(count):
    source = random_pictures()
    parts = [make(source, rows=range(p * 8 // count, (p + 1) * 8 // count)) for p in range(count)]
    for step in (0, 5, 31):
        batches = [part.batch(step) for part in parts]
        assert_equal(make(source).batch(step), {k: np.concatenate([b[k] for b in batches]) for k in batches[0]})


def test_threads_and_restarts_change_nothing():
    source = random_pictures()
    straight = make(source, threads=1).iterate(0)
    batches = [next(straight) for _ in range(9)]
    resumed = make(source, threads=7, prefetch=3).iterate(4)
    for step in range(4, 9):
        again = next(resumed)
        assert_equal(again, batches[step])
        assert_equal(again, make(source).batch(step))
    straight.close()
    resumed.close()


def test_every_epoch_holds_each_record_once_in_another_order():
    pipeline = make(plain(48), crop=Resize())
    epochs = [np.concatenate([number(pipeline.batch(s)) for s in range(6 * e, 6 * e + 6)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(48))
    assert len({tuple(e) for e in epochs}) == 3 and list(epochs[0]) != sorted(epochs[0])


def test_epochs_join_within_a_batch():
    """50 records, batch 8: whatever the step, each run of 50 examples from a multiple of 50 is one epoch."""
    pipeline = make(plain(50), crop=Resize())
    stream = np.concatenate([number(pipeline.batch(s)) for s in range(25)])
    assert all(sorted(stream[50 * e : 50 * e + 50]) == list(range(50)) for e in range(4))


def test_seed_changes_order_and_crops_and_crops_change_between_epochs():
    one = Memory([{"key": "a", "image": png(0)}])
    pictures = make(one, batch_size=40).batch(0)["image"]
    assert len({p.tobytes() for p in pictures}) > 10
    assert (number(make(plain(50), crop=Resize()).batch(0)) != number(make(plain(50), crop=Resize(), seed=4).batch(0))).any()
    a, b = (make(one, seed=seed, batch_size=40).batch(0)["image"] for seed in (1, 2))
    assert (a != b).any()


def test_a_view_is_a_function_of_seed_record_and_number():
    draw = lambda *which: view_rng(*which).integers(0, 1 << 60)
    drawn = {which: draw(*which) for which in np.ndindex(3, 4, 5)}
    assert len(set(drawn.values())) == 60 and all(draw(*which) == n for which, n in reversed(drawn.items()))
    assert draw(3, 5, 1) == 699641719896823704  # A cache outlives the process that made it, and the version.


@pytest.mark.parametrize("views", [1, 3])
def test_views_come_in_turn_and_return(views):
    """Example g + K·size shows what g showed, if in another place of its epoch; between, each view is another crop."""
    source, seed = random_pictures(24), 5
    pipeline = make(source, views=views, seed=seed, batch_size=24)
    epochs = [pipeline.batch(e) for e in range(2 * views)]
    shown = [dict(zip(b["index"].tolist(), b["image"], strict=True)) for b in epochs]
    for epoch in range(views):
        assert list(shown[epoch]) != list(shown[epoch + views])
        for i in range(24):
            want = Tokenizer()(decode(source[i]["image"]), 8, view_rng(seed, i, epoch))
            np.testing.assert_array_equal(shown[epoch][i], want)
            np.testing.assert_array_equal(shown[epoch + views][i], want)
    assert len({shown[e][7].tobytes() for e in range(views)}) == views
    fresh = make(source, seed=seed, batch_size=24)
    assert [fresh.batch(e)["index"].tolist() for e in range(3)] == [pipeline.batch(e)["index"].tolist() for e in range(3)]


def test_views_are_those_of_the_record_that_stands_in():
    whole, holed = (random_pictures(24) for _ in range(2))
    holed.records[7]["image"] = png(7)[:30]
    a, b = (make(source, views=2, batch_size=24, max_bad=1.0, text=Bytes(length=16).open()).batch(0) for source in (whole, holed))
    place = a["index"].tolist().index(7), a["index"].tolist().index(8)
    assert b["index"][place[0]] == 8
    for name in ("image", "text", "label"):
        np.testing.assert_array_equal(b[name][place[0]], a[name][place[1]])


def test_text_is_that_of_the_record():
    text, source = Bytes(length=16).open(), random_pictures()
    for arguments in ({}, {"views": 2}):
        batch = make(source, text=text, **arguments).batch(4)
        assert batch["text"].shape == (8, 16) and batch["text"].dtype == np.int32
        assert [text.decode(t) for t in batch["text"]] == [f"caption {i}" for i in batch["index"]]
        assert_equal({k: v for k, v in batch.items() if k != "text"}, make(source, **arguments).batch(4))
    del source.records[5]["caption"]
    source.records[3]["image"] = png(3)[:30]
    batches = list(EvalPipeline(source, image_size=8, crop=Center(), batch_size=8, max_bad=1.0, text=text))
    shown = [text.decode(t) for batch in batches for t in batch["text"]]
    assert shown == ["" if i in (3, 5) else f"caption {i}" for i in range(30)] + [""] * 2


def test_text_needs_captions(folder):
    open_train_eval(DataConfig(train=str(folder), holdout=3, text=Bytes()))
    for caption in folder.rglob("*.txt"):
        caption.unlink()
    open_train_eval(DataConfig(train=str(folder), holdout=3))
    with pytest.raises(DataError, match="config.data.text asks for captions, but 'pictures without 3 held out' has none"):
        open_train_eval(DataConfig(train=str(folder), holdout=3, text=Bytes()))
    with pytest.raises(DataError, match="asks for captions, but 'pictures' has none"):
        open_train_eval(DataConfig(train="emoji#train", eval=str(folder), text=Bytes()))


def test_records_are_those_of_the_batch():
    source = random_pictures()
    for arguments in ({}, {"rows": [1, 2, 7]}):
        pipeline = make(source, **arguments)
        records = pipeline.records(5)
        assert [r["caption"] for r in records] == [f"caption {i}" for i in pipeline.batch(5)["index"]]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("size", [16, 19, 5])
def test_an_evaluation_pass_holds_each_record_once_in_order(processes, size):
    arguments = {"image_size": 8, "crop": Center(), "batch_size": 8}
    parts = [range(p * 8 // processes, (p + 1) * 8 // processes) for p in range(processes)]
    passes = [list(EvalPipeline(plain(size), rows=rows, **arguments)) for rows in parts]
    assert {len(p) for p in passes} == {-(-size // 8)}
    rows = [{k: np.concatenate([p[b][k] for p in passes]) for k in passes[0][b]} for b in range(len(passes[0]))]
    shown = np.concatenate([number(b)[b["mask"] == 1] for b in rows])
    np.testing.assert_array_equal(shown, np.arange(size))
    np.testing.assert_array_equal(np.concatenate([b["index"][b["mask"] == 1] for b in rows]), np.arange(size))
    assert all(b["image"].shape == (8, 8, 8, 3) and b["mask"].dtype == np.float32 for b in rows)


def damaged(count, bad):
    source = plain(count)
    for i in bad:
        source.records[i]["image"] = png(i)[:30]
    return source


def test_a_bad_image_is_named_once_and_replaced_by_the_next_good_one(monkeypatch):
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    source = damaged(50, (7, 8, 49))
    whole, bad = make(plain(50), crop=Resize()), make(source, crop=Resize(), max_bad=0.5)
    after = {7: 9, 8: 9, 49: 0}
    for step in range(20):
        batch = bad.batch(step)
        np.testing.assert_array_equal(number(batch), [after.get(i, i) for i in number(whole.batch(step))])
        np.testing.assert_array_equal(batch["index"], number(batch))
    assert bad.bad["bad"] >= 9 and bad.bad["seen"] == 160 + bad.bad["bad"]
    assert sorted(said) == sorted(set(said)) and len(said) == 3 and any("'k49'" in s for s in said)


def test_a_bad_image_is_masked_in_evaluation():
    batches = list(EvalPipeline(damaged(16, (3,)), image_size=8, crop=Center(), batch_size=8, max_bad=1.0))
    np.testing.assert_array_equal(np.concatenate([b["mask"] for b in batches]), [1, 1, 1, 0] + [1] * 12)


def test_too_many_bad_images_stop_the_run():
    pipeline = make(damaged(100, range(0, 100, 5)), max_bad=0.05)
    with pytest.raises(DataError, match=r"images of 'memory' cannot be decoded \(data.max_bad is 0.05\), among them 'k\d+'"):
        for step in range(50):
            pipeline.batch(step)
    some = make(damaged(100, (1, 50)), max_bad=0.05)
    for step in range(50):
        some.batch(step)
    with pytest.raises(DataError, match="none of the 10 images"):
        make(damaged(10, range(10)), max_bad=1.0).batch(0)


def test_holdout_is_disjoint_and_classes_must_agree(tmp_path, folder, tars):
    train, evaluation = open_train_eval(DataConfig(train=str(folder), holdout=3))
    keys = [{s[i]["key"] for i in range(len(s))} for s in (train, evaluation)]
    assert (len(keys[0]), len(keys[1])) == (9, 3) and not keys[0] & keys[1]
    assert sorted(evaluation[i]["label"] for i in range(3)) == [0, 1, 2]  # one of each class of the sorted folder
    assert open_train_eval(DataConfig(train=str(folder)))[1] is None
    assert len(open_train_eval(DataConfig(train=str(folder), eval=f"{tars}#[:5]"))[1]) == 5
    (tars / "classes.txt").write_text("ant\ncat\nbee\n")
    with pytest.raises(DataError, match="differ"):
        open_train_eval(DataConfig(train=str(folder), eval=str(tars)))
    with pytest.raises(DataError, match="cannot hold out 12 of 12"):
        open_train_eval(DataConfig(train=str(folder), holdout=12))


def test_config_section():
    values = {"train": "emoji:train", "eval": "emoji:test", "crop": {"name": "resize", "flip": True},
              "eval_crop": {"name": "resize"}}
    resolved = config.resolve(DataConfig, values)
    assert resolved.crop == Resize(flip=True) and resolved.eval_crop == Resize() and resolved.threads == 8
    assert config.resolve(DataConfig, config.to_dict(resolved)) == resolved
    resolved = config.resolve(DataConfig, {"train": "a", "text": {"name": "bytes", "length": 9}, "views": 2, "tokens": "b"})
    assert resolved.text == Bytes(length=9) and config.resolve(DataConfig, config.to_dict(resolved)) == resolved
    with pytest.raises(DataError, match="set only one"):
        DataConfig(train="a", eval="b", holdout=3)
    with pytest.raises(DataError, match="data.views is 0"):
        DataConfig(train="a", views=0)


def sharding(devices):
    return jax.sharding.NamedSharding(jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices]), jax.P("data"))


def test_prefetch_gives_the_same_batches_on_the_mesh():
    pipeline = make(random_pictures())
    with prefetch_to_mesh(pipeline.iterate(2), sharding(4)) as batches:
        for step in range(2, 6):
            got, want = next(batches), pipeline.batch(step)
            assert got["image"].sharding.num_devices == 4 and got["index"].dtype == np.int32
            assert_equal({k: np.asarray(v) for k, v in got.items()}, {k: v.astype(got[k].dtype) for k, v in want.items()})
    assert threading.active_count() < 30 and not [t for t in threading.enumerate() if t.name == "vimlab-prefetch"]


def test_prefetch_ends_with_its_iterator_and_passes_errors_on():
    rows = {"image": np.zeros((4, 2), np.uint8)}
    assert len(list(prefetch_to_mesh(iter([rows] * 5), sharding(1)))) == 5

    def failing():
        yield rows
        raise DataError("record 'x' is bad")

    batches = prefetch_to_mesh(failing(), sharding(1))
    next(batches)
    with pytest.raises(DataError, match="record 'x' is bad"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_prefetch_works_ahead_and_counts_only_what_is_waited_for():
    made = []

    def slow():
        for i in range(6):
            time.sleep(0.05)
            made.append(i)
            yield {"image": np.full((2, 2), i, np.uint8)}

    batches = prefetch_to_mesh(slow(), sharding(1), depth=2)
    time.sleep(0.6)
    assert 3 <= len(made) <= 4  # two in the queue, one in hand, at most one more begun
    next(batches)
    assert batches.wait_seconds < 0.04
    for _ in range(5):
        next(batches)
    assert batches.wait_seconds > 0.08
    batches.close()


def test_leaving_everything_open_is_silent_at_exit():
    code = ("import jax, numpy as np\nfrom vimlab.data.sources import open_source\nfrom vimlab.data.pipeline import *\n"
            "from vimlab.data.prefetch import prefetch_to_mesh\n"
            "p = TrainPipeline(open_source('emoji:train'), image_size=32, crop=Resize(), batch_size=64, seed=0)\n"
            "a = p.iterate(); next(a)\n"
            "b = prefetch_to_mesh(p.iterate(), jax.sharding.SingleDeviceSharding(jax.devices()[0])); next(b)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


def test_a_source_crosses_to_another_process(tars):
    from vimlab.data.sources import open_source

    source = open_source(str(tars))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(source.__getitem__, [3]) == [source[3]]
