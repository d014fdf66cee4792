"""`vimlab launch local`: real processes of a small program, kept together, started again, looked at and stopped."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from programs import worker

from vimlab import cli
from vimlab.config import ConfigError
from vimlab.launch import local
from vimlab.launch.record import LaunchFolder, Shown, slug, workdir_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCHER = """
import sys
from vimlab.launch import local
from vimlab.launch.record import LaunchFolder
sys.exit(local.launch(sys.argv[3:], LaunchFolder(sys.argv[1]), local.Plan(processes=int(sys.argv[2]), restarts=0, grace=10)))
"""


def launch(tmp_path, act: str, processes: int = 2, **plan) -> int:
    return local.launch(worker(tmp_path, act), LaunchFolder(str(tmp_path / "run")), local.Plan(processes=processes, grace=10, **plan))


def starts(tmp_path) -> list[int]:
    return [len(p.read_text()) for p in sorted(tmp_path.glob("starts_*"))]


def record(tmp_path) -> dict:
    return LaunchFolder(str(tmp_path / "run")).read()


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@contextlib.contextmanager
def launched(tmp_path, act: str, processes: int = 2):
    """A launcher in a process of its own, with its workers running."""
    argv = [sys.executable, "-c", LAUNCHER, str(tmp_path / "run"), str(processes), *worker(tmp_path, act)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            until(lambda: len(starts(tmp_path)) == processes and "start" in (tmp_path / "run/logs/worker_0.log").read_text().partition("\n")[2])
            yield child
        finally:
            child.kill()


def test_processes_know_their_places_and_their_logs_are_kept(tmp_path, capfd):
    assert launch(tmp_path, "say:done", devices_per_process=3) == 0
    logs = [(tmp_path / f"run/logs/worker_{i}.log").read_text().splitlines() for i in range(2)]
    assert [log[1:] for log in logs] == [[f"worker {i} of 2, start 1", "done"] for i in range(2)]
    out = capfd.readouterr().out
    assert "worker 0 of 2" in out and "worker 1 of 2" not in out  # The first process's output alone is shown.
    commands = [line for line in out.splitlines() if line.startswith("$ ")]
    assert len(commands) == 2 and all("JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=3" in line for line in commands)
    assert ["VIMLAB_PROCESS_ID=0" in commands[0], "VIMLAB_PROCESS_ID=1" in commands[1]] == [True, True]
    assert record(tmp_path)["outcome"] == "finished" and [w["code"] for w in record(tmp_path)["workers"]] == [0, 0]


def test_what_is_shown_of_a_log(tmp_path, capfd):
    """All but the lines of CPUs' collectives, wherever a look cuts them."""
    log = tmp_path / "log"
    log.write_text("old\n")
    shown = Shown(log, 4)
    for part in ("[Glo", "o] Rank 0 is connected to 1\nstep 1", "\rstep 2\n[Gloo] Rank 1 ", "is\n[Globe]", " kept\nlast"):
        with log.open("a") as file:
            file.write(part)
        shown.step()
    assert capfd.readouterr().out == "step 1\rstep 2\n[Globe] kept\nlast"


def test_one_process_is_not_told_of_others(monkeypatch):
    assert not any(k.startswith("VIMLAB") for k in local.Plan(processes=1).environment(0, 1))


def test_a_lost_process_ends_the_others_and_all_start_again(tmp_path, capfd):
    assert launch(tmp_path, "meet;1.1=kill:9;.1=sleep:60", restarts=1) == 0
    assert starts(tmp_path) == [2, 2]
    assert "worker 1 was ended by SIGKILL" in capfd.readouterr().err
    assert (tmp_path / "run/logs/worker_1.log").read_text().count("==== start") == 2


def test_restarts_end(tmp_path):
    assert launch(tmp_path, "meet;1=kill:9;sleep:60", restarts=1) == 75
    assert starts(tmp_path) == [2, 2]


def test_a_stop_of_the_run_itself_lets_the_others_end(tmp_path):
    assert launch(tmp_path, "meet;1=exit:75;sleep:0.5;exit:75", restarts=0) == 75
    assert not list(tmp_path.glob("saved_*"))  # They were not asked to: they had saved together.


def test_a_mistake_is_not_repeated_and_its_sentence_is_shown(tmp_path, capfd):
    assert launch(tmp_path, "meet;1=refuse:the key is wrong;sleep:0.5", restarts=5, retries=5) == 2
    assert starts(tmp_path) == [1, 1]
    assert "not started again: the key is wrong" in capfd.readouterr().err
    assert record(tmp_path)["why"] == "the key is wrong"


def test_a_failure_is_retried_only_as_often_as_asked(tmp_path):
    assert launch(tmp_path, "exit:3", processes=1, restarts=5) == 3
    assert starts(tmp_path) == [1]
    assert launch(tmp_path, "0.2=exit:3", processes=1, retries=1) == 0
    assert starts(tmp_path) == [3]


def test_dry_run_starts_nothing(tmp_path, capfd):
    argv = ["launch", "local", "-n", "2", "--dry-run", "--", "train", "--config", "c.py", "--workdir", str(tmp_path / "run")]
    assert cli.main(argv) == 0
    assert capfd.readouterr().out.count("-m vimlab train --config c.py") == 2 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process(tmp_path, number):
    with launched(tmp_path, "sleep:60") as child:
        child.send_signal(number)
        out, _ = child.communicate(timeout=20)
        assert child.returncode == 75 and "the same command goes on" in out
    # SIGINT ends the program with KeyboardInterrupt; SIGTERM makes it save.
    assert sorted(p.name for p in tmp_path.glob("saved_*")) == (["saved_0", "saved_1"] if number == signal.SIGTERM else [])


def test_status_logs_and_stop(tmp_path, capfd):
    run = str(tmp_path / "run")
    assert cli.main(["launch", "status", "--workdir", run]) == 2
    assert "nothing was launched" in capfd.readouterr().err
    with launched(tmp_path, "say:working;sleep:60") as child:
        with pytest.raises(ConfigError, match="is running already.*launch stop"):
            launch(tmp_path, "say:second")
        assert starts(tmp_path) == [1, 1]
        until(lambda: "working" in (tmp_path / "run/logs/worker_1.log").read_text())
        assert cli.main(["launch", "status", "--workdir", run]) == 0
        out = capfd.readouterr().out
        assert "running, start 1" in out and sum(line.startswith("  worker") and line.endswith(" working") for line in out.splitlines()) == 2
        assert cli.main(["launch", "logs", "--workdir", run, "--worker", "1", "--lines", "1"]) == 0
        assert capfd.readouterr().out.splitlines()[-1] == "working"
        assert cli.main(["launch", "logs", "--workdir", run, "--worker", "7"]) == 2
        assert "there is: 0, 1" in capfd.readouterr().err
        with subprocess.Popen([sys.executable, "-m", "vimlab", "launch", "logs", "--follow", "--workdir", run], cwd=ROOT, stdout=subprocess.PIPE,
                              text=True) as follower:  # fmt: skip
            assert "local launch on" in follower.stdout.readline()
            assert cli.main(["launch", "stop", "--workdir", run]) == 0
            assert follower.stdout.read().splitlines()[-1] == "working" and follower.wait(20) == 0
        assert child.wait(20) == 75
    assert len(list(tmp_path.glob("saved_*"))) == 2
    capfd.readouterr()
    assert cli.main(["launch", "status", "--workdir", run]) == 75
    assert cli.main(["launch", "stop", "--workdir", run]) == 0
    assert "nothing is running" in capfd.readouterr().out


def test_workers_of_a_killed_launcher_keep_the_lock_and_can_be_stopped(tmp_path, capfd):
    folder = LaunchFolder(str(tmp_path / "run"))
    with launched(tmp_path, "sleep:60") as child:
        child.kill()
        child.wait()
        assert folder.is_held()
        with pytest.raises(ConfigError, match="is running already"):
            launch(tmp_path, "say:second")
        assert cli.main(["launch", "stop", "--workdir", folder.workdir]) == 0
    assert not folder.is_held() and len(list(tmp_path.glob("saved_*"))) == 2
    assert cli.main(["launch", "status", "--workdir", folder.workdir]) == 75
    assert "its launcher was killed" in capfd.readouterr().out
    assert launch(tmp_path, "say:third") == 0


def test_a_process_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "ENDING", 0.3)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    argv = [sys.executable, "-c", f"import os\nif os.environ['VIMLAB_PROCESS_ID'] == '1': os.kill(os.getpid(), 9)\n{stubborn}"]
    assert local.launch(argv, LaunchFolder(str(tmp_path / "run")), local.Plan(processes=2, restarts=0)) == 75
    assert [w["code"] for w in record(tmp_path)["workers"]] == [-9, -9]
    assert record(tmp_path)["why"].startswith("worker 1 was ended by SIGKILL")  # The other was ended for its sake.


def test_where_logs_go(monkeypatch, tmp_path):
    assert workdir_of(["train", "--workdir=a/b"]) == workdir_of(["train", "--workdir", "a/b", "--x"]) == "a/b"
    with pytest.raises(ConfigError, match="names no --workdir"):
        workdir_of(["train", "--config", "c.py"])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert LaunchFolder("gs://bucket/a/run").path == tmp_path / "vimlab/gs/bucket/a/run"
    assert [slug(w, 28) for w in ("gs://b/Parti_3B/", "runs/20b", "a" * 40)] == ["parti-3b", "run-20b", "a" * 28]


def test_mistakes_in_launching_are_one_sentence(capfd, tmp_path):
    def mistake(*argv):
        assert cli.main(["launch", *argv]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        return line

    assert "give the vimlab command to launch after `--`" in mistake("local", "-n", "2")
    assert "'trian' is none" in mistake("local", "-n", "2", "--", "trian", "--workdir", "w")
    assert "names no --workdir" in mistake("local", "-n", "2", "--", "train")
    assert "takes no command" in mistake("status", "--workdir", str(tmp_path), "--", "train")


@pytest.mark.parametrize("worker_id", [0, 1])
def test_records_are_json_that_says_who_runs(tmp_path, worker_id):
    assert launch(tmp_path, "say:x") == 0
    told = json.loads((tmp_path / "run/logs/launch.json").read_text())
    assert told["workers"][worker_id]["pid"] != told["launcher"] == os.getpid()
