"""The command line: help of every command, one sentence for every mistake, and `vimlab config`."""

import json
import pathlib
import subprocess
import sys

import pytest

from vimlab import cli
from vimlab.config import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[1]
EMOJI = str(ROOT / "configs/vitvq_emoji.py")


def vimlab(capsys, *argv: str) -> tuple[int, str, str]:
    try:
        code = cli.main(list(argv))
    except SystemExit as exit:
        code = exit.code or 0
    return code, *capsys.readouterr()


def mistake(capsys, *argv: str) -> str:
    """The one sentence that a mistake is answered with."""
    code, out, err = vimlab(capsys, *argv)
    assert code == 2 and out == ""
    (line,) = [line for line in err.splitlines() if not line.startswith(("INFO", "WARNING"))]
    assert line.startswith("vimlab: error: ")
    return line


def test_the_commands_are_listed(capsys):
    code, out, _ = vimlab(capsys, "--help")
    assert code == 0 and all(f"  {name}" in out for name in ("train", "eval", "config", "data", "ckpt", "doctor"))
    assert vimlab(capsys) == (2, out, "")


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_each_command_explains_itself(capsys, command):
    code, out, _ = vimlab(capsys, command, "--help")
    assert code == 0 and out.startswith(f"usage: vimlab {command}")


def test_as_an_installed_program():
    done = subprocess.run([sys.executable, "-m", "vimlab", "config", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("usage: vimlab config") and done.stderr == ""


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_each_command_is_a_module_too(command):
    done = subprocess.run([sys.executable, "-m", f"vimlab.{command}", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: vimlab {command}") and done.stderr == ""


def test_version(capsys):
    import vimlab as package

    assert vimlab(capsys, "--version") == (0, f"vimlab {package.__version__}\n", "")


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert "there is no command 'trian'; did you mean 'train'?" in mistake(capsys, "trian")
    assert "did you mean" not in mistake(capsys, "xyzzy")


def test_missing_arguments_are_named(capsys):
    code, _, err = vimlab(capsys, "train", "--config", EMOJI)
    assert code == 2 and "--workdir" in err.splitlines()[-1]


def test_a_mistyped_key_fails_before_anything_is_made(capsys, tmp_path):
    line = mistake(capsys, "train", "--config", f"{EMOJI}:smoke", "--config.optim.learning_rat=1", "--workdir", str(tmp_path / "w"))
    assert "config.optim.learning_rat is unknown; did you mean 'learning_rate'?" in line
    assert not (tmp_path / "w").exists()


def test_mistakes_of_each_kind_are_one_sentence(capsys, tmp_path):
    train = ("train", "--workdir", str(tmp_path / "w"), "--config")
    assert "does not exist; did you mean" in mistake(capsys, *train, EMOJI.replace("emoji", "emojy"))
    assert "config argument 'smok' is unknown" in mistake(capsys, *train, f"{EMOJI}:smok")
    assert "names a bucket" in mistake(capsys, "train", "--config", EMOJI, "--workdir", "s3://bucket/run")
    assert "names a bucket" in mistake(capsys, "eval", "--workdir", "s3://bucket/run")
    assert "holds no config.json" in mistake(capsys, "eval", "--workdir", str(tmp_path))
    assert "does not exist" in mistake(capsys, "ckpt", "ls", str(tmp_path / "none"))
    assert "none" in mistake(capsys, "data", "check", str(tmp_path / "none"))


def test_mistakes_that_training_finds_itself_are_one_sentence_too(capsys, tmp_path):
    train = ("train", "--config", f"{EMOJI}:smoke", "--workdir")
    assert "nowhere" in mistake(capsys, *train, str(tmp_path / "a"), f"--config.data.train={tmp_path}/nowhere")
    assert "mesh" in mistake(capsys, *train, str(tmp_path / "b"), "--config.mesh.data=7", "--config.mesh.tensor=5")
    assert "batch_size" in mistake(capsys, *train, str(tmp_path / "c"), "--config.batch_size=12")


def test_errors_that_are_no_mistakes_of_the_user_stay_visible():
    def broken(argv):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        cli.run_command(broken, [])


def test_a_message_of_several_lines_becomes_one(capsys):
    def refuse(argv):
        raise ConfigError("first\n  second")

    assert cli.run_command(refuse, []) == 2
    assert capsys.readouterr().err == "vimlab: error: first second\n"


def test_config_show_prints_what_is_resolved(capsys):
    code, out, _ = vimlab(capsys, "config", "show", f"{EMOJI}:smoke", "--config.optim.b2=0.5", "--config.optim.clip=none")
    lines = dict(line.split(" = ", 1) for line in out.splitlines())
    assert code == 0 and lines["optim.b2"] == "0.5" and lines["optim.clip"] == "None" and lines["task"] == "'tokenizer'"
    assert lines["optim.epsilon"] == "1e-08"  # A default that the file does not mention.


def test_config_diff_names_the_keys_and_tells_by_its_exit_code(capsys, tmp_path):
    code, out, _ = vimlab(capsys, "config", "diff", EMOJI, EMOJI, "--config.seed=7", "--config.optim.learning_rate=1")
    assert code == 1 and [line.split(":")[0] for line in out.splitlines()] == ["optim.learning_rate", "seed"]
    assert out.splitlines()[1] == "seed: 0 → 7"
    assert vimlab(capsys, "config", "diff", EMOJI, EMOJI)[:2] == (0, "")
    # What `show --json` prints is a config again, and so is a workdir.
    (tmp_path / "config.json").write_text(vimlab(capsys, "config", "show", EMOJI, "--json", "--config.seed=7")[1])
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 7
    assert vimlab(capsys, "config", "diff", str(tmp_path), EMOJI)[:2] == (1, "seed: 7 → 0\n")
    assert vimlab(capsys, "config", "diff", str(tmp_path / "config.json"), EMOJI, "--config.seed=7")[0] == 0


def test_doctor_finds_this_machine_well(capsys, tmp_path):
    code, out, _ = vimlab(capsys, "doctor", "--workdir", str(tmp_path / "not" / "yet"))
    assert code == 0 and out.endswith("all is well\n")
    assert "8 x cpu" in out and "jax " in out and list(tmp_path.iterdir()) == []


def test_doctor_names_what_is_broken_and_goes_on(capsys, monkeypatch):
    from vimlab import doctor

    def broken():
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(doctor, "arithmetic", broken)
    monkeypatch.setattr(doctor, "NEEDED", ("jax", "no-such-package"))
    code, out, _ = vimlab(capsys, "doctor")
    assert code == 1 and "2 of 7 checks failed" in out
    assert "arithmetic FAILED: two lines" in out and "no-such-package not installed" in out and "memory" in out
