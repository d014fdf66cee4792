"""Results of GenEval and DPG-Bench: figures worked out by hand, and every way in which a file may be wrong."""

import json

import pytest

from vimlab.config import ConfigError
from vimlab.evals.benchmarks import read_dpg, read_geneval

GENEVAL = [
    {"prompt": "a cup", "files": ["00000/samples/0000.png", "00000/samples/0001.png"]},
    {"prompt": "two cups", "files": ["00001/samples/0000.png", "00001/samples/0001.png"]},
    {"prompt": "three cups", "files": ["00002/samples/0000.png", "00002/samples/0001.png"]},
]
TAGS = ("single_object", "counting", "counting")
VERDICTS = [(True, True), (True, False), (False, False)]


def geneval_line(row: int, n: int, **changed) -> str:
    """As GenEval's script writes it with pandas: JSON within JSON, slashes escaped."""
    verdict = {
        "filename": f"/outputs/{row:05d}/samples/{n:04d}.png", "tag": TAGS[row], "prompt": GENEVAL[row]["prompt"], "correct": VERDICTS[row][n],
        "reason": "", "metadata": json.dumps({"tag": TAGS[row], "include": [], "prompt": GENEVAL[row]["prompt"]}), "details": "{}",
    }  # fmt: skip
    return json.dumps(verdict | changed).replace("/", "\\/")


def geneval(path, lines=None):
    path.write_text("\n".join(lines or [geneval_line(row, n) for row in (2, 0, 1) for n in range(2)]) + "\n")
    return path


def test_geneval_is_the_mean_of_its_tags(tmp_path):
    result = read_geneval(geneval(tmp_path / "results.jsonl"), GENEVAL)
    assert result.metrics == pytest.approx(
        {"single_object": 1, "counting": 1 / 4, "overall": 5 / 8, "correct_images": 3 / 6, "correct_prompts": 2 / 3}
    )
    assert result.protocol["count"] == 6 and result.protocol["prompts"] == 3 and result.protocol["benchmark"] == "GenEval"
    assert result.arrays == {"pictures_of_tag": {"single_object": 2, "counting": 4}}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["{"], "line 1, is not one of GenEval's results, an object with 'filename', 'tag', 'prompt' and 'correct'"),
        (["[]"], "line 1, is not one of GenEval's results"),
        ([geneval_line(0, 0), '{"tag": "colors"}'], "line 2, is not one of GenEval's results"),
        ([geneval_line(0, 0, correct=1)], "'correct' is true or false there"),
        ([geneval_line(0, 0)] * 2, "line 2, tells of 00000/samples/0000.png again"),
        ([geneval_line(0, 0, prompt="a mug")], "judges 00000/samples/0000.png by another prompt ('a mug') than it was drawn for ('a cup')"),
        ([geneval_line(0, 0, filename="o/00009/samples/0000.png")], "tells of 00009/samples/0000.png, which is not among the 6 files drawn"),
        ([geneval_line(0, 0)], "says nothing of 5 of the 6 files drawn, 00000/samples/0001.png among them; judge them all"),
    ],
)
def test_geneval_results_that_are_not_of_these_pictures(tmp_path, lines, sentence):
    with pytest.raises(ConfigError) as error:
        read_geneval(geneval(tmp_path / "results.jsonl", lines), GENEVAL)
    assert sentence in str(error.value)


DPG = [{"prompt": "A hill.", "files": ["images/hill7.png"]}, {"prompt": "The sea.", "files": ["images/sea.png"]}]
SCORES = ["/data/a, b/hill7.png, 1.0, 0.5, 0.5, 0.0, 0.5", "/data/a, b/sea.png, 1.0, 1.0, 0.75, 0.25, 0.75"]
SUMMARY = """Model: images
L1 category scores:
\tentity: 70.5
\tattribute: 60.0
L2 category scores:
\tattribute - color: 60.0
\tentity - whole: 70.5
Image path: /data/a, b
Save results to: /data/results.txt
DPG-Bench score: 62.5
"""


def dpg(path, text):
    path.write_text(text)
    return path


def test_dpg_bench_is_read_as_it_sums_itself_up(tmp_path):
    result = read_dpg(dpg(tmp_path / "r.txt", "\n".join(SCORES) + "\n" + SUMMARY), DPG)
    assert result.metrics == {"score": 62.5, "attribute": 60.0, "entity": 70.5}
    assert result.arrays == {"detailed": {"attribute - color": 60.0, "entity - whole": 70.5}}
    assert result.protocol["count"] == 8 and result.protocol["judged_per_prompt"] == 4 and result.protocol["prompts"] == 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n".join(SCORES), "lacks the summary that ends one of DPG-Bench's results; let its evaluation finish"),
        (f"{SCORES[0]}\n{SUMMARY}", "says nothing of 1 of the 2 files drawn, images/sea.png among them"),
        (f"{SCORES[0]}\n{SCORES[0]}\n{SUMMARY}", "line 2, tells of images/hill7.png again"),
        (f"{SCORES[0]}\n/x/lake.png, 1.0, 1.0\n{SUMMARY}", "tells of images/lake.png, which is not among the 2 files drawn"),
        (f"{SCORES[0]}\n/x/sea.png, 1.0, 1.0\n{SUMMARY}", "judges 1 or 4 pictures of a prompt; judge as many of each"),
        (f"{SCORES[0]}\n/x/sea.png, 1.0, 0.5\n{SUMMARY}", "line 2, holds scores outside 0 to 1, or another mean than theirs"),
        (f"{SCORES[0]}\nnonsense\n{SUMMARY}", "line 2, is not one of DPG-Bench's results: a picture's path, the scores"),
        (f"{SCORES[0]}\n/x/sea.png, e, -\n{SUMMARY}", "line 2, is not one of DPG-Bench's results"),
        ("\n".join(SCORES) + "\n" + SUMMARY.replace("62.5", "80"), "gives a DPG-Bench score of 80.0000, but its pictures' mean is 62.5000"),
        ("\n".join(SCORES) + "\n" + SUMMARY.replace("70.5", "much"), "'entity: much' gives no number"),
        ("\n".join(SCORES) + "\n" + SUMMARY.replace("70.5", "nan"), "lacks the summary"),
        ("", "says nothing of 2 of the 2 files drawn"),
    ],
)
def test_dpg_results_that_are_not_of_these_pictures(tmp_path, text, sentence):
    with pytest.raises(ConfigError) as error:
        read_dpg(dpg(tmp_path / "r.txt", text), DPG)
    assert sentence in str(error.value)


@pytest.mark.parametrize(("reader", "images"), [(read_geneval, GENEVAL), (read_dpg, DPG)])
def test_files_that_are_none(tmp_path, reader, images):
    with pytest.raises(ConfigError, match="does not exist, or is no file"):
        reader(tmp_path, images)
    (tmp_path / "r").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        reader(tmp_path / "r", images)
