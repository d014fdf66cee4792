"""The ckpt command: what it prints of good, damaged and half-saved checkpoints."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
import safetensors.numpy

from vimlab.checkpoint import Checkpointer, CheckpointError
from vimlab.ckpt import main
from vimlab.state import TrainState

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLASSES = [f"class {i}" for i in range(99)]
META = {"config": {"optim": {"learning_rate": 0.25}}, "class_table": CLASSES, "versions": {"jax": jax.__version__}}


@pytest.fixture
def run(tmp_path):
    """Steps 5 (a milestone), 6 and 7, of which 6 has a changed byte and 7 is half-saved."""
    networks = {"tokenizer": {"w": jnp.ones((300, 1000)), "b": jnp.zeros(7)}, "discriminator": {"w": jnp.ones(3)}}
    state = TrainState(step=jnp.int32(5), params=networks, opt_state={}, ema={"tokenizer": networks["tokenizer"]}, extra={})
    with Checkpointer(tmp_path / "run/checkpoints", keep_every_steps=5) as checkpointer:
        for step in (5, 6, 7):
            checkpointer.save(step, state, META | {"saved at": step})
    folder = tmp_path / "run/checkpoints"
    (folder / "6/meta.json").write_text((folder / "6/meta.json").read_text().replace("0.25", "0.26"))
    (folder / "7/checksums.json").unlink()
    (folder / "7").rename(folder / "10")
    os.utime(folder / "10", (time.time() - 7300,) * 2)
    return tmp_path / "run"


def test_ls_lists_in_order_with_sizes_states_and_milestones(run, capsys):
    assert main(["ls", str(run)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["step", "size", "age", "state", "milestone"]
    rows = [row.split() for row in rows]
    assert [row[0] for row in rows] == ["5", "6", "10"]
    assert all(2.4 <= float(row[1]) < 2.5 and row[2] == "MB" for row in rows)  # 2 x 300,007 + 3 values of 4 bytes.
    assert rows[0][-2:] == ["committed", "yes"] and rows[1][-1] == "committed"
    assert rows[2][3:] == ["2", "h", "not", "committed"]


def test_verify_names_the_damage_and_fails(run, capsys):
    assert main(["verify", str(run)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "5: good" and lines[1].startswith("6: DAMAGED, the bytes of meta.json have changed")
    assert lines[2].startswith("10: it is not committed")
    (run / "checkpoints/6").rename(run / "checkpoints/6.corrupt-1")
    assert main(["verify", str(run / "checkpoints")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_show_prints_config_versions_and_parameters_without_orbax_or_devices(run):
    command = ["show", str(run), "--step", "5"]
    code = f"import sys; from vimlab.ckpt import main; main({command}); from jax._src import xla_bridge; "
    code += "assert 'orbax' not in sys.modules and not xla_bridge.backends_are_initialized()"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [" ".join(line.split()) for line in output.splitlines()]
    for line in (
        "optim.learning_rate = 0.25",
        f'jax = "{jax.__version__}"',
        "saved at: 5",
        "params/tokenizer: 300,007 values in 2 arrays, 1.2 MB",
        "params/tokenizer/w [300, 1000] float32 300,000",
        "params/discriminator: 3 values in 1 arrays, 0.0 MB",
        "ema: 300,007 values in 2 arrays, 1.2 MB",
    ):
        assert line in lines
    assert any(line.startswith("class_table:") and line.endswith("…") for line in lines)


def test_export_writes_what_it_says(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "out"), "--kind", "full", "--step", "5"]) == 0
    assert str(tmp_path / "out/model.safetensors") in capsys.readouterr().out
    assert safetensors.numpy.load_file(tmp_path / "out/model.safetensors")["step"] == 5


def test_mistakes_are_one_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for argv, sentence in {
        ("show", str(run), "--step", "10"): r"no committed checkpoint 10; it has \[5, 6\]",
        ("show", str(tmp_path / "empty")): "no committed checkpoint",
        ("ls", str(tmp_path / "empty")): "holds no checkpoints",
        ("ls", str(tmp_path / "absent")): "does not exist",
        ("export", str(run), str(tmp_path / "out"), "--step", "6"): "6 is damaged",
    }.items():
        with pytest.raises(CheckpointError, match=sentence):
            main(list(argv))
    with pytest.raises(SystemExit):
        main(["ls"])
