"""`vimlab doctor --pod`: alone, as two real processes, with one that never comes, with one that hangs, and each verdict by itself."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from vimlab import cli
from vimlab.doctor_pod import read, sum_up_batches, sum_up_devices, sum_up_reduction, within

ROOT = pathlib.Path(__file__).resolve().parents[1]
EMOJI = str(ROOT / "configs/vitvq_emoji.py:smoke")


def lines(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines() if line and line[0].islower())


def run(*argv: str, **env: str) -> subprocess.CompletedProcess:
    ours = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": ""}
    return subprocess.run([sys.executable, *argv], cwd=ROOT, env=os.environ | ours | env, capture_output=True, text=True, timeout=120)


def test_alone_with_a_config(capfd, tmp_path):
    assert cli.main(["doctor", "--pod", "--workdir", str(tmp_path / "w"), "--config", EMOJI, "--config.batch_size=16"]) == 0
    told = lines(capfd.readouterr().out)
    assert told["devices"] == "8 x cpu on each of 1 process, 8 in all"
    assert told["all-reduce"].startswith("1 + … + 8 over all devices is 36")
    assert "image (16, 32, 32, 3) on each process, 16 rows in all" in told["data"] and told["all"] == "is well"
    assert list((tmp_path / "w").iterdir()) == []


def test_what_is_wrong_is_told_and_the_other_checks_run(capfd, tmp_path):
    (tmp_path / "file").write_text("")
    assert cli.main(["doctor", "--pod", "--workdir", str(tmp_path / "file"), "--timeout", "1", "--config", EMOJI, "--config.batch_size=12"]) == 1
    out = capfd.readouterr().out
    told = lines(out)
    assert told["writing"].startswith("FAILED: process 0:") and "is not to be seen here" in told["reading"]
    assert "use a multiple of 8" in told["data"] and told["all-reduce"].startswith("1 +") and "3 of 5 checks failed" in out


def test_options_of_the_pod_check_need_it(capfd):
    assert cli.main(["doctor", "--config", EMOJI]) == 2
    assert "add --pod" in capfd.readouterr().err


def test_two_processes(tmp_path):
    done = run("-m", "vimlab", "launch", "local", "-n", "2", "--devices-per-process", "2", "--", "doctor", "--pod", "--workdir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    told = lines(done.stdout)
    assert told["processes"] == "2 came" and told["devices"] == "2 x cpu on each of 2 processes, 4 in all"
    assert told["all-reduce"].startswith("1 + … + 4 over all devices is 10")
    assert "image (8, 32, 32, 3) on each process, 16 rows in all" in told["data"] and told["all"] == "is well"
    assert [p.name for p in tmp_path.iterdir()] == ["logs"]


def test_one_that_never_comes(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    begin = time.monotonic()
    done = run("-m", "vimlab", "doctor", "--pod", "--workdir", str(tmp_path), "--timeout", "2", VIMLAB_COORDINATOR=f"127.0.0.1:{port}",
               VIMLAB_NUM_PROCESSES="2", VIMLAB_PROCESS_ID="0")  # fmt: skip
    assert done.returncode != 0 and "not all 2 processes came" in done.stderr.splitlines()[-1]
    assert time.monotonic() - begin < 60


def test_a_check_that_hangs_ends_within_the_time_out(tmp_path):
    program = ("import sys, time; from vimlab import cli, doctor_pod; doctor_pod.all_reduce = lambda: time.sleep(600); "
               f"cli.main(['doctor', '--pod', '--timeout', '4', '--workdir', {str(tmp_path)!r}])")  # fmt: skip
    done = run("-c", program)
    assert done.returncode == 1 and "FAILED: process 0: did not end within 4 s" in done.stdout and "cannot be broken off" in done.stdout
    assert "writing" not in done.stdout


def test_within():
    assert within(lambda: 3, 5) == {"found": 3}
    assert within(lambda: time.sleep(2), 0.05) == {"error": "did not end within 0.05 s", "stuck": True}
    assert within(lambda: 1 / 0, 5) == {"error": "division by zero"}


@pytest.mark.parametrize("sum_up, found, sentence", [
    (sum_up_devices, [{"here": 4, "all": 4, "kind": "a"}] * 2, "which is 8, but see"),
    (sum_up_devices, [{"here": 4, "all": 8, "kind": k} for k in "ab"], "4 x a, 4 x b"),
    (sum_up_reduction, [{"sum": 10.0, "devices": 4, "seconds": 0}, {"sum": 9.0, "devices": 4, "seconds": 0}], "process 1 found 9 .*, which is 10"),
    (sum_up_batches, [{"rows": [0, 1], "batch": 4, "data": "d", "shapes": {}, "seconds": 0}] * 2, "2 of the 4 rows"),
    (sum_up_batches, [{"rows": [i], "batch": 2, "data": d, "shapes": {}, "seconds": 0} for i, d in enumerate("ab")], "read different data: a, b"),
])  # fmt: skip
def test_verdicts(sum_up, found, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        sum_up(found)


def test_a_folder_that_is_not_shared_is_named(tmp_path):
    files = [tmp_path / f"pod_{i}" for i in range(3)]
    files[0].write_text("pod_0")
    files[1].write_text("another's")
    with pytest.raises(RuntimeError, match="what process 1, 2 wrote to .* is not to be seen here"):
        read(files, 0.2)
