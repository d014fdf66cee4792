"""Two real processes as one run: trained, killed, stopped and gone on with elsewhere; commands that share work; mistakes told by all."""

import json
import pathlib
import shutil
import signal

import pytest
from processes import Processes

MESH = ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
COMMON = [
    "--config.batch_size=8", "--config.duration=8", "--config.log.every=1", "--config.checkpoint.every=2", "--config.log.tensorboard=false",
    "--config.data.threads=2",
]  # fmt: skip
TOKENIZER = [
    "--config", "configs/vitvq_emoji.py:smoke", *COMMON, "--config.model.image_size=16", "--config.model.quantizer.codes=32", "--config.reseed.every=3",
    *(f"--config.model.{tower}.{key}" for tower in ("encoder", "decoder") for key in ("depth=1", "width=16", "mlp=32")),
    "--config.evals.reconstruction.every=8", "--config.evals.codebook=none",
]  # fmt: skip
GENERATOR = [
    *COMMON, "--config.model.depth=1", "--config.model.width=16", "--config.model.mlp=32", "--config.model.remat=none",
    "--config.data.text.length=8", "--config.evals.likelihood.every=8", "--config.evals.samples=none",
]  # fmt: skip
LOST = (-signal.SIGABRT, 134)


def rows(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_figures(workdir: pathlib.Path, reference: pathlib.Path) -> None:
    """Every figure of every row, losses and statistics of the codebook too, to the rounding of f32 sums in another order."""
    found, wanted = rows(workdir), rows(reference)
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=2e-5), a["step"]


def run(folder: pathlib.Path, *arguments: object, count: int = 1, devices: int = 1, code: int = 0, **options) -> Processes:
    processes = Processes(folder, list(arguments), count=count, devices=devices, **options)
    codes = processes.wait()
    assert set(codes) == {code}, processes.logs
    return processes


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A tokenizer's run on one device, which nothing interrupted; its processes know its records."""
    folder = tmp_path_factory.mktemp("straight")
    return folder / "w", run(folder, "train", *TOKENIZER, "--workdir", folder / "w").records()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The same through `vimlab launch local`, on two processes with four devices each, of which one is killed after step 5."""
    folder = tmp_path_factory.mktemp("killed")
    arguments = ["train", *TOKENIZER, *MESH, "--peer-timeout", "8", "--workdir", folder / "w"]
    return folder / "w", run(folder, *arguments, count=2, devices=4, code=75, plots={1: {"step": 5, "signal": "SIGKILL"}}, launch=True)


def test_a_launcher_ends_the_others_when_one_is_killed(killed):
    workdir, processes = killed
    assert "worker 1 was ended by SIGKILL" in processes.logs
    codes = [worker["code"] for worker in json.loads((workdir / "logs/launch.json").read_text())["workers"]]
    assert codes[1] == -signal.SIGKILL and codes[0] != 0, "the other one was asked to end, or ended by itself before"
    assert (workdir / "checkpoints/2/checksums.json").exists() and not (workdir / "checkpoints/8").exists()


def test_without_a_launcher_the_others_end_by_themselves(tmp_path):
    command = ["train", *TOKENIZER, "--peer-timeout", "8", "--workdir", tmp_path / "w"]
    process = Processes(tmp_path, command, devices=1, plots={1: {"step": 1, "signal": "SIGKILL"}})
    codes = process.wait(120)
    assert codes[1] == -signal.SIGKILL and codes[0] in LOST, process.logs
    assert "another" in process.log(0)


@pytest.mark.parametrize(("devices", "mesh"), [(8, ["--config.mesh.data=4", "--config.mesh.fsdp=2"]), (1, [])])
def test_one_process_goes_on_with_what_two_began(straight, killed, tmp_path, devices, mesh):
    (reference, order), (begun, first) = straight, killed
    shutil.copytree(begun, tmp_path / "w")
    second = run(tmp_path, "train", *TOKENIZER, *mesh, "--workdir", tmp_path / "w", devices=devices)
    assert "resuming" in second.log(0)
    assert_same_figures(tmp_path / "w", reference)
    assert first.records() == {step: order[step] for step in range(6)}
    assert second.records() == {step: order[step] for step in range(min(second.records()), 8)}


@pytest.fixture(scope="module")
def generated(straight, tmp_path_factory):
    """A generator's run through `vimlab launch local` on two processes, the second of which is told to stop after step 3; its continuations; a straight run."""
    folder = tmp_path_factory.mktemp("generated")
    train = ["train", "--config", f"configs/parti_emoji.py:smoke,tokenizer={straight[0]}", *GENERATOR]
    arguments, plots = [*train, "--workdir", folder / "w"], {1: {"step": 3, "signal": "SIGTERM"}}
    stopped = run(folder, *train, "--config.mesh.fsdp=8", *arguments[-2:], count=2, devices=4, code=75, plots=plots, launch=True)
    saved = sorted(int(p.name) for p in (folder / "w/checkpoints").iterdir())
    for name in ("alone", "eight"):
        shutil.copytree(folder / "w", folder / name)
    arguments[-1] = folder / "eight"
    run(folder / "resumed eight", *arguments, "--config.mesh.tensor=2", devices=8)
    arguments[-1] = folder / "alone"
    alone = run(folder / "resumed", *arguments)
    arguments[-1] = folder / "straight"
    return folder, stopped, saved, alone, run(folder / "whole", *arguments)


def test_sigterm_on_one_process_stops_both_at_one_step(generated):
    folder, stopped, saved, alone, straight = generated
    steps = {stopped.log(i).split("stopped by SIGTERM on process 1 at step ")[1].split(";")[0] for i in (0, 1)}
    assert steps == {str(saved[-1])}
    assert f"at step {saved[-1]} of 8" in alone.log(0)
    assert max(stopped.records()) + 1 == saved[-1] == min(alone.records())
    assert stopped.records() | alone.records() == straight.records()
    for name in ("alone", "eight"):
        assert_same_figures(folder / name, folder / "straight")


def test_a_set_tokenized_by_two_processes_is_that_of_one(straight, tmp_path):
    command = ["tokenize", "--config", f"configs/parti_emoji.py:smoke,tokenizer={straight[0]}", "--shard-records", "300", "--batch-size", "32"]
    for count, devices in ((1, 1), (2, 2)):
        run(tmp_path / str(count), *command, "--out", tmp_path / f"tokens{count}", count=count, devices=devices)
    manifests = [json.loads((tmp_path / f"tokens{count}/manifest.json").read_text()) for count in (1, 2)]
    assert len(manifests[0]["shards"]) == 5 and manifests[0] == manifests[1]


def test_two_processes_evaluate_and_draw_what_one_does(straight, generated, tmp_path):
    before = rows(straight[0])[-1]
    process = run(tmp_path / "eval", "eval", "--workdir", straight[0], "--evals", "reconstruction", count=2, devices=2)
    printed = dict(line.split() for line in process.log(0).splitlines() if line.startswith("eval/"))
    assert float(printed["eval/reconstruction/psnr"]) == pytest.approx(before["eval/reconstruction/psnr"], rel=1e-4)
    assert "eval/" not in process.log(1)
    draw = ["sample", "--workdir", generated[0] / "alone", "--prompt", "apple", "--prompt", "cat", "--num", 3, "--quiet"]
    for count, devices in ((1, 1), (2, 2)):
        run(tmp_path / str(count), *draw, "--out", tmp_path / f"out{count}", count=count, devices=devices)
    names = sorted(p.name for p in (tmp_path / "out1").glob("*.png"))
    assert len(names) == 7 and names == sorted(p.name for p in (tmp_path / "out2").glob("*.png"))
    for name in names:
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out2" / name).read_bytes(), name


def test_processes_that_differ_say_in_what(tmp_path):
    command = ["train", *TOKENIZER, "--workdir", tmp_path / "w"]
    process = Processes(tmp_path, [command, [*command, "--config.seed=7"]], devices=1)
    assert process.wait(120) == [2, 2], process.logs
    for i in (0, 1):
        assert "process 1 differs from process 0 in its command: config.seed 7 instead of 0; start all 2" in process.last(i)
    assert not (tmp_path / "w").exists()


def test_what_is_wrong_on_one_process_ends_all_with_its_sentence(tmp_path):
    process = Processes(tmp_path, ["train", *TOKENIZER, "--workdir", tmp_path / "w"], devices=1, plots={1: {"error": "no such disk"}})
    assert process.wait(120) == [2, 2], process.logs
    assert process.last(0) == process.last(1) == "vimlab: error: process 1 of 2: no such disk"


def test_a_process_that_never_comes_is_told_within_the_time_out(tmp_path):
    command = ["sample", "--workdir", tmp_path / "w", "--init-timeout", "3"]
    alone = [Processes(tmp_path / str(i), command, devices=1, absent=(1 - i,)) for i in (0, 1)]
    codes = [process.wait(120) for process in alone]
    assert codes == [[134], [134]], [process.logs for process in alone]
    assert "process 0 of 2 waited 3 s at the coordinator 127.0.0.1:" in alone[0].last(0)
    assert "but not all 2 processes came" in alone[0].last(0)
    assert "process 1 of 2 found no coordinator at 127.0.0.1:" in alone[1].last(1)
