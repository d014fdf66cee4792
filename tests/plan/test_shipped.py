"""Every shipped config compiled for a TPU that is not there: `pytest -m plan` where the extra `tpu` is installed."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.plan,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; `pip install \"vimlab[tpu]\"`"),
]
# Small topologies: what compiles there compiles on large ones. Batches are those that a slice of that size would have.
PLANS = {
    "vitvq_small_imagenet256.py": "--topology v4:2x2x2 --config.batch_size=16",
    "vitvq_small_imagenet256.py:pair=bb": "--topology v4:2x2x2 --config.batch_size=16",
    "vitvq_small_imagenet256.py:pair=sl": "--topology v4:2x2x2 --config.batch_size=16",
    "vim_base_imagenet256.py": "--topology v4:2x2x2 --config.batch_size=16 --mesh fsdp=8",
    "vim_large_imagenet256.py": "--topology v4:2x2x2 --config.batch_size=16 --mesh fsdp=8",
    "parti_350m.py": "--topology v5e:2x2 --config.batch_size=16",
    "parti_750m.py": "--topology v5e:2x2 --config.batch_size=16 --mesh fsdp=4",
    "parti_3b.py": "--topology v5e:4x4 --config.batch_size=16 --mesh fsdp=4,tensor=4",
    "parti_20b.py": "--topology v4:8x8x16 --config.batch_size=4096",
    "vitvq_cifar10.py": "--topology v5e:2x2",
    "vim_cifar10.py": "--topology v5e:2x2",
    "vitvq_emoji.py": "--topology v5e:2x2",
    "parti_emoji.py": "--topology v5e:2x2",
    "vitvq_shapes.py": "--topology v5e:2x2",
    "parti_shapes.py": "--topology v5e:2x2",
}


def plan(tmp_path, config: str, *arguments: str) -> dict:
    """A plan as a user makes it, in a process of its own."""
    file = tmp_path / "plan.json"
    command = [sys.executable, "-m", "vimlab", "plan", "--config", f"configs/{config}", "--json", str(file), "--fast", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


def test_every_config_is_planned():
    assert {name.partition(":")[0] for name in PLANS} == {file.name for file in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize("config", PLANS)
def test_each_compiles_and_fits(tmp_path, config):
    found = plan(tmp_path, config, *PLANS[config].split())
    memory = found["memory"]
    assert memory["by"] == "compiler" and memory["fits"] and found["compile"]["level"] == "O0"
    given = sum(memory["given"].values()) - memory["idle"]
    assert memory["compiled"]["argument"] == pytest.approx(given, rel=0.2), "what a step is given, padded to the chip's tiles"
    assert 0.3 < memory["estimate"] / memory["compiled"]["peak"] < 3, "the estimate is of the right size"
    assert found["step"]["collectives"] and not [w for w in found["warnings"] if "loops" in w]


def test_decoding_compiles(tmp_path):
    found = plan(tmp_path, "parti_emoji.py", "--topology", "v5e:2x2", "--sample", "8")
    assert found["memory"]["by"] == "compiler" and found["memory"]["fits"]


def test_too_large_a_step_is_a_result(tmp_path):
    file = tmp_path / "plan.json"
    command = [sys.executable, "-m", "vimlab", "plan", "--config", "configs/vim_base_imagenet256.py", "--topology", "v5e:2x2", "--fast", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(file.read_text())
    assert done.returncode == 1 and "exceeds" in found["memory"]["refusal"] and found["memory"]["needs"] > found["memory"]["budget"]
    assert found["advice"][0].startswith("try ")
