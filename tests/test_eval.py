"""Which checkpoints `vimlab eval` looks at: the newest, the best by a figure, all, or each as it appears."""

import argparse
import json
import pathlib
import types

import pytest

from vimlab import eval as command
from vimlab.checkpoint import Checkpointer
from vimlab.config import ConfigError
from vimlab.run import Run


class Checkpoints(Checkpointer):
    """Commits steps, one each time it is asked for the newest."""

    def __init__(self, steps):
        self.directory, self._coming = pathlib.Path("run/checkpoints"), list(steps)

    def latest(self):
        return self._coming.pop(0) if self._coming else None

    def steps(self):
        return [step for step in self._coming if step is not None]


def asked(workdir=None, step="newest", best="", watch=False):
    return argparse.Namespace(workdir=workdir, step=step, best=best, watch=watch)


def steps(args, checkpoints, total=30, kind="tokenizer"):
    run = object.__new__(Run)
    run.__dict__.update(total_steps=total, config=types.SimpleNamespace(NAME=kind))
    return list(command._steps(args, run, Checkpoints(checkpoints)))


def test_watching_ends_with_the_last_step(monkeypatch):
    waits = []
    monkeypatch.setattr(command.time, "sleep", waits.append)
    assert steps(asked(watch=True), [None, 10, 10, 20, None, 30]) == [10, 20, 30]
    assert waits == [command.WATCH_SECONDS] * 3, "once before the first, once while nothing is new, once while there is none"


def test_steps_are_named():
    assert steps(asked(), [10, 20]) == [None] and steps(asked(step="all"), [10, 20]) == [10, 20] and steps(asked(step="20"), [10, 20]) == [20]
    for args, message in ((asked(step="latest"), "--step is 'latest'"), (asked(step="10", watch=True), "--step 10 has no place beside it")):
        with pytest.raises(ConfigError, match=message):
            steps(args, [10])


def test_the_best_step_is_that_of_its_figure(tmp_path):
    for step, psnr, bits in ((10, 20.0, 5.0), (20, 22.0, 4.0), (30, 21.0, 3.0), (40, 30.0, 2.0)):
        for name, key, value in (("reconstruction", "psnr", psnr), ("likelihood", "bits_per_token", bits)):
            (tmp_path / "evals").mkdir(exist_ok=True)
            (tmp_path / "evals" / f"{name}_{step:08d}.json").write_text(json.dumps({"metrics": {key: value}}))
    there = [10, 20, 30, 35]  # The checkpoint of step 40 is gone, and 35 was never evaluated.
    assert steps(asked(tmp_path, "best"), there) == [20]
    assert steps(asked(tmp_path, "best"), there, kind="generator") == [30]
    assert steps(asked(tmp_path, "best", "-reconstruction/psnr"), there) == [10]
    with pytest.raises(ConfigError, match="goes by codebook/usage, but of the checkpoints at .10, 20, 30, 35. none has it yet"):
        steps(asked(tmp_path, "best", "codebook/usage"), there)
