"""The benchmarks: statistics, comparison of outputs, children that take turns, vimlab's side of the generator's. No torch."""

import ast
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

BENCH = pathlib.Path(__file__).resolve().parents[2] / "tools/bench"
sys.path.insert(0, str(BENCH))

import cells  # noqa: E402
import compare  # noqa: E402
import generator_cells  # noqa: E402
import generator_jax_side  # noqa: E402
import jax_step  # noqa: E402
import pair  # noqa: E402
import tables  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled_quickly")

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


def test_whole_numbers_differ_by_the_share_that_is_not_equal(tmp_path):
    ours, theirs = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(ours, ids=np.array([[1, 2], [3, 4]], np.int32))
    np.savez(theirs, ids=np.array([[1, 900], [3, 4]]))
    assert pair.differences(ours, theirs) == {"ids": 0.25}


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


# The generator's cells, shrunk: what is compared and how stays.
NARROW = {"model": {"depth": 1, "width": 16, "heads": 2, "mlp": 32}, "side": 4, "codes": 32, "classes": 5, "batch": 3}


def shrunk(name: str) -> dict:
    cell = generator_cells.CELLS[name] | NARROW
    return cell | ({"text": {"depth": 1, "length": 6}} if cell["text"] else {})


def test_cached_and_uncached_decoding_of_the_benchmark_draw_the_same_ids():
    cell = shrunk("uncached_64") | {"compared": 9, "timed": 2}
    arrays = generator_jax_side.common_arrays(cell)
    cached, uncached = (generator_jax_side.make(cell, variant, arrays) for variant in ("jax", "uncached"))
    ids = cached.first("decode")["ids"]
    np.testing.assert_array_equal(ids, uncached.first("decode")["ids"])
    assert ids.shape == (3, 9) and len(np.unique(ids)) > 3
    uncached.run("decode")


def test_a_step_of_the_benchmark_starts_from_the_common_weights():
    cell = shrunk("train_parti")
    arrays = generator_jax_side.common_arrays(cell)
    work = generator_jax_side.make(cell, "jax", arrays)
    outputs = work.first("step")
    names = {k for k in arrays if k.startswith("generator/")}
    assert {k.removeprefix("gradients of ") for k in outputs} == names | {"loss"}
    model = generator_jax_side.make_model(cell)
    ids, condition = (jnp.asarray(arrays[k]) for k in ("tokens", "text"))
    params = jax_step.fill(work.step.initial.params, arrays)["generator"]
    loss, grads = jax.jit(jax.value_and_grad(lambda p: model.apply({"params": p}, ids, condition).mean()))(params)
    np.testing.assert_allclose(outputs["loss"], loss, rtol=1e-5)
    for k, g in jax_step.flatten({"generator": grads}).items():
        np.testing.assert_allclose(outputs[f"gradients of {k}"], g, rtol=1e-3, atol=1e-6, err_msg=k)
    work.run("step")


def test_the_filter_of_the_benchmark_keeps_what_a_sort_keeps():
    cell = generator_cells.CELLS["filter"] | {"rows": 4, "codes": 64, "k": 9, "p": 0.8}
    arrays = generator_jax_side.common_arrays(cell)
    kept = generator_jax_side.make(cell, "jax", arrays).first("filter")["kept"]
    for logits, row in zip(arrays["logits"], kept, strict=True):
        order = np.argsort(-logits)[:9]
        shares = np.exp(logits[order]) / np.exp(logits[order]).sum()
        assert set(np.flatnonzero(row)) == set(order[np.cumsum(shares) - shares < 0.8])


def test_cells_name_peers_that_there_are_and_what_their_children_make():
    sides = {"jax_side.py": cells.CELLS, "generator_jax_side.py": generator_cells.CELLS}
    for script, found in sides.items():
        kinds = {n.value for n in ast.walk(ast.parse((BENCH / script).read_text())) if isinstance(n, ast.Constant)}
        for name, cell in found.items():
            assert cell["kind"] in kinds and set(cell["peers"].values()) <= {"jax", "torch"}, name
            named = {*cell["targets"], *cell.get("apart", ()), *cell.get("extrapolated", {})} - {"torch"}
            assert named <= set(cell["peers"]) and sum(cell["phases"].values()) == 1, name


def test_a_cell_is_measured_compared_and_printed(tmp_path, monkeypatch, capsys):
    """Without torch: cached against uncached decoding through the whole parent, the time of one position extrapolated."""
    cell = shrunk("uncached_64") | {"compared": 2, "timed": 1, "extrapolated": {"uncached": (1, 16)}, "repeats": 1, "rounds": 2}
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--seconds", "0", "--only", "c*", "--json", str(out), "--torch-python", "absent"])
    scripts = {"jax": "generator_jax_side.py", "torch": "generator_torch_side.py"}
    assert compare.main("about", {"cached": cell, "other": shrunk("decode_4")}, scripts, ["torch"], 1.0) == 0
    printed = capsys.readouterr().out
    assert "ids agree to 100.00%" in printed and "timed on 1 of 16 positions" in printed and "| 5.0 | " in printed
    assert out.exists() and "decode_4" not in printed
    monkeypatch.setattr(sys, "argv", ["bench", "--torch-python", "absent"])
    assert compare.main("about", {"other": shrunk("decode_4")}, scripts, ["torch"], 1.0) == 2
    assert "no torch at absent" in capsys.readouterr().err


def test_the_summary_aims_at_the_fastest_comparable_torch_and_at_peers_with_targets():
    cell = {
        "peers": {"eager": "torch", "compile": "torch", "gpt2": "torch"}, "apart": ["gpt2"],
        "targets": {"torch": 1.3, "gpt2": 1.7}, "median_ms": {"jax": 1.0, "eager": 3.0, "compile": 2.0, "gpt2": 1.0},
    }  # fmt: skip
    assert tables.aims(cell) == {"gpt2": 1.7, "compile": 1.3}
    assert tables.aims(cell | {"targets": {"eager": 1.8}}) == {"eager": 1.8, "compile": None}
