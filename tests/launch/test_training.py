"""Real training through `vimlab launch local`: one of two processes is killed, and the run goes on by itself to the end."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from quick import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 30


def test_a_run_whose_process_is_killed_goes_on(tmp_path):
    run = tmp_path / "run"
    tower = [f"--config.model.{part}.depth=1" for part in ("encoder", "decoder")]
    command = ["train", "--config", "configs/vitvq_emoji.py:smoke", "--workdir", str(run), f"--config.duration={STEPS} steps", "--config.batch_size=4",
               "--config.evals.reconstruction=none", "--config.evals.codebook=none", "--config.log.tensorboard=false",
               "--config.model.image_size=16", *tower]  # fmt: skip
    argv = [sys.executable, "-m", "vimlab", "launch", "local", "-n", "2", "--devices-per-process", "1", "--restarts", "1", "--", *command]
    env = os.environ | {"XLA_FLAGS": flags()}
    with subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        try:
            end = time.monotonic() + 400
            while not list((run / "checkpoints").glob("*/checksums.json")):
                assert child.poll() is None and time.monotonic() < end, child.stdout.read()
                time.sleep(0.05)
            os.kill(json.loads((run / "logs/launch.json").read_text())["workers"][1]["pid"], signal.SIGKILL)
            out, _ = child.communicate(timeout=400)
        finally:
            child.kill()
    assert child.returncode == 0, out
    assert "worker 1 was ended by SIGKILL" in out and "start 2 follows, 0 restarts left" in out
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert len(starts) == 2 and 0 < starts[1]["step"] < STEPS
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(5, STEPS + 1, 5))
    assert (run / "logs/worker_1.log").read_text().count("==== start") == 2
