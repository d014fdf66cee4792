"""One device, eight, two processes of four; an interruption: every evaluator's figures are the same, every drawn picture to the bit.

`every_evaluator.py` runs the real command here; each of the workdirs below is what one way of running it left.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import every_evaluator
import numpy as np
import pytest
import small_clip
from processes import free_port
from quick import flags
from test_train_generator import fresh_tokenizer

from vimlab.evals import trained_features

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = "a red circle\na small blue square\na green cross\n"


def start(*command: object, devices: int, count: int = 1, **asked) -> list[subprocess.Popen]:
    """The command as `count` processes of one run, with `devices` each."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PJRT_NPROC")}
    environment = inherited | {
        "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PJRT_NPROC": "64", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags(),
    }  # fmt: skip
    cluster = [f"--coordinator=127.0.0.1:{free_port()}", f"--num-processes={count}", "--distributed=on"] if count > 1 else []
    started = []
    for process in range(count):
        own = [*map(str, command), *cluster, *([f"--process-id={process}"] if cluster else [])]
        program = [sys.executable, str(ROOT / "tests/evals/every_evaluator.py"), json.dumps({"command": own, **asked})]
        started.append(subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return started


def finish(processes: list[subprocess.Popen], code: int = 0) -> str:
    """What they said; none outlives this."""
    try:
        said = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * len(processes), "\n".join(said)
    return "\n".join(said)


def evaluate(workdir: pathlib.Path, *, code: int = 0, **how) -> str:
    """`vimlab eval` of all evaluators, which writes its files into the workdir. Returns what was said."""
    files = [f"--config.evals.fid.write_reference={workdir}/reference.npz", f"--config.evals.fid.pictures={workdir}/drawn.npz"]
    names = ["--evals", ",".join(every_evaluator.NAMES)]
    return finish(start("eval", "--workdir", workdir, *names, *files, out=f"{workdir}.json", **how), code)


def draw_prompts(workdir: pathlib.Path, **how) -> str:
    """`vimlab eval prompts`. Returns what was said."""
    flags = ["--file", workdir.parent / "prompts.txt", "--num", 3, "--guidance", 2, "--layout", "flat", "--out", workdir / "prompts"]
    return finish(start("eval", "prompts", "--workdir", workdir, *flags, out=f"{workdir}_prompts.json", **how))


@pytest.fixture(scope="module")
def ways(tmp_path_factory):
    """Workdirs, what was seen and what was said by the way of running."""
    root = tmp_path_factory.mktemp("ways")
    small_clip.write(root)
    trained_features.write(root / "classifier", trained_features.fresh(10, 0), {})
    every_evaluator.write_workdir(root / "trained", fresh_tokenizer(root / "tokenizer"), root, root / "classifier")
    folders = {name: shutil.copytree(root / "trained", root / name) for name in ("one device", "eight devices", "two processes")}
    (root / "prompts.txt").write_text(PROMPTS)
    evaluate(folders["two processes"], devices=1, stop=6, code=130)
    left = sorted(path.name for path in folders["two processes"].glob("evals/kept/*/*/0*.npz"))
    assert len(left) == 6 and not pathlib.Path(f"{folders['two processes']}.json").exists()
    hows = {"one device": dict(devices=1), "eight devices": dict(devices=8), "two processes": dict(devices=4, count=2)}
    said = {name: evaluate(folders[name], **how) for name, how in hows.items()}
    for name in ("one device", "two processes"):
        said[f"{name}_prompts"] = draw_prompts(folders[name], **hows[name])
    seen = lambda name: json.loads((root / f"{name}.json").read_text())
    return folders, {name: seen(name) for name in said}, said


def figures(workdir: pathlib.Path) -> dict[str, float | None]:
    """All that the results in a workdir hold."""
    found = {}
    for path in sorted((workdir / "evals").glob("*.json")):
        found |= {f"{path.stem}/{key}": value for key, value in json.loads(path.read_text())["metrics"].items()}
    return found


def test_figures_are_the_same(ways):
    folders, seen, _ = ways
    expected = figures(folders["one device"])
    assert {key.rpartition("_00000007/")[0] for key in expected} == {
        "fid", "inception_score", "rfid", "reconstruction", "codebook", "token_language", "likelihood", "samples", "alignment", "clip_score", "probe",
    }  # fmt: skip
    assert 0 < expected["rfid_00000007/rprecision_trained_conv_v1"] < 1
    for name, devices, processes in (("eight devices", 8, 1), ("two processes", 8, 2)):
        assert (seen[name]["devices"], seen[name]["processes"]) == (devices, processes)
        found = figures(folders[name])
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == (value if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), (name, key)


def test_each_device_draws_the_rows_of_the_protocol_and_every_picture_is_the_same_to_the_bit(ways):
    """Tokens, log-probabilities and pixels, by the condition, the seed and the guidance of a picture."""
    _, seen, _ = ways
    one = seen["one device"]
    assert len(one["draws"]) >= 21 + 9
    for name in ("one device", "eight devices", "two processes"):
        assert seen[name]["rows"] == [every_evaluator.ROWS * seen[name]["devices"]], name
    assert seen["eight devices"]["draws"] == one["draws"]
    some = seen["two processes"]["draws"]  # Not those that the interrupted run had drawn.
    assert some and some.items() <= one["draws"].items()


def test_files_are_the_same_and_written_once(ways):
    folders, *_ = ways
    listed = lambda folder: {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "prompts" not in p.parts}
    names = listed(folders["one device"])
    assert {"drawn.npz", "reference.npz", "evals/fid_00000007.json", "pictures/neighbours_00000007.png"} <= names
    for way, folder in folders.items():
        assert listed(folder) == names, way
        for file in ("drawn.npz", "reference.npz"):
            with np.load(folder / file) as a, np.load(folders["one device"] / file) as b:
                for name in set(a.files) - {"description"}:
                    np.testing.assert_array_equal(a[name], b[name], err_msg=f"{way} {file} {name}")
        record = json.loads((folder / "evals/fid_00000007.json").read_text())
        assert record["protocol"]["count"] == 21 and record["protocol"]["reference"]["count"] == 22
        assert record["protocol"]["rows_per_device"] == every_evaluator.ROWS


def test_two_processes_go_on_where_one_stopped(ways):
    """The first four files are of the evaluation set's 22 pictures, six in each; two more of drawings were there."""
    assert "21 images in" in ways[2]["two processes"] and "(12 were there already)" in ways[2]["two processes"]


def test_a_file_of_prompts_drawn_by_two_processes(ways):
    folders, seen, said = ways
    one, two = (folders[name] / "prompts" for name in ("one device", "two processes"))
    pictures = sorted(path.name for path in one.glob("*.png"))
    assert pictures == sorted(path.name for path in two.glob("*.png")) and len(pictures) == 9
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in pictures)
    assert len({(one / name).read_bytes() for name in pictures}) == 9
    assert seen["one device_prompts"]["draws"] == seen["two processes_prompts"]["draws"] and seen["two processes_prompts"]["rows"] == [64]
    assert said["two processes_prompts"].count("9 pictures of 3 prompts") == 1, "the first process alone tells"
