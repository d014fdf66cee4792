"""Real trainings: a sweep that was killed and goes on gives the table of one that was not."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from quick import flags

from vimlab.sweep import cli
from vimlab.sweep.store import load

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = [
    "--config.model.image_size=16", "--config.model.encoder.depth=1", "--config.model.decoder.depth=1", "--config.duration=16",
    "--config.checkpoint.every=2", "--config.evals.reconstruction.every=16", "--config.evals.codebook.every=16",
]  # fmt: skip


def run(workdir: pathlib.Path) -> list[str]:
    words = ["run", "configs/vitvq_emoji.py:smoke", "--over", "seed=0,1", "--workdir", str(workdir), *FLAGS]
    return [sys.executable, "-m", "vimlab", "sweep", *words]


def test_killed_and_rerun_the_table_is_that_of_an_uninterrupted_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLA_FLAGS", flags())
    subprocess.run(run(tmp_path / "straight"), cwd=ROOT, check=True)

    killed = tmp_path / "killed"
    first = subprocess.Popen(run(killed), cwd=ROOT)
    trial, until = killed / "trials/seed=0", time.monotonic() + 120
    while not (trial / "checkpoints/2/checksums.json").exists():
        assert time.monotonic() < until and first.poll() is None
        time.sleep(0.02)
    # As when the machine dies: the runner and its trial at once.
    running = [p for p in pathlib.Path("/proc").glob("[0-9]*") if str(trial) in cmdline(p)]
    first.kill()
    for process in running:
        os.kill(int(process.name), signal.SIGKILL)
    first.wait()
    while load(killed).locked(load(killed).trials[0]):  # The last of its threads are still ending.
        assert time.monotonic() < until
        time.sleep(0.02)
    assert running and [load(killed).state(t)[0] for t in load(killed).trials] == ["unfinished", "waiting"]

    subprocess.run(run(killed), cwd=ROOT, check=True)
    starts = [start["step"] for start in json.loads((trial / "run.json").read_text())["starts"]]
    assert len(starts) == 2 and starts[1] > 0, "it went on, and did not begin anew"
    tables = []
    for workdir in (killed, tmp_path / "straight"):
        capsys.readouterr()
        assert cli.main(["table", str(workdir), "--columns", "reconstruction/psnr,codebook/perplexity,train/loss", "--csv"]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] and tables[0].count("done") == 2
    assert cli.main(run(killed)[4:]) == 0 and capsys.readouterr().out.count("done before") == 2


def cmdline(process: pathlib.Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""  # It has ended.
