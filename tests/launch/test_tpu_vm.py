"""`vimlab launch tpu-vm` against a stand-in for gcloud that records what it is asked: the whole life of a run on TPUs that come and go."""

import pathlib
import re
import subprocess
import sys
import time

import pytest
from programs import calls, stand_in, unused

from vimlab import cli
from vimlab.launch.record import LaunchFolder
from vimlab.launch.shell import LaunchError

ROOT = pathlib.Path(__file__).resolve().parents[2]
NONE = ("queued-resources describe", 1, "", "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource not found")
ACTIVE, WAITING, SUSPENDED, FAILED = (("queued-resources describe", 0, state, "") for state in
                                      ("ACTIVE", "WAITING_FOR_RESOURCES", "SUSPENDED", "FAILED"))  # fmt: skip
READY, PREEMPTED = ("tpu-vm describe", 0, "READY", ""), ("tpu-vm describe", 0, "PREEMPTED", "")
CREATED, DELETED = ("queued-resources create", 0, "", ""), ("queued-resources delete", 0, "", "")
COPIED, INSTALLED = ("scp", 0, "", ""), ("ssh tar", 0, "", "")
NEW = [NONE, CREATED, WAITING, ACTIVE, COPIED, INSTALLED]


def ends(code: int) -> tuple:
    return ("ssh vimlab.launch.worker", code, f"worker 0 says {code}", "")


@pytest.fixture
def source(tmp_path):
    """A small project in git, with a file that git ignores and one that is new."""
    folder = tmp_path / "project"
    (folder / "configs").mkdir(parents=True)
    for name, text in {"setup.py": "", "configs/c.py": "", "new.py": "", "big.bin": "", ".gitignore": "big.bin\n"}.items():
        (folder / name).write_text(text)
    for command in (["init", "-q"], ["add", "setup.py", "configs", ".gitignore"]):
        subprocess.run(["git", "-C", folder, *command], check=True)
    return folder


def launch(tmp_path, monkeypatch, source, answers: list, *options: str) -> int:
    (tmp_path / "bin").mkdir(exist_ok=True)
    stand_in(tmp_path / "bin", "gcloud", answers)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return cli.main(argv(tmp_path, source, "--run", *options))


def argv(tmp_path, source, *options: str) -> list[str]:
    return ["launch", "tpu-vm", "--topology", "v5e:4x4", "--zone", "z", "--project", "p", "--spot", "--source", str(source), "--poll", "0.01", *options,
            "--", "train", "--config", "configs/c.py", "--workdir", str(tmp_path / "run")]


def verbs(tmp_path) -> list[str]:
    """What was asked, in short."""
    names = {"describe": "look", "create": "create", "delete": "delete", "scp": "copy"}
    asked = []
    for call in calls(tmp_path / "bin", "gcloud"):
        verb = call[3]
        asked.append(names.get(verb) or ("run" if "launch.worker" in " ".join(call) else "stop" if "kill -TERM" in " ".join(call) else "install"))
    return [verb for i, verb in enumerate(asked) if verb != "look" or asked[i - 1 : i] != ["look"]]


def test_a_run_that_finishes(tmp_path, monkeypatch, source, capfd):
    assert launch(tmp_path, monkeypatch, source, [*NEW, ends(0), DELETED]) == 0
    assert verbs(tmp_path) == ["look", "create", "look", "copy", "install", "run", "delete"] and not unused(tmp_path / "bin", "gcloud")
    asked = calls(tmp_path / "bin", "gcloud")
    assert asked[1] == ["compute", "tpus", "queued-resources", "create", "run", "--zone=z", "--project=p", "--accelerator-type=v5litepod-16",
                        "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=run", "--spot"]
    run = next(call for call in asked if "launch.worker" in call[-1])
    assert run[:8] == ["compute", "tpus", "tpu-vm", "ssh", "run", "--worker=all", "--zone=z", "--project=p"]
    assert run[-1].endswith(f"-m vimlab.launch.worker --alone run -- train --config configs/c.py --workdir {tmp_path}/run")
    out = capfd.readouterr().out
    assert out.count("$ gcloud ") == len(asked)  # Each is printed before it runs.
    assert "packs 4 files of" in out and "worker 0 says 0" in out
    record = LaunchFolder(str(tmp_path / "run")).read()
    assert record["outcome"] == "finished" and record["tpu"]["topology"] == "v5e:4x4"


def test_preempted_tpus_are_made_again(tmp_path, monkeypatch, source, capfd):
    answers = [*NEW, ends(255), SUSPENDED, SUSPENDED, DELETED, CREATED, ACTIVE, COPIED, INSTALLED, ends(0), DELETED]
    assert launch(tmp_path, monkeypatch, source, answers) == 0
    assert verbs(tmp_path) == ["look", "create", "look", "copy", "install", "run", "look", "delete", "create", "look", "copy", "install", "run", "delete"]
    assert "the TPUs were preempted (the queued resource is SUSPENDED); start 2 follows, 99 restarts left" in capfd.readouterr().err


def test_a_node_that_is_gone_before_the_queue_notices_is_a_preemption(tmp_path, monkeypatch, source):
    answers = [*NEW, ends(1), ACTIVE, PREEMPTED, SUSPENDED, DELETED, CREATED, ACTIVE, COPIED, INSTALLED, ends(0), DELETED]
    assert launch(tmp_path, monkeypatch, source, answers) == 0 and not unused(tmp_path / "bin", "gcloud")


@pytest.mark.parametrize("code", [75, 134, 137, 255])
def test_a_lost_run_on_tpus_that_are_there_just_goes_on(tmp_path, monkeypatch, source, code):
    assert launch(tmp_path, monkeypatch, source, [*NEW, ends(code), ACTIVE, READY, ACTIVE, ACTIVE, ends(0), DELETED]) == 0
    assert verbs(tmp_path) == ["look", "create", "look", "copy", "install", "run", "look", "run", "delete"]  # Nothing is installed twice.


def test_a_mistake_ends_it_and_the_tpus_stay(tmp_path, monkeypatch, source, capfd):
    assert launch(tmp_path, monkeypatch, source, [*NEW, ends(2)], "--retries", "5") == 2
    err = capfd.readouterr().err
    assert "delete" not in verbs(tmp_path) and "the TPUs are still there" in err and "queued-resources delete run" in err


def test_failures_end_it_unless_retries_are_left(tmp_path, monkeypatch, source):
    assert launch(tmp_path, monkeypatch, source, [*NEW, ends(1), ACTIVE, READY]) == 1
    answers = [ACTIVE, ACTIVE, COPIED, INSTALLED, ends(1), ACTIVE, READY, ACTIVE, ACTIVE, ends(0), DELETED]
    assert launch(tmp_path, monkeypatch, source, answers, "--retries", "1") == 0


def test_a_request_that_fails_is_a_failure(tmp_path, monkeypatch, source, capfd):
    assert launch(tmp_path, monkeypatch, source, [NONE, CREATED, FAILED]) == 1
    assert "the queued resource is FAILED" in capfd.readouterr().err


def test_setting_up_that_fails_is_a_failure(tmp_path, monkeypatch, source):
    assert launch(tmp_path, monkeypatch, source, [NONE, CREATED, ACTIVE, COPIED, ("ssh tar", 1, "", ""), ACTIVE, READY]) == 1
    assert "run" not in verbs(tmp_path)


def test_a_service_out_of_reach_is_asked_again_but_not_for_ever(tmp_path, monkeypatch, source, capfd):
    trouble = ("queued-resources describe", 1, "", "ERROR: UNAVAILABLE: try later")
    assert launch(tmp_path, monkeypatch, source, [NONE, CREATED, trouble, trouble, ACTIVE, COPIED, INSTALLED, ends(0), DELETED]) == 0
    assert launch(tmp_path, monkeypatch, source, [trouble] * 5) == 2
    assert "cannot tell the state of queued resource run: ERROR: UNAVAILABLE" in capfd.readouterr().err
    assert launch(tmp_path, monkeypatch, source, [NONE, ("queued-resources create", 1, "", "ERROR: quota")]) == 2
    assert "ended with exit code 1" in capfd.readouterr().err


def test_several_slices_are_addressed_through_their_queued_resource(tmp_path, monkeypatch, source):
    assert launch(tmp_path, monkeypatch, source, [*NEW, ends(0), DELETED], "--slices", "2") == 0
    asked = [" ".join(call) for call in calls(tmp_path / "bin", "gcloud")]
    assert "--node-count=2 --node-prefix=run" in asked[1] and not any("tpu-vm" in call for call in asked)
    assert all("--node=all --worker=all" in call for call in asked if " ssh " in call or " scp " in call)


def test_dry_run_is_the_default_and_asks_nothing(tmp_path, monkeypatch, source, capfd):
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path / "bin", "gcloud", [])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    for options in ([], ["--dry-run"]):
        assert cli.main(argv(tmp_path, source, *options)) == 0
        printed = [line.split()[5] for line in capfd.readouterr().out.splitlines() if line.startswith("$ gcloud")]
        assert printed == ["describe", "create", "describe", "scp", "ssh", "ssh", "delete"]
    assert not (tmp_path / "run").exists() and calls(tmp_path / "bin", "gcloud") == []


def test_stop_lets_the_run_save_first(tmp_path, monkeypatch, source, capfd):
    """The launcher in a process of its own, its run a stand-in that lasts until the workers are asked to stop."""
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path / "bin", "gcloud", [*NEW, ("ssh kill -TERM", 0, "", ""), ACTIVE, READY])
    gcloud = tmp_path / "bin/gcloud"
    lasting = f"""#!/bin/sh
case "$*" in
  *launch.worker*) while [ ! -e {tmp_path}/asked ]; do sleep 0.05; done; exit 75;;
  *"kill -TERM"*) touch {tmp_path}/asked;;
esac
exec {gcloud}.recorder "$@"
"""
    gcloud.rename(f"{gcloud}.recorder")
    gcloud.write_text(lasting)
    gcloud.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with subprocess.Popen([sys.executable, "-m", "vimlab", *argv(tmp_path, source, "--run")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as child:  # fmt: skip
        try:
            while "launch.worker" not in (line := child.stdout.readline()):
                assert line, "the launcher ended early"
            assert cli.main(["launch", "status", "--workdir", str(tmp_path / "run"), "--dry-run"]) == 0
            assert cli.main(argv(tmp_path, source, "--run")) == 2  # Two launches on one workdir.
            time.sleep(0.2)
            assert cli.main(["launch", "stop", "--workdir", str(tmp_path / "run")]) == 0
            assert child.wait(20) == 75
        finally:
            child.kill()
    out, err = capfd.readouterr()
    assert "running, start 1" in out and "is running already" in err and (tmp_path / "asked").exists()


def test_logs_are_read_from_the_workers(tmp_path, monkeypatch, source, capfd):
    assert launch(tmp_path, monkeypatch, source, [*NEW, ends(2)]) == 2
    capfd.readouterr()
    assert cli.main(["launch", "logs", "--workdir", str(tmp_path / "run"), "--worker", "3", "--follow", "--dry-run"]) == 0
    assert re.search(r"tpu-vm ssh run --worker=3 .*tail -n 20 -F", capfd.readouterr().out)
    stand_in(tmp_path / "bin", "gcloud", [("ssh kill -TERM", 0, "", ""), DELETED])
    assert cli.main(["launch", "stop", "--workdir", str(tmp_path / "run"), "--delete"]) == 0
    assert verbs(tmp_path) == ["stop", "delete"]


def test_a_program_that_is_missing_is_named(tmp_path, monkeypatch, source):
    from vimlab.launch.shell import Shell

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="the program 'gcloud' is not installed"):
        Shell(dry=False).run(["gcloud", "info"])
