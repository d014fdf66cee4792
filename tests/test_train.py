"""The real command, as subprocesses: training, kill -9 and resume, signals, refusals, evaluation."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from quick import flags

from vimlab import cli
from vimlab.export import export

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A little of everything: both networks, R1, averaging, several saves, evaluations and log rows.
GAN = [
    "--config.model.image_size=16", "--config.model.encoder.depth=1", "--config.model.decoder.depth=1",
    "--config.loss.adversarial.base_channels=64", "--config.loss.adversarial.max_channels=8",
    "--config.loss.adversarial.r1_every=4", "--config.ema=0.9",
    "--config.duration=40", "--config.evals.reconstruction.every=20", "--config.evals.codebook.every=20",
]  # fmt: skip


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "vimlab", *map(str, args)]


def environment(devices: int = 1) -> dict[str, str]:
    xla = f"--xla_force_host_platform_device_count={devices}"
    if devices > 1:  # Compiling for several is most of their time.
        xla += " " + flags()
    inherited = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    return inherited | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla} | ({"PJRT_NPROC": "64"} if devices > 1 else {})


def call(*args: object, devices: int = 1, timeout: int = 300) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args), cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=timeout)


def train(workdir: pathlib.Path, *flags: str, devices: int = 1) -> subprocess.CompletedProcess:
    return call("train", "--config", "configs/vitvq_emoji.py:smoke", "--workdir", workdir, *GAN, *flags, devices=devices)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> pathlib.Path:
    """The workdir of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    result = train(workdir)
    assert result.returncode == 0, result.stderr
    return workdir


def rows(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def arrays(workdir: pathlib.Path, out: pathlib.Path) -> bytes:
    """Everything in the newest checkpoint's state, as one file."""
    return export(workdir, out, "full").read_bytes()


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the run ended early with {process.returncode}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def start(workdir: pathlib.Path, log: pathlib.Path) -> subprocess.Popen:
    flags = ["train", "--config", "configs/vitvq_emoji.py:smoke", "--workdir", workdir, *GAN]
    return subprocess.Popen(command(*flags), cwd=ROOT, env=environment(), stdout=log.open("w"), stderr=subprocess.STDOUT)


def test_a_run_leaves_what_a_user_looks_for(straight):
    for name in ("config.json", "run.json", "parameters.txt", "metrics.jsonl", "performance.jsonl", "report.html", "tensorboard"):
        assert (straight / name).exists(), name
    figures = {k: v for row in rows(straight) for k, v in row.items()}
    wanted = (
        "loss l2 l1 codebook adversarial psnr codebook_usage codebook_usage_batch perplexity dead_codes grad_norm update_norm "
        "disc_loss disc_grad_norm disc_update_norm disc_logits_real disc_logits_fake r1 lr disc_lr nonfinite_share"
    )
    assert {f"train/{k}" for k in wanted.split()} <= set(figures)
    assert {"eval/reconstruction/psnr", "eval/reconstruction/ssim", "eval/codebook/usage"} <= set(figures)
    speed = json.loads((straight / "performance.jsonl").read_text().splitlines()[-1])
    assert {"train/images_per_s", "train/step_ms", "train/data_wait", "train/tflops"} <= set(speed)
    names = [f"reconstruction{kind}_{step:08d}.png" for kind in ("", "_worst") for step in (20, 40)]
    assert sorted(p.name for p in (straight / "pictures").iterdir()) == names


def test_kill_9_and_resume_is_bitwise_the_straight_run(straight, tmp_path):
    workdir = tmp_path / "killed"
    for milestone in ("5", "15"):
        process = start(workdir, tmp_path / "log")
        wait_for((workdir / "checkpoints" / milestone / "checksums.json").exists, process)
        process.kill()
        process.wait()
    assert (workdir / "metrics.jsonl").read_text() != (straight / "metrics.jsonl").read_text(), "it was killed too late to prove anything"
    result = train(workdir)
    assert result.returncode == 0, result.stderr
    assert (workdir / "metrics.jsonl").read_text() == (straight / "metrics.jsonl").read_text()
    assert arrays(workdir, tmp_path / "a") == arrays(straight, tmp_path / "b")


def test_sigterm_saves_and_says_so_by_its_exit_code(straight, tmp_path):
    workdir = tmp_path / "stopped"
    process = start(workdir, tmp_path / "log")
    wait_for(lambda: (workdir / "metrics.jsonl").exists() and rows(workdir), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75, (tmp_path / "log").read_text()
    assert "the same command goes on" in (tmp_path / "log").read_text()
    assert train(workdir).returncode == 0
    assert (workdir / "metrics.jsonl").read_text() == (straight / "metrics.jsonl").read_text()


def test_a_checkpoint_goes_on_with_another_mesh(straight, tmp_path):
    workdir = tmp_path / "moved"
    process = start(workdir, tmp_path / "log")
    wait_for((workdir / "checkpoints/5/checksums.json").exists, process)
    process.kill()
    process.wait()
    result = train(workdir, "--config.mesh.fsdp=2", "--config.mesh.tensor=2", devices=4)
    assert result.returncode == 0, result.stderr
    assert "config.mesh.fsdp: 1 → 2" in result.stderr
    mine, theirs = rows(workdir)[-1], rows(straight)[-1]
    assert mine["eval/reconstruction/psnr"] == pytest.approx(theirs["eval/reconstruction/psnr"], abs=0.02)


def test_a_damaged_latest_checkpoint_is_named_and_passed_over(straight, tmp_path):
    workdir = tmp_path / "damaged"
    shutil.copytree(straight, workdir)
    data = max((p for p in (workdir / "checkpoints/40").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    # Another seed is another result, which has to be allowed; no other program, which would have to be compiled.
    result = train(workdir, "--config.seed=1", "--allow-config-change")
    assert result.returncode == 0, result.stderr
    assert "WARNING" in result.stderr and "checkpoints/40" in result.stderr
    assert "resuming" in result.stderr and "at step 35 of 40" in result.stderr
    # Step 40 was saved anew; the damaged folder stays beside it as it was found.
    assert (workdir / "checkpoints/40.corrupt-1" / data.relative_to(workdir / "checkpoints/40")).read_bytes() == bytes(content)


def refused(capfd, workdir: pathlib.Path, *flags: str) -> str:
    """What the command says to a mistake, in this process; the last line is its one sentence."""
    capfd.readouterr()
    assert cli.main(command("train", "--config", f"{ROOT}/configs/vitvq_emoji.py:smoke", "--workdir", workdir, *GAN, *flags)[3:]) == 2
    return capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--config.optim.learning_rat=1"], "config.optim.learning_rat is unknown; did you mean 'learning_rate'?"),
        (["--config.optim.learning_rate=fast"], "config.optim.learning_rate must be a number, not 'fast'"),
        (["--config.data.train=no/such/folder"], "no/such/folder"),
        (["--config.mesh.fsdp=3"], "config.mesh"),
        (["--config.batch_size=6"], "minibatch_group 4"),
        (["--config.model.patch=5"], "config.model: image_size 16 is not a multiple of patch 5"),
        (["--config.loss.perceptual.weights=no/vgg.pth"], "no/vgg.pth"),
    ],
)
def test_mistakes_get_one_sentence_before_any_work(tmp_path, capfd, flags, sentence):
    said = refused(capfd, tmp_path / "w", *flags)
    last = said.strip().splitlines()[-1]
    assert last.startswith("vimlab: error: ") and sentence in last, said
    assert "Traceback" not in said
    assert not (tmp_path / "w" / "checkpoints").exists() or not any((tmp_path / "w" / "checkpoints").iterdir())


def test_a_mistake_in_a_shell_takes_no_minute(tmp_path):
    start = time.monotonic()
    result = train(tmp_path / "w", "--config.optim.learning_rat=1")
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("vimlab: error: config.optim.learning_rat is unknown")
    assert time.monotonic() - start < 60


def test_resuming_under_a_config_that_means_something_else_is_refused(straight, capfd):
    before = (straight / "config.json").read_text()
    rate = json.loads(before)["optim"]["learning_rate"]
    assert f"config.optim.learning_rate: {rate} → 0.5" in refused(capfd, straight, "--config.optim.learning_rate=0.5")
    assert (straight / "config.json").read_text() == before
    # What does not change the result may change; a finished run stays finished.
    result = train(straight, "--config.log.tensorboard=false")
    assert result.returncode == 0 and "finished" in result.stdout


def test_a_folder_that_is_not_a_run_is_not_written_to(tmp_path, capfd):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "is not empty" in refused(capfd, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_steps_that_are_not_finite_stop_the_run_with_their_batch_saved(tmp_path):
    rate = ["--config.optim.learning_rate=1e30", "--config.optim.warmup=0", "--config.optim.clip=none"]
    flags = [*rate, "--config.max_nonfinite=3", "--config.loss.adversarial=none"]
    result = train(tmp_path / "w", *flags)
    assert result.returncode == 2
    assert "3 steps in a row had a loss or gradient that is not finite" in result.stderr.strip().splitlines()[-1]
    assert list((tmp_path / "w").glob("nonfinite_*.npz"))


def test_eval_repeats_the_figures_of_training(straight, tmp_path):
    before = rows(straight)[-1]
    result = call("eval", "--workdir", straight, "--evals", "reconstruction,codebook")
    assert result.returncode == 0, result.stderr
    printed = dict(line.split() for line in result.stdout.splitlines() if line.startswith("eval/"))
    # The model looks at as many images at a time in both, so that not even a rounding differs; six digits are printed.
    for name in ("reconstruction/psnr", "reconstruction/ssim", "codebook/usage", "codebook/perplexity"):
        assert float(printed[f"eval/{name}"]) == pytest.approx(before[f"eval/{name}"], rel=1e-5), name
    protocol = json.loads((straight / "evals/reconstruction_00000040.json").read_text())["protocol"]
    assert protocol["count"] == 200 and protocol["parameters"] == "average" and protocol["rounding"] == "uint8"


def test_init_from_takes_weights_alone(straight, tmp_path):
    out = tmp_path / "export"
    assert call("ckpt", "export", straight, out, "--kind", "inference").returncode == 0
    result = train(tmp_path / "w", f"--config.init_from={out}", "--config.duration=5", "--config.optim.learning_rate=1e-9")
    assert result.returncode == 0, result.stderr
    assert "discriminator" in result.stderr and "starts fresh" in result.stderr
    first, trained = rows(tmp_path / "w")[0]["train/psnr"], rows(straight)[-1]["eval/reconstruction/psnr"]
    assert first == pytest.approx(trained, abs=1), "the weights were not taken"
    assert rows(straight)[0]["train/psnr"] < trained - 2
