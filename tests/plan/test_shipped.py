"""Every shipped config compiled for a TPU that is not there: `pytest -m plan` where the extra `tpu` is installed."""

import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("plans", ROOT / "experiments/plans.py")
plans = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plans)
pytestmark = [
    pytest.mark.plan,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; `pip install \"vimlab[tpu]\"`"),
]
SMALL = {f"{name}_v5e_4": f"--config configs/{name}.py --topology v5e:2x2" for name in
         ("vitvq_cifar10", "vim_cifar10", "vitvq_emoji", "parti_emoji", "vitvq_shapes", "parti_shapes")}  # fmt: skip
PLANS = {name: arguments for name, (_, arguments) in plans.PLANS.items()} | SMALL


def plan(tmp_path, arguments: str) -> dict:
    """A plan as a user makes it, in a process of its own."""
    file = tmp_path / "plan.json"
    command = [sys.executable, "-m", "vimlab", "plan", *shlex.split(arguments), "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1) and file.exists(), done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert done.returncode == (0 if found["memory"]["fits"] else 1)
    return found


def test_every_config_is_planned():
    planned = {re.search(r"configs/([\w.]+)", arguments)[1] for arguments in PLANS.values()}
    assert planned == {file.name for file in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize("name", PLANS)
def test_each_compiles_and_fits(tmp_path, name):
    found = plan(tmp_path, PLANS[name])
    memory = found["memory"]
    assert memory["by"] == "compiler" and memory["fits"]
    given = sum(memory["given"].values()) - memory["idle"]
    # Padded to the chip's tiles: heads of 64 take the room of 128.
    assert 0.99 * given <= memory["compiled"]["arguments"] <= 1.6 * given
    if "run" in found:
        assert 0.3 < memory["estimate"] / memory["compiled"]["total"] < 3, "the estimate is of the right size"
    assert (found["step"]["collectives"] or name == "vim_base_v5e_16_decode") and not [w for w in found["warnings"] if "loops" in w]
    stored = plans.RESULTS / f"{name}.json"
    if stored.exists() and (old := json.loads(stored.read_text()))["versions"] == found["versions"]:
        assert memory["compiled"]["total"] == pytest.approx(old["memory"]["compiled"]["total"], rel=0.02), "what is stored is what is found"


def test_too_large_a_step_is_a_result(tmp_path):
    found = plan(tmp_path, "--config configs/vim_base_imagenet256.py --topology v5e:2x2")
    assert "exceeds" in found["memory"]["refusal"] and found["memory"]["needs"] > found["memory"]["budget"]
    assert len(found["memory"]["largest_compiled"]) == 8 and found["advice"][0].startswith("try ")


def test_the_whole_program_is_known_in_full(tmp_path):
    short, full = (plan(tmp_path, f"--config configs/vitvq_shapes.py --topology v5e:2x2{flag}") for flag in ("", " --full"))
    program = full["memory"]["compiled"]["program"]
    assert full["memory"]["compiled"]["total"] == short["memory"]["compiled"]["total"] + program > program > 0
    assert full["step"] == short["step"], "and changes nothing else"
    assert not short["compile"]["full"] and short["compile"]["seconds"] < full["compile"]["seconds"]


def test_candidates_of_a_search_are_compiled(tmp_path):
    """Each in a process of its own; the step is too large as configured."""
    file = tmp_path / "plans.json"
    arguments = ["--config", "configs/vim_base_imagenet256.py", "--topology", "v5e:8x8", "--mesh", "data=16,fsdp=4", "--search", "--json", str(file)]
    done = subprocess.run([sys.executable, "-m", "vimlab", "plan", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "bound by" in done.stdout, done.stderr
    tried = json.loads(file.read_text())
    assert len(tried) > 1 and {p["memory"]["by"] for p in tried} == {"compiler"} and any(p["memory"]["fits"] for p in tried)
    assert len({json.dumps(p["config"]) for p in tried}) == len(tried)
