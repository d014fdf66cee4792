"""The benchmark's parent: its statistics, its comparison of outputs, and a child that takes turns. No torch."""

import pathlib
import sys

import numpy as np
import pytest

BENCH = pathlib.Path(__file__).resolve().parents[2] / "tools/bench"
sys.path.insert(0, str(BENCH))

import pair  # noqa: E402

ECHO = """
import numpy as np, pair
class Work:
    def first(self, phase): return {"x/a": np.ones(3), "x/b": np.zeros(1), "y": np.full(2, 2.0)}
    def run(self, phase): print("noise on stdout")
pair.serve(lambda cell, variant, arrays: Work(), lambda cell: {"seed": np.array(cell["seed"])})
"""


def test_paired_ratio_is_the_median_of_rounds_and_its_interval_holds_it():
    ours, theirs = np.array([1.0, 2.0, 4.0, 1.0]), np.array([2.0, 4.0, 8.0, 30.0])
    ratio, low, high = pair.paired_ratio(theirs, ours)
    assert ratio == 2.0 and low == 2.0 and 2.0 <= high <= 30.0
    assert pair.paired_ratio(ours, ours) == (1.0, 1.0, 1.0)


def test_differences_are_relative_and_by_group(tmp_path):
    ours, theirs = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(ours, **{"g/a": np.array([3.0, 0.0]), "g/b": np.array([[4.0]]), "loss": np.array(1.0)})
    np.savez(theirs, **{"g/a": np.array([[3.0], [0.0]]), "g/b": np.array([5.0]), "loss": np.array(1.0)})
    assert pair.differences(ours, theirs) == {"g": pytest.approx(1 / 34**0.5), "loss": 0.0}
    np.savez(theirs, loss=np.array(1.0))
    with pytest.raises(ValueError, match="g/a"):
        pair.differences(ours, theirs)


def test_a_child_answers_in_turn_and_says_why_it_ended(tmp_path):
    child = pair.Child([sys.executable, "-c", ECHO], {"PYTHONPATH": str(BENCH)}, None)
    child.ask(do="common", cell={"seed": 7}, out=f"{tmp_path}/common.npz")
    assert np.load(tmp_path / "common.npz")["seed"] == 7
    child.ask(do="make", cell={}, variant="v", arrays=f"{tmp_path}/common.npz")
    assert child.ask(do="first", variant="v", phase="p", out=f"{tmp_path}/out.npz")["seconds"] > 0
    assert set(np.load(tmp_path / "out.npz")) == {"x/a", "x/b", "y"}
    assert len(child.ask(do="time", variant="v", phase="p", repeats=3)["wall"]) == 3
    with pytest.raises(pair.ChildError, match="KeyError: 'absent'"):
        child.ask(do="time", variant="absent", phase="p", repeats=1)
    child.close()
