"""One device, eight, two processes of four; other batches; an interruption: every evaluator's figures are the same.

`every_evaluator.py` is the program that runs here; each of the workdirs below is what one way of running it left.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import small_clip
from test_train_generator import fresh_tokenizer

from vimlab.evals import trained_features

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(devices: int, **asked) -> subprocess.Popen:
    """The program, as a process with devices of its own."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PJRT_NPROC")}
    environment = inherited | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PJRT_NPROC": "64", "PYTHONPATH": str(ROOT),
        # Compiling is what takes the time here.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }  # fmt: skip
    program = [sys.executable, str(ROOT / "tests/evals/every_evaluator.py"), json.dumps({k: str(v) if isinstance(v, pathlib.Path) else v for k, v in asked.items()})]
    return subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes: subprocess.Popen) -> str:
    """What they said; none outlives this."""
    try:
        said = [process.communicate(timeout=900)[0] + f"\nexit code {process.returncode}" for process in processes]
    finally:
        for process in processes:
            process.kill()
    return "\n".join(said)


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """Workdirs and figures by the way of running."""
    root = tmp_path_factory.mktemp("ways")
    given = {"tokenizer": fresh_tokenizer(root / "tokenizer"), "clip": root, "classifier": root / "classifier"}
    small_clip.write(root)
    trained_features.write(root / "classifier", trained_features.fresh(10, 0), {})
    place = lambda name: {"workdir": root / name, "out": root / f"{name}.json"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(root / "compiled"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
        said = {"stopped": finish(start(1, **given, **place("two processes"), batch=5, stop=6))}
        left = sorted(path.name for path in (root / "two processes/evals/kept").glob("*/*/0*.npz"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        pair = [start(4, **given, **place("two processes"), batch=16, address=address, processes=2, process=i) for i in range(2)]
        said["two processes"] = finish(*pair)
        said["one device"] = finish(start(1, **given, **place("one device"), batch=5))
        said["eight devices"] = finish(start(8, **given, **place("eight devices"), batch=8))
    assert "KeyboardInterrupt" in said["stopped"] and len(left) == 6, said["stopped"]
    names = ("one device", "eight devices", "two processes")
    for name in names:
        assert (root / f"{name}.json").exists(), said[name]
    return {name: (root / name, json.loads((root / f"{name}.json").read_text())) for name in names}, said


def test_figures_are_the_same(ways):
    found, _ = ways
    expected = found["one device"][1]["figures"]
    assert {name.split("/")[1] for name in expected} == {
        "fid", "inception_score", "rfid", "reconstruction", "codebook", "token_language", "likelihood", "samples", "alignment", "clip_score", "probe",
    }  # fmt: skip
    assert 0 < expected["eval/rfid/rprecision_trained_conv_v1"] < 1
    for name, devices, processes in (("eight devices", 8, 1), ("two processes", 8, 2)):
        record = found[name][1]
        assert (record["devices"], record["processes"]) == (devices, processes) and record["figures"].keys() == expected.keys()
        for key, value in expected.items():
            assert record["figures"][key] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), (name, key)


def test_files_are_the_same_and_written_once(ways):
    found, _ = ways
    names = {str(path.relative_to(found["one device"][0])) for path in found["one device"][0].rglob("*") if path.is_file()}
    assert {"drawn.npz", "reference.npz", "evals/fid_00000007.json", "pictures/neighbours_00000007.png"} <= names
    for way, (folder, _) in found.items():
        assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == names, way
        for file in ("drawn.npz", "reference.npz"):
            with np.load(folder / file) as a, np.load(found["one device"][0] / file) as b:
                for name in set(a.files) - {"description"}:
                    np.testing.assert_array_equal(a[name], b[name], err_msg=f"{way} {file} {name}")
        record = json.loads((folder / "evals/fid_00000007.json").read_text())
        assert record["protocol"]["count"] == 21 and record["protocol"]["reference"]["count"] == 22


def test_two_processes_go_on_where_one_stopped(ways):
    """The first four files are of the evaluation set's 22 pictures, six in each; two more of drawings were there."""
    assert "21 images in" in ways[1]["two processes"] and "(12 were there already)" in ways[1]["two processes"]
