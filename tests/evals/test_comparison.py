"""Results side by side: figures, and whether they are of one protocol."""

import json

import numpy as np
import pytest

from vimlab import eval_compare, pictures
from vimlab.config import ConfigError
from vimlab.evals import comparison


def result(folder, name, step, metrics, **protocol):
    record = {"protocol": {"evaluator": name, "step": step, "count": 8, "split": "test", "crop": {"name": "center"}} | protocol, "metrics": metrics}
    (folder / "evals").mkdir(parents=True, exist_ok=True)
    (folder / "evals" / f"{name}_{step:08d}.json").write_text(json.dumps(record | {"arrays": {}}))


@pytest.fixture
def two(tmp_path):
    """Two runs: the same protocol for reconstruction, another crop and extractor for fid; codebook in one alone."""
    a, b = tmp_path / "first", tmp_path / "second"
    for folder, psnr, fid, crop, network in ((a, 20.5, 9.25, "center", "inception-v3-fid"), (b, 21.5, None, "resize", "random-conv-v1")):
        result(folder, "reconstruction", 100, {"psnr": psnr - 5}, command="x")
        result(folder, "reconstruction", 200, {"psnr": psnr}, command=f"vimlab eval --workdir {folder}")
        result(folder, "fid", 200, {"fid": fid, "kid": 0.5}, crop={"name": crop}, extractor=network)
        pictures.save_png(folder / "pictures" / "drawn_00000200.png", np.zeros((4, 4, 3), np.uint8))
    result(a, "codebook", 200, {"usage": 1.0})
    return str(a), str(b)


def test_figures_and_differences(two):
    columns = [comparison.read(place) for place in two]
    tables = {t.evaluator: t for t in comparison.tables(columns)}
    assert sorted(tables) == ["fid", "reconstruction"], "the codebook is in one alone"
    assert tables["reconstruction"].figures == [("psnr", [20.5, 21.5])] and tables["reconstruction"].differences == []
    assert [key for key, _ in tables["reconstruction"].origin] == ["command"]
    assert dict(tables["fid"].differences) == {"crop.name": ["center", "resize"], "extractor": ["inception-v3-fid", "random-conv-v1"]}
    assert tables["fid"].figures == [("fid", [9.25, None]), ("kid", [0.5, 0.5])]
    text = comparison.as_text(columns, list(tables.values()))
    assert "the same protocol" in text and "not the same protocol" in text and "9.25" in text and "—" in text


def test_places_are_runs_their_steps_or_single_results(two):
    assert comparison.read(two[0] + "@100").results["reconstruction"]["metrics"] == {"psnr": 15.5}
    assert list(comparison.read(two[0] + "/evals/fid_00000200.json").results) == ["fid"]
    for place, message in (
        (two[0] + "@150", r"no result of step 150; its results are of steps \[100, 200\]"),
        (two[0] + "@last", "'last' is no step"),
        (two[0] + "/pictures", "holds no evals folder and is no result file"),
        (two[0] + "/pictures/drawn_00000200.png", "is no result of `vimlab eval`"),
    ):
        with pytest.raises(ConfigError, match=message):
            comparison.read(place)
    with pytest.raises(ConfigError, match="no evaluator has results in two"):
        comparison.tables([comparison.read(two[0] + "/evals/codebook_00000200.json"), comparison.read(two[1])])


def test_the_command_prints_and_writes(two, tmp_path, capsys):
    assert eval_compare.main([*two, "--out", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text()
    assert "Not the same protocol" in page and "random-conv-v1" in page and page.count("data:image/png") == 2 and "http:" not in page and "https:" not in page
    assert "psnr" in capsys.readouterr().out
    assert eval_compare.main([*two, "--out", str(tmp_path / "both.json")]) == 0
    assert len(json.loads((tmp_path / "both.json").read_text())) == 2
    with pytest.raises(ConfigError, match="must end in .html or .json"):
        eval_compare.main([*two, "--out", "both.txt"])
    with pytest.raises(ConfigError, match="nothing to compare with"):
        eval_compare.main(two[:1])
