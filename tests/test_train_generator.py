"""A generator's training as real commands: kill -9 and resume without its tokenizer, cached tokens and pixels, refusals."""

import json
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from test_train import ROOT, call, command, environment, rows, wait_for

from vimlab import config as configs
from vimlab import train as training
from vimlab.config import ConfigError
from vimlab.export import export
from vimlab.pretrained import Pretrained
from vimlab.tasks.generator_config import TOKENIZER
from vimlab.tokenizers.quantizers import VectorQuantizerConfig
from vimlab.tokenizers.sizes import ViTSize
from vimlab.tokenizers.tokenizer import TokenizerConfig

TOWER = ViTSize(depth=1, width=16, heads=2, mlp=32)
MODEL = TokenizerConfig(image_size=32, patch=4, encoder=TOWER, decoder=TOWER, output="rgb", quantizer=VectorQuantizerConfig(codes=64, dim=8))
# A little of everything: dropout, dropping with a late start, an average, Parti's optimizer, several saves and rows.
FLAGS = [
    "--config.model.dropout=0.1", "--config.model.remat=none", "--config.drop.start=10", "--config.ema=0.9", "--config.optim.name=adafactor",
    "--config.optim.moment=int8", "--config.duration=40", "--config.evals.likelihood.every=20", "--config.evals.samples=none",
    "--config.log.tensorboard=false",
]  # fmt: skip


def fresh_tokenizer(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Weights that nobody trained, written as an export."""
    init = lambda key: nn.unbox(MODEL.make().init(key, jnp.zeros((1, 32, 32, 3)))["params"])
    params = jax.device_get(jax.jit(init)(jax.random.key(seed)))
    Pretrained(str(folder), {"config": {"task": "tokenizer", "model": configs.to_dict(MODEL)}}, MODEL, params).write(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return fresh_tokenizer(tmp_path_factory.mktemp("trained") / "tokenizer")


def arguments(tokenizer, workdir, *flags):
    return ["train", "--config", f"configs/parti_shapes.py:smoke,tokenizer={tokenizer}", "--workdir", workdir, *FLAGS, *flags]


def arrays(workdir: pathlib.Path, out: pathlib.Path) -> bytes:
    """Everything in the newest checkpoint's state, as one file."""
    return export(workdir, out, "full").read_bytes()


@pytest.fixture(scope="module")
def straight(tokenizer, tmp_path_factory):
    """The workdir of a run on pixels that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    result = call(*arguments(tokenizer, workdir))
    assert result.returncode == 0, result.stderr
    return workdir


def test_a_run_leaves_what_a_user_looks_for(straight):
    for name in ("config.json", "run.json", "parameters.txt", "metrics.jsonl", "performance.jsonl", "report.html", TOKENIZER):
        assert (straight / name).exists(), name
    figures = {k: v for row in rows(straight) for k, v in row.items()}
    assert {f"train/{k}" for k in "loss bits_per_token grad_norm update_norm param_norm lr nonfinite_share".split()} <= set(figures)
    assert any(k.startswith("eval/likelihood/") for k in figures)
    losses = [row["train/loss"] for row in rows(straight) if "train/loss" in row]
    assert losses[-1] < losses[0] - 0.05, losses


def test_kill_9_and_resume_without_the_tokenizer_is_bitwise_the_straight_run(straight, tokenizer, tmp_path):
    """The workdir has a copy of its own: what it was started from may be gone, moved or trained on."""
    lent, workdir = tmp_path / "lent", tmp_path / "killed"
    shutil.copytree(tokenizer, lent)
    process = subprocess.Popen(command(*arguments(lent, workdir)), cwd=ROOT, env=environment(), stdout=(tmp_path / "log").open("w"),
                               stderr=subprocess.STDOUT)  # fmt: skip
    wait_for((workdir / "checkpoints/15/checksums.json").exists, process)
    process.kill()
    process.wait()
    assert (workdir / "metrics.jsonl").read_text() != (straight / "metrics.jsonl").read_text(), "it was killed too late to prove anything"
    shutil.rmtree(lent)
    result = call(*arguments(lent, workdir))
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stderr
    assert (workdir / "metrics.jsonl").read_text() == (straight / "metrics.jsonl").read_text()
    assert arrays(workdir, tmp_path / "a") == arrays(straight, tmp_path / "b")


def test_cached_tokens_train_as_pixels_do(straight, tokenizer, tmp_path):
    """To the last digit of every row, evaluations included: those read pixels in both."""
    cache, workdir = tmp_path / "tokens", tmp_path / "run"
    made = call("tokenize", "--config", f"configs/parti_shapes.py:smoke,tokenizer={tokenizer}", "--out", cache)
    assert made.returncode == 0, made.stderr
    result = call(*arguments(tokenizer, workdir, f"--config.data.tokens={cache}"))
    assert result.returncode == 0, result.stderr
    assert (workdir / "metrics.jsonl").read_text() == (straight / "metrics.jsonl").read_text()


def test_another_tokenizer_is_refused(straight, tmp_path):
    """Named in the config, or put in the place of the run's own copy: the codes would mean other things."""
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    other = fresh_tokenizer(tmp_path / "other", seed=1)
    config, before = f"{ROOT}/configs/parti_shapes.py:smoke", (workdir / "config.json").read_text()
    first = json.loads(before)["tokenizer"]
    go_on = lambda path, *flags: training.main(["--config", f"{config},tokenizer={path}", "--workdir", str(workdir), *FLAGS, *flags])
    with pytest.raises(ConfigError, match=r"was started with another config \(config.tokenizer: "):
        go_on(other)
    shutil.rmtree(workdir / TOKENIZER)
    shutil.copytree(other, workdir / TOKENIZER)
    with pytest.raises(ConfigError, match=r"this run began with another tokenizer \(fingerprint \w{16}\) than the one it finds now \(\w{16}\)"):
        go_on(first)
    shutil.rmtree(workdir / TOKENIZER)
    with pytest.raises(ConfigError, match="another tokenizer"):
        go_on(other, "--allow-config-change")
    assert (workdir / "config.json").read_text() == before
