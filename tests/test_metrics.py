"""Averages, the logs and their cutting on resume, speed, and the progress line."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from vimlab import metrics
from vimlab.metrics import Averages, Progress, Speed, Writer, clock


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_averages_weigh_what_they_add():
    averages = Averages()
    averages.add({"loss": (jnp.float32(6.0), jnp.float32(2.0)), "r1": (jnp.float32(0.0), jnp.float32(0.0))})
    averages.add({"loss": (jnp.float32(1.0), jnp.float32(6.0)), "r1": (jnp.float32(0.0), jnp.float32(0.0))})
    assert averages.take() == {"loss": 7 / 8}  # What has no weight has no average.
    assert averages.take() == {}


def test_averages_go_on_from_what_was_saved():
    """A run that saves between two rows must write the row that it would have written."""
    values = np.random.default_rng(0).uniform(size=(7, 2)).astype(np.float32)
    straight, first = Averages(), Averages()
    for s, w in values:
        straight.add({"x": (jnp.float32(s), jnp.float32(w))})
    for s, w in values[:3]:
        first.add({"x": (jnp.float32(s), jnp.float32(w))})
    second = Averages(json.loads(json.dumps(first.sums())))
    for s, w in values[3:]:
        second.add({"x": (jnp.float32(s), jnp.float32(w))})
    assert second.take() == straight.take()
    assert first.sums() == first.sums()  # Looking changes nothing.


def test_rows_are_json_with_seven_digits(tmp_path):
    writer = Writer(tmp_path, tensorboard=False)
    writer.write(3, {"train/loss": 0.123456789, "event": "collapse", "n": 4})
    writer.write(3, {"train/step_ms": 10.0}, performance=True)
    writer.close()
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 3, "train/loss": 0.1234568, "event": "collapse", "n": 4}]
    assert rows(tmp_path / "performance.jsonl") == [{"step": 3, "train/step_ms": 10.0}]
    assert not (tmp_path / "tensorboard").exists()


def test_a_resumed_log_loses_what_will_be_written_again_and_broken_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "x": 1}\n{"step": 10, "x": 2}\n{"step": 15, "x": 3}\n{"step": 20, "x"')
    writer = Writer(tmp_path, resume_step=10, tensorboard=False)
    writer.write(15, {"x": 4})
    writer.close()
    assert rows(path) == [{"step": 5, "x": 1}, {"step": 10, "x": 2}, {"step": 15, "x": 4}]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "performance.jsonl"]


def test_tensorboard_holds_the_numbers(tmp_path):
    writer = Writer(tmp_path)
    writer.write(1, {"train/loss": 0.5, "event": "text stays out"})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"train/loss" in data and b"stays out" not in data


def test_speed_counts_working_time_only(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    speed = Speed(batch_size=8, flops_per_example=1e9)
    for _ in range(5):
        speed.step()
    now[0] += 12.0
    speed.pause(2.0)
    figures = speed.take(waited=3.0)
    assert figures["train/images_per_s"] == pytest.approx(4.0)
    assert figures["train/step_ms"] == pytest.approx(2000.0)
    assert figures["train/data_wait"] == pytest.approx(0.3)
    assert figures["train/tflops"] == pytest.approx(4.0 * 1e9 / 1e12)
    speed.step()
    now[0] += 1.0
    figures = speed.take(waited=3.5)  # The next window starts from nothing.
    assert figures["train/images_per_s"] == pytest.approx(8.0) and figures["train/data_wait"] == pytest.approx(0.5)


def test_utilisation_is_of_all_chips_at_their_dense_peak(monkeypatch):
    class Chip:
        device_kind = "TPU v5 lite"

    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(metrics.jax, "devices", lambda: [Chip()] * 4)
    monkeypatch.setattr(metrics.jax, "device_count", lambda: 4)
    speed = Speed(batch_size=4, flops_per_example=197e12)
    speed.step()
    now[0] = 2.0
    assert speed.take(0.0)["train/mfu"] == pytest.approx(0.5)


def test_progress_says_where_and_how_long(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    progress = Progress(100, 1100)
    now[0] = 50.0
    progress.show(200, {"train/loss": 0.25, "train/psnr": 21.0, "train/codebook_usage": 0.5, "train/images_per_s": 99.6})
    progress.note(200, {"eval/psnr": 22.5})
    captured = capsys.readouterr()
    assert captured.out == ""  # Standard output is for results.
    line, note = captured.err.splitlines()
    assert line == "step 200/1100 (18%)  loss 0.2500  21.00 dB  codes 50%  100 img/s  0:07:30 left"
    assert note == "step 200: psnr 22.5"


@pytest.mark.parametrize("seconds, text", [(0, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (100 * 3600, "100:00:00")])
def test_clock(seconds, text):
    assert clock(seconds) == text
