"""What launchers start on each host: its log, its exit code, its signals, and its end when another takes its place."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from vimlab.launch import worker
from vimlab.launch.worker import worker_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The worker's own front, with a program of ours in the place of vimlab.
FRONT = "import sys; from vimlab.launch import worker; sys.exit(128 - c if (c := worker.run(sys.argv[4:], sys.argv[1], sys.argv[2], sys.argv[3] or None)) < 0 else c)"
LASTING = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('ready', flush=True); time.sleep(60)"


def start(tmp_path, program: str, alone: str = "", **kwargs) -> subprocess.Popen:
    # The name of the module is among the arguments, as where `python -m` starts it: by it a worker is known.
    argv = [sys.executable, "-c", f"# vimlab.launch.worker\n{FRONT}", str(tmp_path / "run"), "0", alone, sys.executable, "-c", program]
    return subprocess.Popen(argv, cwd=ROOT, env=os.environ | {"HOME": str(tmp_path)}, stdout=subprocess.PIPE, text=True, **kwargs)


def log(tmp_path) -> list[str]:
    return (tmp_path / "run/logs/worker_0.log").read_text().splitlines()


def test_workers_are_told_apart(monkeypatch):
    assert worker_name({"VIMLAB_WORKER": "1_3", "SLURM_PROCID": "7"}) == "1_3"
    assert worker_name({"SLURM_PROCID": "0"}) == "0"
    monkeypatch.setattr("socket.gethostname", lambda: "t1v-n-abc-w-3.zone.internal")
    assert worker_name({}) == "t1v-n-abc-w-3"


@pytest.mark.parametrize("program, code", [("print('hello')", 0), ("print('hello'); raise SystemExit(2)", 2), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_output_is_shown_and_kept_and_the_exit_code_passed_on(tmp_path, program, code):
    with start(tmp_path, program) as child:
        out = child.stdout.read()
    assert child.returncode == code and out == ("hello\n" if "hello" in program else "")
    assert log(tmp_path)[0].startswith("==== start at ") and log(tmp_path)[1:] == out.splitlines()


def test_signals_are_passed_on(tmp_path):
    with start(tmp_path, LASTING) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 75


def test_work_goes_on_where_nobody_listens_any_more(tmp_path):
    with start(tmp_path, "import time\nfor i in range(4): print(i, flush=True); time.sleep(0.2)") as child:
        child.stdout.readline()
        child.stdout.close()
        assert child.wait(20) == 0
    assert log(tmp_path)[-4:] == ["0", "1", "2", "3"]


def test_a_second_worker_of_a_name_takes_the_place_of_the_first(tmp_path):
    with start(tmp_path, LASTING, "run") as first:
        assert first.stdout.readline() == "ready\n"
        with start(tmp_path, "print('second')", "run") as second:
            assert second.stdout.read() == "second\n" and second.wait(20) == 0
        assert first.wait(20) == 75  # It had saved before the second began.
    assert [line for line in log(tmp_path) if not line.startswith("====")] == ["ready", "second"]
    assert (tmp_path / ".vimlab/run.log").resolve() == tmp_path / "run/logs/worker_0.log"


def test_a_number_that_another_process_has_now_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        (tmp_path / ".vimlab").mkdir()
        (tmp_path / ".vimlab/run.pid").write_text(f"{other.pid} {other.pid}")
        worker.take_over("run")
        assert other.poll() is None and (tmp_path / ".vimlab/run.pid").read_text() == str(os.getpid())
        other.kill()


def test_a_log_in_a_bucket_is_copied_and_what_was_there_stays(tmp_path, monkeypatch, capfd):
    """A folder in the place of the bucket, as etils' path layer shows either."""
    monkeypatch.setattr(worker, "is_bucket", lambda path: True)
    monkeypatch.setattr(worker, "COPY_SECONDS", 0.05)
    program = "import time; print('one', flush=True); time.sleep(0.5); print('two')"
    target = tmp_path / "logs/worker_3.log"
    with worker.Log(str(tmp_path), "3") as log:
        log.write(b"one\n")
        end = time.monotonic() + 10
        while not (target.exists() and target.read_text() == "one\n"):
            assert time.monotonic() < end
            time.sleep(0.02)
        log.write(b"two\n")
    assert target.read_text() == "one\ntwo\n"
    assert worker.run([sys.executable, "-c", program], str(tmp_path), "3") == 0
    lines = target.read_text().splitlines()
    assert lines[:2] == lines[3:] == ["one", "two"] and lines[2].startswith("==== start")
    assert "one" in capfd.readouterr().out and not log.path.exists()
