"""Running trials: what is done stays, what was preempted goes on, what failed says why; two runners, signals, launchers."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from vimlab.config import ConfigError
from vimlab.sweep import cli
from vimlab.sweep.runner import last_sentence
from vimlab.sweep.store import load

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = shlex.join([sys.executable, "-S", str(ROOT / "tests/sweep/stand_in.py")])
BASE = "configs/vitvq_emoji.py:smoke"


def sweep(workdir, over, *flags):
    return ["run", BASE, "--workdir", str(workdir), "--over", over, "--program", PROGRAM, *flags]


def starts(workdir, name):
    path = workdir / "trials" / name / "starts"
    return len(path.read_text().split()) if path.exists() else 0


def states(workdir):
    found = load(workdir)
    return {t.name: found.state(t)[0] for t in found.trials}


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


def test_rerunning_goes_on_and_leaves_what_is_done(tmp_path, capsys):
    work = tmp_path / "w"
    assert cli.main(sweep(work, "seed=0,5,6,7,9,1")) == 1
    assert states(work) == {"seed=0": "done", "seed=5": "failed", "seed=6": "failed", "seed=7": "done", "seed=9": "unfinished", "seed=1": "done"}
    assert [starts(work, f"seed={s}") for s in (0, 5, 6, 7, 9, 1)] == [1, 1, 1, 2, 3, 1]
    found = load(work)
    assert [found.state(t)[1] for t in found.trials][1:3] == ["seed 5 is refused; take another", "RuntimeError: a mistake in the program"]
    said = capsys.readouterr().out
    assert "vimlab train --config configs/vitvq_emoji.py:smoke --workdir" in said and "3 done, 2 failed, 1 unfinished" in said

    cli.main(sweep(work, "seed=0,5,6,7,9,1"))  # The failures stay, the lost one is tried again.
    assert [starts(work, f"seed={s}") for s in (0, 5, 6, 7, 9, 1)] == [1, 1, 1, 2, 6, 1]
    assert cli.main(sweep(work, "seed=0,5,7", "--retry-failed")) == 1
    assert starts(work, "seed=5") == 2
    assert cli.main(sweep(work, "seed=0,7")) == 0


def test_another_config_under_the_same_name_is_another_run(tmp_path):
    work = tmp_path / "w"
    assert cli.main(sweep(work, "seed=0")) == 0
    assert cli.main(sweep(work, "seed=0", "--config.duration=7")) == 0
    assert starts(work, "seed=0") == 2


def test_evaluations_follow_the_training(tmp_path, capsys):
    work = tmp_path / "w"
    assert cli.main(sweep(work, "seed=0", "--evals", "reconstruction")) == 0
    assert (work / "trials/seed=0/judged").exists() and f"vimlab eval --workdir {work}/trials/seed=0 --evals reconstruction" in capsys.readouterr().out


def test_dry_run_only_and_index(tmp_path, capsys):
    work = tmp_path / "w"
    assert cli.main(sweep(work, "seed=0,1,2", "--dry-run")) == 0
    assert not work.exists() and capsys.readouterr().out.count("vimlab train") == 3
    assert cli.main(sweep(work, "seed=0,1,2", "--index", "1/2")) == 0
    assert states(work) == {"seed=0": "waiting", "seed=1": "done", "seed=2": "waiting"}
    assert cli.main(sweep(work, "seed=0,1,2", "--only", "*2", "--parallel", "2")) == 0
    assert states(work) == {"seed=0": "waiting", "seed=1": "done", "seed=2": "done"}


def test_a_mistake_is_said_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        cli.main(sweep(tmp_path / "w", "seeed=0,1"))
    with pytest.raises(ConfigError, match="evaluator 'recon' is unknown"):
        cli.main(sweep(tmp_path / "w", "seed=0", "--evals", "recon"))
    with pytest.raises(ConfigError, match="--program"):
        cli.main([*sweep(tmp_path / "w", "seed=0"), "--program", "no-such-program run"])
    assert not (tmp_path / "w").exists()
    cli.main(sweep(tmp_path / "w", "seed=0"))
    with pytest.raises(ConfigError, match="choose another --workdir"):
        cli.main(["run", "configs/vitvq_cifar10.py:smoke", "--workdir", str(tmp_path / "w"), "--over", "seed=0"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thing").touch()
    with pytest.raises(ConfigError, match="holds no sweep"):
        cli.main(sweep(tmp_path / "other", "seed=0"))
    with pytest.raises(ConfigError, match="is not the --workdir of a sweep"):
        cli.main(["status", str(tmp_path / "other")])


def test_launchers_get_each_trial_once(tmp_path, capfd):
    work = tmp_path / "w"
    shown = ["--launcher", "slurm", "--launcher-args", "--nodes 2"]
    assert cli.main(sweep(work, "seed=0,1", *shown)) == 0
    assert capfd.readouterr().out.count("job 17 submitted") == 2 and not work.exists()  # The stand-in does not know what --run is for.
    flags = [*shown[:-1], "--nodes 2 --run"]
    assert cli.main(sweep(work, "seed=0,1", *flags)) == 0
    said = capfd.readouterr().out
    found = re.search(rf"vimlab launch slurm --nodes 2 --run --name (seed-0-\w{{6}}) -- train --config {BASE} --workdir {work}/trials/seed=0", said)
    assert found and "seed=0: job 17 submitted" in said
    assert states(work) == {"seed=0": "submitted", "seed=1": "submitted"}
    cli.main(sweep(work, "seed=0,1", *flags))
    assert capfd.readouterr().out.count("submitted before") == 2
    # What the job leaves in its workdir tells that it is done.
    found = load(work)
    trial, workdir = found.trials[0], found.workdir(found.trials[0])
    (workdir / "checkpoints/20").mkdir(parents=True)
    for name, value in (("run.json", {"total_steps": 20}), ("config.json", trial.config), ("checkpoints/20/checksums.json", {})):
        (workdir / name).write_text(json.dumps(value))
    assert states(work) == {"seed=0": "done", "seed=1": "submitted"}


def test_a_launcher_that_comes_back_with_the_run_is_judged_by_its_code(tmp_path):
    assert cli.main(sweep(tmp_path / "w", "seed=0", "--launcher", "tpu-vm", "--launcher-args", "--zone z --run")) == 0
    assert states(tmp_path / "w") == {"seed=0": "done"}


def test_two_runners_share_a_sweep_and_a_signal_lets_trials_save(tmp_path, capsys):
    """The first runner holds the waiting trial; the second does the rest; SIGTERM ends the first with the trial's state saved."""
    work = tmp_path / "w"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    first = subprocess.Popen([sys.executable, "-m", "vimlab", "sweep", *sweep(work, "seed=8,0,1")], cwd=ROOT, env=environment)
    try:
        wait_for(lambda: starts(work, "seed=8"))
        assert states(work)["seed=8"] == "running"
        assert cli.main(sweep(work, "seed=8,0,1", "--only", "*[80]")) == 75
        assert "seed=8: another runner has it" in capsys.readouterr().out and starts(work, "seed=0") == 1
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 75 and (work / "trials/seed=8/saved").exists()
    finally:
        first.kill()
    assert states(work) == {"seed=8": "unfinished", "seed=0": "done", "seed=1": "waiting"}
    assert cli.main(sweep(work, "seed=8,0")) == 0 and starts(work, "seed=8") == 2 and starts(work, "seed=0") == 1


def test_a_trial_outlives_its_killed_runner_and_is_not_started_twice(tmp_path):
    work = tmp_path / "w"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    first = subprocess.Popen([sys.executable, "-m", "vimlab", "sweep", *sweep(work, "seed=8")], cwd=ROOT, env=environment)
    wait_for(lambda: starts(work, "seed=8"))
    first.kill()
    first.wait()
    assert states(work)["seed=8"] == "running" and cli.main(sweep(work, "seed=8")) == 75
    os.kill(int((work / "trials/seed=8/starts").read_text().split()[0]), signal.SIGTERM)
    wait_for(lambda: states(work)["seed=8"] != "running")
    assert cli.main(sweep(work, "seed=8")) == 0 and starts(work, "seed=8") == 2


def test_what_a_log_says_last(tmp_path):
    log = tmp_path / "log"
    log.write_text("vimlab: error: old\n")
    begin = log.stat().st_size
    log.write_text("vimlab: error: old\nstep 1\rstep 2\nvimlab: error: new; do this\nbye\n")
    assert last_sentence(log) == "new; do this" and last_sentence(log, begin + 34) == "bye"


def test_words_that_do_not_exist(capsys):
    with pytest.raises(ConfigError, match="did you mean 'status'"):
        cli.main(["statuss"])
    assert cli.main(["--help"]) == 0 and "best" in capsys.readouterr().out
