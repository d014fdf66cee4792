"""Which checkpoints `vimlab eval` looks at: the newest, the best by a figure, all, or each as it appears; what it can do without."""

import argparse
import json
import pathlib
import types

import pytest
from test_train_generator import ROOT, fresh_tokenizer

from vimlab import config as configs
from vimlab import eval as command
from vimlab import run as runs
from vimlab.checkpoint import Checkpointer
from vimlab.config import ConfigError
from vimlab.data.base import DataError, SourceInfo
from vimlab.data.sources import open_source
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


def test_a_generator_is_evaluated_without_the_tokens_that_it_was_trained_on(tmp_path):
    tree = configs.load(f"{ROOT}/configs/parti_shapes.py:smoke,tokenizer={fresh_tokenizer(tmp_path / 'tokenizer')},tokens={tmp_path}/gone").to_dict()
    names = open_source("shapes:test?count=1").info.class_names
    known = {"name": "shapes as tokens", "size": 256, "class_names": list(names), "has_captions": True, "fingerprint": "c0ffee"}
    (tmp_path / "run.json").write_text(json.dumps({"data": known}))
    config = runs.resolve(tree)
    run = Run(config, training=False, trained_on=runs.trained_on(tmp_path))
    assert run.train_source is None and run.total_steps == 20 and run.train_info == SourceInfo(**known | {"class_names": names})
    subject = run.subject(None, 20)
    assert len(subject.source) == 32 and subject.training(10)[0].size == 10, "pixels both"
    with pytest.raises(DataError, match="gone"):
        Run(config, training=False)
    with pytest.raises(DataError, match=r"the classes of 'shapes:train.*' and 'shapes:test.*' differ \(cat"):
        Run(config, training=False, trained_on=SourceInfo("pets", 256, ("cat", *names[1:]), True, "c0ffee"))
    with pytest.raises(ConfigError, match="was trained with another tokenizer .fingerprint 0123"):
        runs.check_identity(run.task, {"identity": run.task.identity | {"tokenizer": "0123"}}, tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="run.json, which tells of the data that the run was trained on, is absent or damaged"):
        runs.trained_on(tmp_path)
