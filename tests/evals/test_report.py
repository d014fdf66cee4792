"""The report holds what the run wrote, as one whole page that loads nothing, and survives whatever is missing."""

import base64
import html.parser
import io
import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vimlab import pictures
from vimlab.config import ConfigError
from vimlab.evals import Subject, evaluate, svg, wording, workdir
from vimlab.evals.codebook import Codebook
from vimlab.evals.reconstruction import Reconstruction
from vimlab.evals.report import write_report
from vimlab.tokens import Tokens, TokenSpec

STEPS = 4000
VOID = {"meta", "img", "br", "line", "circle", "polyline", "polygon"}


def write_log(folder: pathlib.Path, seed: int = 0) -> None:
    """The two logs of a run of 4,000 steps, with one alarm, a NaN, two skipped steps and a last line cut short."""
    rng = np.random.default_rng(seed)
    rows, clock = [], []
    for step in range(5, STEPS + 1, 5):
        t = step / STEPS
        noise = lambda size: float(np.exp(size * rng.standard_normal()))
        l2 = (0.0055 + 0.07 * np.exp(-t * 18) + 0.004 * np.exp(-t * 3)) * noise(0.05)
        usage = 0.35 + 0.63 * (1 - np.exp(-t * 12))
        row = {
            "step": step,
            "train/l2": l2,
            "train/l1": 0.6 * l2**0.5,
            "train/commitment": 0.002 * noise(0.2) * (1 + 3 * t),
            "train/loss": l2 + 0.003 * noise(0.1),
            "train/psnr": -10 * np.log10(l2),
            "train/codebook_usage": usage,
            "train/codebook_usage_batch": 0.8 * usage * noise(0.02),
            "train/perplexity": 860 * usage * noise(0.02),
            "train/dead_codes": float(round(1024 * (1 - usage))),
            "train/grad_norm": 0.4 * noise(0.3) / (0.1 + t),
            "train/update_norm": 0.02 * noise(0.2),
            "train/lr": 1e-3 * min(step / 400, 0.5 + 0.5 * np.cos(np.pi * t)),
            "train/nonfinite_share": 0.4 * (step == 3000),
            "train/loss_scale_of_tomorrow": 8.0,
        }
        rows.append(row)
        clock.append(
            {
                "step": step,
                "train/images_per_s": 212 * noise(0.02),
                "train/step_ms": 300.0,
                "train/data_wait": 0.03 * noise(0.4),
                "train/mfu": 0.31 * noise(0.02),
                "train/bad_images": 0,
            }
        )
    rows[99]["train/loss"] = float("nan")
    rows.insert(
        100, {"step": 500, "event": "nonfinite", "message": "the loss at step 500 was <not finite>; the update was skipped"}
    )
    for step in range(500, STEPS + 1, 500):
        t = step / STEPS
        rows.append(
            {
                "step": step,
                "eval/reconstruction/psnr": 21.4 - 4 * np.exp(-t * 5),
                "eval/codebook/usage": 0.97 - 0.3 * np.exp(-t * 9),
                "eval/codebook/perplexity": 700 - 300 * np.exp(-t * 8),
            }
        )
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + '\n{"step": 4005, "train/lo')
    (folder / "performance.jsonl").write_text("\n".join(map(json.dumps, clock)))


def write_run(folder: pathlib.Path, emoji: np.ndarray) -> dict[str, float]:
    """The whole workdir of a plausible run whose reconstructions are blurred more the earlier they are."""
    write_log(folder)
    figures = {}
    for step in (500, 2000, 4000):
        spec, radius = TokenSpec(grid=(8, 8), codes=1024), {500: 5, 2000: 3, 4000: 2}[step]
        blurred = lambda _, x, r=radius: sum(np.roll(x, (i, j), (1, 2)) for i in range(r) for j in range(r)) / r**2
        rng = np.random.default_rng(step)
        ids = lambda x, rng=rng: jnp.asarray(np.minimum(rng.geometric(0.0035, (len(x), 64, 1)) - 1, 1023))
        encode = lambda _, x, ids=ids, spec=spec: Tokens(ids(x), spec)
        batches = lambda: iter([{"image": emoji, "mask": np.ones(len(emoji), np.float32)}] * 5)
        protocol = dict(
            data={"name": "folder", "path": "emoji"},
            fingerprint="9f3c2ab1",
            split="test",
            crop="resize-short + centre",
            size=emoji.shape[1],
            dtype="float32",
            parameters="ema",
            command="vimlab eval --workdir runs/emoji --evals codebook",
        )
        subject = Subject(
            state=None,
            predict_fns={"reconstruct": blurred, "encode": encode},
            batches=batches,
            spec=spec,
            protocol=protocol,
            step=step,
        )
        figures = evaluate({"reconstruction": Reconstruction(), "codebook": Codebook()}, subject, folder)
    config = {"batch_size": 64, "optim": {"name": "adamw", "learning_rate": 1e-3}, "data": {"path": "a & b"}, "steps": STEPS}
    (folder / "config.json").write_text(json.dumps(config))
    info = {
        "command": "vimlab train --config configs/vitvq_emoji.py:smoke --workdir runs/emoji",
        "devices": "1 x cpu",
        "packages": {"jax": "0.10.2", "flax": "0.12.8"},
        "version": "0.1.0",
        "total_steps": STEPS,
        "data": {"fingerprint": "9f3c2ab1", "size": 1434, "class_names": [f"class {i}" for i in range(1000)]},
    }
    (folder / "run.json").write_text(json.dumps(info))
    return figures


@pytest.fixture(scope="session")
def emoji() -> np.ndarray:
    """48 pictures of discs on white: uint8[48,32,32,3]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    discs = [(np.hypot(y - rng.uniform(10, 22), x - rng.uniform(10, 22)) < rng.uniform(4, 12))[..., None] for _ in range(48)]
    return np.stack([np.where(d, rng.integers(0, 220, 3), 255) for d in discs]).astype(np.uint8)


class Page(html.parser.HTMLParser):
    """Parses a page, checks that its tags are closed, and keeps its text, attributes and headings."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.headings, self.links, self.images, self.counts, self._open = "", [], [], [], {}, []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "srcset")]
        self.images += [v for k, v in attrs if tag == "img" and k == "src"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        if self._open[-1:] in (["h1"], ["h2"], ["h3"]):
            self.headings.append(data)
        if "style" not in self._open:
            self.text += data + " "


def read_page(folder: pathlib.Path) -> Page:
    return Page(write_report(folder).read_text())


def test_report_holds_the_figures_and_loads_nothing(tmp_path, emoji):
    figures = write_run(tmp_path, emoji)
    path = write_report(tmp_path)
    raw, parsed = path.read_text(), Page(path.read_text())
    assert path == tmp_path / "report.html" and path.stat().st_size < 2_000_000
    code = re.sub(r'base64,[^"]+', "", raw)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link", code), "the page must work without a network"
    assert parsed.links and all(link.startswith("data:image/png;base64,") for link in parsed.links)
    for number in (
        f"{figures['eval/reconstruction/psnr']:.2f} dB",
        f"{figures['eval/reconstruction/ssim']:.4f}",
        f"{figures['eval/codebook/perplexity']:,.1f}",
        "vitvq_emoji:smoke",
        "Finished, 4,000 steps",
        "20 min 0 s of training",
        "1 x cpu",
        "240 images (test)",
        "fingerprint",
        "9f3c2ab1",
        "resize-short + centre",
        "optim.learning_rate",
        "a & b",
        "0.10.2",
    ):
        assert number in parsed.text, number
    for heading in (
        "Alarms and events",
        "Final figures",
        "Pictures",
        "Curves",
        "Codebook",
        "More curves",
        "PSNR, dB",
        "Loss scale of tomorrow",
    ):
        assert heading in parsed.headings, heading
    assert "was <not finite>; the update" in parsed.text, "messages are escaped"
    assert "40.0% of the steps since the last row were skipped" in parsed.text and "bad images" not in parsed.text
    assert "class 999" not in parsed.text, "long values are cut short"


def test_pictures_are_the_newest_the_first_and_the_middle_one(tmp_path, emoji):
    write_run(tmp_path, emoji)
    parsed = read_page(tmp_path)
    assert re.findall(r"Step ([\d,]+) ", parsed.text) == ["4,000", "500", "2,000", "4,000"], "and the newest failures"
    shown = Image.open(io.BytesIO(base64.b64decode(parsed.images[0].split(",")[1])))
    np.testing.assert_array_equal(shown, Image.open(tmp_path / "pictures" / "reconstruction_00004000.png"))


@pytest.mark.parametrize("metric, name, value", [
    ("kid_std_subsets_of_100_random_conv_v1", "Its deviation over subsets, subsets of 100, random-conv-v1", "0.50000"),
    ("rprecision_clip_vit_b_32", "Precision, clip-vit-b-32", "0.500"),
    ("inception_score_trained_conv_v1_std", "Its deviation over splits, trained-conv-v1", "0.500"),
    ("kid", "Kernel distance (KID)", "0.50000"),
    ("recall_random_conv_v1", "Recall, random-conv-v1", "0.500"),
    ("seen_at_3", "Captions shown in full, guidance 3", "50%"),
])  # fmt: skip
def test_figures_have_names_for_people(metric, name, value):
    assert wording.name_of(metric) == name and wording.value_of(metric, 0.5)[0] == value


def test_failures_have_a_place_of_their_own(tmp_path):
    for name in ("alignment_failed", "drawn_unlike", "reconstruction_worst", "clip_score_lowest", "samples"):
        pictures.save_png(tmp_path / "pictures" / f"{name}_00000009.png", np.zeros((30, 40, 3), np.uint8))
    failed = [{"caption": "a", "picture": 3, "wrong": ["colour 1", "shape 2"]}, {"caption": "b", "picture": 7, "wrong": ["colour 1"]}]
    protocol = {"count": 20, "split": "shapes:test", "step": 9}
    record = {"protocol": protocol, "metrics": {"seen": 0.9}, "arrays": {"failed": failed, "curve": [], "ceiling": {}}}
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "alignment_00000009.json").write_text(json.dumps(record))
    text = read_page(tmp_path).text
    failures = text[text.index("Failures") :]
    assert "2 of 20 captions are not shown in full. Statements missed, by kind: colour (2), shape (1)." in failures
    for words in ("come back worst", "miss the most of their captions", "farthest from every real one", "fit their captions least"):
        assert words in failures and text.count(words) == 1, words


def test_what_a_user_asked_for_comes_first(tmp_path):
    for folder, level in (("samples", 10), ("pictures", 20)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (40, 30), (level,) * 3).save(tmp_path / folder / ("grid.png" if level == 10 else "samples_00000009.png"))
    assert "vimlab sample" not in read_page(tmp_path).text, "a grid without its record may be half a draw"
    (tmp_path / "samples" / "samples.json").write_text(json.dumps({"request": {"step": 7}}))
    parsed = read_page(tmp_path)
    assert re.search(r"Step 7\W+Drawn by `vimlab sample`", parsed.text), parsed.text
    levels = [Image.open(io.BytesIO(base64.b64decode(i.split(",")[1]))).getpixel((0, 0))[0] for i in parsed.images]
    assert levels == [10, 20]


def test_large_pictures_are_reduced(tmp_path):
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "pictures" / "samples_00000010.png")
    parsed = read_page(tmp_path)
    assert (
        (tmp_path / "report.html").stat().st_size < 2_500_000 < (tmp_path / "pictures" / "samples_00000010.png").stat().st_size
    )
    assert "reduced; pictures/samples_00000010.png is the original" in parsed.text
    assert parsed.images[0].startswith("data:image/jpeg")


def test_a_log_alone_is_enough(tmp_path):
    write_log(tmp_path)
    (tmp_path / "performance.jsonl").unlink()
    parsed = read_page(tmp_path)
    assert "Curves" in parsed.headings and "Pictures" not in parsed.headings and parsed.counts["svg"] > 10
    assert tmp_path.name in parsed.headings


def write_generator(folder: pathlib.Path, curve: list[dict[str, float]]) -> None:
    """What a generator's run leaves: two curves, pictures of three steps, and results of the last."""
    rows = [{"step": s, "train/loss": 5 / s + 1, "train/bits_per_token": (5 / s + 1) / np.log(2)} for s in range(1, 200)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "pictures").mkdir()
    for name in ("alignment", "samples", "reconstruction"):
        for step, level in ((100, 10), (150, 15), (200, 20)):
            Image.new("RGB", (40, 30), (level,) * 3).save(folder / "pictures" / f"{name}_{step:08d}.png")
    (folder / "evals").mkdir()
    protocol = {"count": 40, "split": "shapes:test", "step": 200}
    likelihood = {"bits_per_token": 2.34567, "unigram_bits": 5.125, "margin_bits": 2.77933, "bits_per_dim": 0.0489, "nats_per_token": 1.6259}
    alignment = {"seen": 0.875, "held_out": 0.625, "seen_ceiling": 0.99, "seen_control": 0.0125, "colour_right": 0.96, "seen_at_1": 0.455}
    arrays = {"curve": curve, "ceiling": {"seen": 0.99, "held_out": 0.98, "colour_right": 0.97}, "failed": []}
    for name, metrics, more in (("likelihood", likelihood, {}), ("alignment", alignment, arrays)):
        record = {"protocol": protocol, "metrics": metrics, "arrays": more}
        (folder / "evals" / f"{name}_00000200.json").write_text(json.dumps(record))


CURVE = [
    {"guidance": scale, "seen": seen, "held_out": 0.5, "seen_control": 0.0, "colour_right": 0.9}
    for scale, seen in ((1.0, 0.25), (2.0, 0.75), (4.0, 0.5))
]


def test_what_a_generator_drew_comes_first(tmp_path):
    write_generator(tmp_path, CURVE)
    parsed = read_page(tmp_path)
    order = [h for h in parsed.headings if h in ("Samples", "Final figures", "Pictures", "Curves")]
    assert order == ["Samples", "Final figures", "Pictures", "Curves"]
    levels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))))[0, 0, 0] for link in parsed.images]
    assert levels == [20, 10, 15] * 3, "of samples, of alignment, and of the rest: the newest, the first, the middle one"
    texts = ["What the model draws", "Drawn from the caption alone", "Held-out images; under each strip"]
    assert (places := [parsed.text.index(t) for t in texts]) == sorted(places)


def test_a_generators_figures_have_names_and_units(tmp_path):
    write_generator(tmp_path, CURVE)
    text = re.sub(r"\s+", " ", read_page(tmp_path).text)
    for line in (
        "Bits per token 2.346 bits", "to be beaten 5.125 bits", "Captions shown in full 87.5%", "Held-out captions shown in full 62.5%",
        "Captions shown in full, guidance 1 45.5%", "Captions shown by pictures of other captions 1.25%", "Colours right 96%",
        "Held-out captions shown 62.5%", "Unigram entropy 5.125 bits",
    ):  # fmt: skip
        assert line in text, line


def test_bits_per_token_share_a_plot_with_what_is_to_be_beaten(tmp_path):
    write_generator(tmp_path, CURVE)
    raw = write_report(tmp_path).read_text()
    (plot,) = re.findall(r"<figure><h3>Bits per token</h3>.*?</figure>", raw)
    legend = re.sub(r"<[^>]*>", " ", plot.split("<svg")[0]).split()
    assert " ".join(legend) == "Bits per token train bits per token 1.479 eval bits per token 2.346 eval unigram bits 5.125"


def test_the_curve_over_guidance(tmp_path):
    """Shares over the scale, from 0 to the largest; ceilings are level, and one scale alone is no curve."""
    write_generator(tmp_path, CURVE)
    raw = write_report(tmp_path).read_text()
    (plot,) = re.findall(r"<figure><h3>Captions shown in full, by guidance</h3>.*?</figure>", raw)
    legend = re.sub(r"<[^>]*>", " ", plot.split("<svg")[0].split("</h3>")[1]).split()
    assert " ".join(legend) == "seen 50% held out 50% seen ceiling 99% held out ceiling 98% seen control 0%"
    lines = [[tuple(map(float, p.split(","))) for p in points.split()] for points in re.findall(r'class="line c\d" points="([^"]+)"', plot)]
    x, y = np.array(lines[0]).T
    wide = svg.LARGE.right - svg.LARGE.left
    np.testing.assert_allclose(x, svg.LARGE.left + np.array([0.25, 0.5, 1]) * wide, atol=0.11)
    assert y[1] < y[2] < y[0] and len({height for _, height in lines[2]}) == 1 and len(lines) == 5
    assert "<h3>Statements shown, by guidance</h3>" in raw
    alone = tmp_path / "alone"
    alone.mkdir()
    write_generator(alone, CURVE[:1])
    assert "by guidance" not in write_report(alone).read_text()


@pytest.mark.parametrize("missing", ["config.json", "run.json", "metrics.jsonl", "evals", "pictures"])
def test_any_part_may_be_missing(tmp_path, emoji, missing):
    write_run(tmp_path, emoji)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    assert len(read_page(tmp_path).headings) > 5


def test_evals_alone_draw_their_own_curves(tmp_path, emoji):
    figures = write_run(tmp_path, emoji)
    (tmp_path / "metrics.jsonl").unlink()
    parsed = read_page(tmp_path)
    assert "SSIM" in parsed.headings and f"{figures['eval/reconstruction/ssim']:.4g}" in parsed.text


@pytest.mark.parametrize(
    "config, name",
    [
        ("configs/vitvq_emoji.py:smoke,size=base", "vitvq_emoji:smoke,size=base"),
        ("parti_shapes.py:tokenizer=/tmp/a,tokens=runs/b", "parti_shapes"),
        ("x/parti.py:tokens=/tmp/b,smoke", "parti:smoke"),
    ],
)
def test_a_run_is_called_by_its_config(tmp_path, config, name):
    (tmp_path / "run.json").write_text(json.dumps({"command": f"vimlab train --config {config} --workdir /tmp/w"}))
    assert workdir.read(tmp_path).name == name


def test_an_empty_workdir_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run.*--workdir") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "report.html").exists()


def test_unreadable_images_and_an_unfinished_run_are_told(tmp_path):
    (tmp_path / "performance.jsonl").write_text(
        "\n".join(json.dumps({"step": s, "train/bad_images": b}) for s, b in ((5, 0), (10, 2), (15, 7)))
    )
    (tmp_path / "run.json").write_text(json.dumps({"total_steps": 40}))
    text = read_page(tmp_path).text
    assert "7 in all could not be read" in text and "Step 15 of 40" in text and "Finished" not in text


def test_an_alarm_that_lasts_is_told_once(tmp_path):
    """Collapse in the rows of steps 6 to 9 and in that of step 15, an alarm of another kind between."""
    kinds = {6: "collapse", 9: "collapse", 12: "nonfinite", 15: "collapse", 24: "collapse"}
    rows = [
        {"step": s, "train/loss": 1.0} | ({"event": kinds[s], "message": f"told at {s}"} if s in kinds else {})
        for s in range(3, 30, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = read_page(tmp_path).text
    assert "6 – 9" in text and "15 – 24" not in text
    assert [f"told at {s}" in text for s in kinds] == [False, True, True, True, True]


def test_a_step_logged_twice_counts_as_logged_last(tmp_path):
    rows = [{"step": 1, "train/loss": 5.0}, {"step": 2, "train/loss": 7.25}, {"step": 2, "train/loss": 3.5}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = read_page(tmp_path).text
    assert "3.5" in text and "7.25" not in text


def test_ticks_are_round_and_inside():
    assert svg.ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert svg.ticks(0.013, 0.031) == pytest.approx([0.015, 0.02, 0.025, 0.03])
    assert svg.ticks(-1, 1) == [-1, -0.5, 0, 0.5, 1]
    assert svg.log_ticks(0.002, 3) == pytest.approx([0.01, 0.1, 1])
    assert svg.log_ticks(0.04, 0.3) == pytest.approx([0.05, 0.1, 0.2])


def test_thinning_keeps_ends_mean_and_bound():
    x = np.arange(10_000.0)
    y = np.sin(x / 800)
    a, b = svg.thin(x, y)
    assert len(a) == 500 and (a[0], a[-1], b[0], b[-1]) == (0, 9999, y[0], y[-1])
    np.testing.assert_allclose(b, np.sin(a / 800), atol=1e-3)
    assert svg.thin(x[:300], y[:300])[0] is not None and len(svg.thin(x[:300], y[:300])[0]) == 300


def test_smoothing_keeps_lines_and_removes_noise():
    x = np.linspace(0, 1, 400)
    np.testing.assert_allclose(svg.smooth(3 * x + 1), 3 * x + 1, atol=1e-9)  # To the ends, where plain means sag.
    assert np.std(svg.smooth(np.random.default_rng(0).standard_normal(400))) < 0.5


def test_curves_put_points_where_they_belong():
    """Two points of a linear plot at the ends of its axes; ten times the value is one decade up a logarithmic one."""
    series = [svg.Series("a", np.array([0.0, 50, 100]), np.array([0.0, 5, 10]))]
    text = svg.curves(series, title="t", last_step=100, from_zero=True)
    points = [tuple(map(float, p.split(","))) for p in re.search(r'class="line c0" points="([^"]+)"', text)[1].split()]
    assert points[0] == (svg.LARGE.left, svg.LARGE.bottom) and points[2][0] == svg.LARGE.right
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2, abs=0.11)
    log = svg.curves([svg.Series("a", np.array([0.0, 50, 100]), np.array([1.0, 10, 100]))], title="t", last_step=100, log=True)
    heights = [float(p.split(",")[1]) for p in re.search(r'class="line c0" points="([^"]+)"', log)[1].split()]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.11) and heights[0] - heights[1] > 50


@pytest.mark.parametrize(
    "value, text",
    [(1024, "1,024"), (23.4567, "23.46"), (0.00312, "0.00312"), (2.5e-5, "2.50e-05"), (float("nan"), "not finite")],
)
def test_numbers_for_people(value, text):
    assert svg.number(value) == text


@pytest.mark.parametrize("value, text", [(1, "100%"), (0.973, "97.3%"), (0.99995, "100.00%"), (0.9997, "99.97%"), (0, "0%")])
def test_percent(value, text):
    assert svg.percent(value) == text
