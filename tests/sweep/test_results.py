"""Figures of a sweep against NumPy; the forms in which they are shown."""

import csv
import io
import json
import pathlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from vimlab.config import ConfigError
from vimlab.sweep import Against, Report, cli, page, product, results, seeds, tables, views
from vimlab.sweep.store import Sweep, load
from vimlab.sweep.trials import make_trials

BASE = "configs/vitvq_emoji.py:smoke,data=/somewhere/private"
DIM, RATE = "model.quantizer.dim", "optim.learning_rate"
DIMS, SEEDS = (4, 8, 16), (0, 1, 2)
RNG = np.random.default_rng(0)
PSNR, USAGE = RNG.normal(20, 1, (3, 3)), RNG.uniform(0, 1, (3, 3))


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    """Nine trials whose figures are PSNR and USAGE, and one more that failed."""
    trials, _ = make_trials(BASE, [*product({DIM: DIMS}, seeds(SEEDS)), {DIM: 32, "seed": 0}])
    sweep = Sweep(tmp_path / "w", tmp_path / "w/trials", BASE, ("x=1",), (), BASE, "", tuple(trials))
    sweep.write()
    for trial in trials[:-1]:
        i, j = DIMS.index(int(trial.overrides[DIM])), int(trial.overrides["seed"])
        leave(sweep.workdir(trial), {"reconstruction": {"psnr": PSNR[i, j]}, "codebook": {"usage": USAGE[i, j]}}, loss=np.arange(5, 0, -1.0) + i)
        sweep.note(trial, state="", finished=["train"])
    sweep.note(trials[-1], state="failed", message="config <b>x</b> | y; do z")
    return sweep


def leave(workdir: pathlib.Path, figures: dict[str, dict[str, float]], loss: np.ndarray, **protocol) -> None:
    """What a finished run leaves."""
    (workdir / "evals").mkdir(parents=True)
    for name, metrics in figures.items():
        known = {"evaluator": name, "step": 5, "count": 8, "data": "/somewhere/private#test", "command": "vimlab", **protocol}
        (workdir / f"evals/{name}_00000005.json").write_text(json.dumps({"protocol": known, "metrics": metrics, "arrays": {}}))
    rows = [{"step": s, "train/loss": float(v)} for s, v in enumerate(loss, 1)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9')


def test_means_spreads_and_paired_differences_are_numpys(sweep):
    found = results.collect(sweep, Report(baseline={DIM: 8}))
    assert found.columns == ("codebook/usage", "reconstruction/psnr") and found.baseline == "dim=8"
    for i, group in enumerate(found.groups[:3]):
        for name, values in (("reconstruction/psnr", PSNR), ("codebook/usage", USAGE)):
            np.testing.assert_allclose([group.figures[name].mean, group.figures[name].spread], [values[i].mean(), values[i].std(ddof=1)])
            if group.name != "dim=8":
                difference = values[i] - values[1]
                np.testing.assert_allclose([group.differences[name].mean, group.differences[name].spread], [difference.mean(), difference.std(ddof=1)])
    assert not found.groups[1].differences and not found.groups[3].figures


def test_pairs_are_of_shared_seeds_alone():
    a, b = results.Statistic({0: 1.0, 1: 5.0}), results.Statistic({1: 2.0, 2: 9.0})
    assert a.minus(b).values == {1: 3.0} and a.minus(b).spread is None and a.minus(results.Statistic({7: 1.0})) is None


def test_a_trial_counts_when_it_is_done(sweep):
    sweep.note(sweep.trials[0], finished=[])
    found = results.collect(sweep, Report())
    assert list(found.groups[0].figures["reconstruction/psnr"].values) == [1, 2] and tables.done(found.groups[0]) == "2 of 3"
    assert list(found.groups[1].differences["reconstruction/psnr"].values) == [1, 2]


def test_choices_of_columns_baseline_and_best(sweep):
    found = results.collect(sweep, Report(), ["train/loss"], "dim=16")
    assert [g.figures["train/loss"].mean for g in found.groups[:3]] == [1, 2, 3] and found.baseline == "dim=16"
    with pytest.raises(ConfigError, match="did you mean 'reconstruction/psnr'"):
        results.collect(sweep, Report(), ["reconstruction/psnrs"])
    with pytest.raises(ConfigError, match="no baseline 'dim=5'"):
        results.collect(sweep, Report(), baseline="dim=5")
    with pytest.raises(ConfigError, match="calls its baseline"):
        results.collect(sweep, Report(baseline={DIM: 5}))
    assert results.best(found, "reconstruction/psnr")[0].name == f"dim={DIMS[PSNR.mean(1).argmax()]}"
    assert results.best(found, "-codebook/usage")[0].name == f"dim={DIMS[USAGE.mean(1).argmin()]}"
    with pytest.raises(ConfigError, match="name one with --by"):
        results.best(found, "fid/fid")


def test_markdown_and_csv(sweep):
    found = results.collect(sweep, Report(title="Codes", reference=("Theirs.", ["dim", "rFID"], [["4", "3.68"]])))
    text = tables.markdown(found)
    assert re.search(rf"\| 4 +\| 3 +\| .* \| {PSNR[0].mean():.2f} ± {PSNR[0].std(ddof=1):.2f} +\|", text)
    assert re.search(rf"\| 8 +\| 3 +\| .* \| {(PSNR[1] - PSNR[0]).mean():+.2f} ± ", text) and "| 0 of 1 |" in text and "3.68" in text
    assert "config <b>x</b> \\| y; do z" in text
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(found))))
    assert len(rows) == 10 and float(rows[4]["reconstruction/psnr"]) == PSNR[1, 1] and rows[4]["seed"] == "1" and rows[9]["state"] == "failed"


def test_protocols_that_differ_are_told(sweep):
    assert "protocols differ" not in tables.markdown(results.collect(sweep, Report()))
    workdir = sweep.workdir(sweep.trials[0])
    path = workdir / "evals/codebook_00000005.json"
    path.write_text(path.read_text().replace('"count": 8', '"count": 9'))
    assert "protocols differ: codebook/count." in tables.markdown(results.collect(sweep, Report()))


def test_json_says_nothing_of_where_things_lie(sweep):
    record = results.as_json(results.collect(sweep, Report()))
    assert "/somewhere" not in json.dumps(record) and record["base"] == "configs/vitvq_emoji.py:smoke,data=private"
    assert record["groups"][0]["figures"]["reconstruction/psnr"]["seeds"] == {str(j): PSNR[0, j] for j in SEEDS}
    assert record["protocols"]["reconstruction"]["data"] == "private#test"


def test_findings_wait_for_all_trials(sweep):
    report = Report(findings=lambda groups: [f"{len(groups)} groups"])
    assert results.collect(sweep, report).findings() == []
    leave(sweep.workdir(sweep.trials[-1]), {"reconstruction": {"psnr": 1.0}}, np.ones(3))
    sweep.note(sweep.trials[-1], state="", finished=["train"])
    assert results.collect(sweep, report).findings() == ["4 groups"]


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "circle", "line", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, f"{tag} closes another"

    def handle_data(self, data):
        self.text += data


def test_the_page_holds_everything_and_loads_nothing(sweep):
    found = results.collect(sweep, Report(title="Codes & co", baseline={DIM: 4}))
    html = page.as_page(found)
    reader = Reader()
    reader.feed(html)
    assert not reader.open and reader.text.count("Codes & co") >= 2 and "/somewhere" not in html and "<b>x</b>" not in html
    assert not [a for _, a in reader.tags if "src" in a or "href" in a]
    for words in ("9 done, 1 failed", "Differences from the baseline", "config <b>x</b> | y; do z", f"{PSNR[2].mean():.2f} ± {PSNR[2].std(ddof=1):.2f}"):
        assert words in reader.text, words
    drawn = [a["aria-label"] for tag, a in reader.tags if tag == "svg"]
    assert f"Codes used by the whole set against {DIM}" in drawn and "train/loss over training steps" in drawn
    curves = html[html.index("train/loss over training steps") :]
    curves = curves[: curves.index("</svg>")]
    assert curves.count('class="line') == 3 and curves.count('class="raw') == 9  # A curve a dimension, the mean over its seeds, and these.


def test_asked_for_plots_and_many_groups_in_panels(tmp_path):
    trials, _ = make_trials(BASE, product({DIM: range(4, 11), RATE: [1e-3, 2e-3]}))
    sweep = Sweep(tmp_path / "w", tmp_path / "w/trials", BASE, ("x=1",), (), BASE, "", tuple(trials))
    for trial in trials:
        leave(sweep.workdir(trial), {"reconstruction": {"psnr": 20.0}}, np.arange(3.0) + 1)
        sweep.note(trial, state="", finished=["train"])
    html = page.as_page(results.collect(sweep, Report(plots=["train/loss", Against("reconstruction/psnr", DIM, RATE)])))
    assert "train/loss, learning_rate 0.001" in html and "train/loss, learning_rate 0.002" in html
    assert html.count(f"against {DIM}</h3>") == 1 and "c6" in html


def test_commands(sweep, capsys, monkeypatch):
    monkeypatch.setattr(Sweep, "report", lambda self: Report())
    work = str(sweep.root)
    assert cli.main(["table", work, "--out", f"{work}/t.csv", "--out", f"{work}/t.json"]) == 0
    assert json.loads(pathlib.Path(work, "t.json").read_text())["baseline"] == "dim=4" and pathlib.Path(work, "t.csv").exists()
    assert cli.main(["plot", work]) == 0 and pathlib.Path(work, "sweep.html").read_text().startswith("<!doctype html>")
    capsys.readouterr()
    assert cli.main(["best", work]) == 0
    best, seed = PSNR.mean(1).argmax(), PSNR[PSNR.mean(1).argmax()].argmax()
    said = capsys.readouterr().out
    assert said.startswith(f"dim={DIMS[best]}: psnr {PSNR[best].mean():.2f}") and f"dim={DIMS[best]}_seed={seed} " in said
    assert cli.main(["status", work, "--only", "dim=4*"]) == 0 and "3 trials: 3 done" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="must end in"):
        cli.main(["table", work, "--out", "x.txt"])
    assert load(sweep.root).trials == sweep.trials and views.WATCH_SECONDS > 0
