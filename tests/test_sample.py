"""`vimlab sample`, the real command on tiny trained models: what it writes, what changes nothing, what it refuses."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import small_clip
from PIL import Image
from test_train import call
from test_train_generator import fresh_tokenizer

from vimlab import cli, pictures
from vimlab import config as configs
from vimlab import run as runs
from vimlab import sample as command
from vimlab.data.sources import open_source
from vimlab.data.transforms import Resize
from vimlab.pretrained import open_tokenizer
from vimlab.scoring.scorers import cosines

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SMALL = ("--config.model.depth=1", "--config.model.width=16", "--config.model.mlp=32", "--config.model.remat=none")
PROMPTS = ("--prompt", "a red circle", "--prompt", "a small blue square above a large red cross")
SHARP = ("--guidance", "3", "--schedule", "cosine", "--top-k", "40", "--top-p", "0.95", "--temperature", "0.9")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Workdirs of generators told a text, a class and nothing, the latter without dropping; their data and their tokenizer are gone."""
    root = tmp_path_factory.mktemp("trained")
    tokenizer = fresh_tokenizer(root / "tokenizer")

    def train(name, *flags):
        config = ["--config", f"configs/parti_shapes.py:smoke,tokenizer={tokenizer}", "--config.duration=4", "--config.log.tensorboard=false",
                  *SMALL]
        result = call("train", "--workdir", root / name, *config, "--config.evals.likelihood=none", "--config.evals.samples=none", *flags)
        assert result.returncode == 0, result.stderr
        path = root / name / "config.json"
        path.write_text(path.read_text().replace("shapes:t", "nowhere:t"))
        return root / name

    text = train("text")
    plain = ("--config.data.text=none", "--config.drop=none")
    others = {name: train(name, f"--config.model.condition.name={name}", *plain) for name in ("class", "none")}
    shutil.rmtree(tokenizer)
    return {"text": text} | others


def sample(*args):
    """The command as a user runs it. Returns its output."""
    result = call("sample", "--quiet", *args)
    assert result.returncode == 0, result.stderr
    return result.stdout


def record(out: pathlib.Path) -> dict:
    return json.loads((out / "samples.json").read_text())


def files(out: pathlib.Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.glob("*.png")}


@pytest.fixture(scope="module")
def one_by_one(trained, tmp_path_factory):
    """Six images drawn one at a time: the folder, and what was said."""
    out = tmp_path_factory.mktemp("samples") / "one"
    return out, sample("--workdir", trained["text"], "--out", out, *PROMPTS, "--num", 3, "--seed", 7, "--batch", 1, "--rerank", *SHARP)


def test_it_writes_images_a_grid_and_how_they_came_about(trained, one_by_one):
    out, said = one_by_one
    names = [f"p{p:03d}_s{7 + 3 * p + n:08d}.png" for p in range(2) for n in range(3)]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "grid.png", "samples.json"])
    assert all(Image.open(out / name).size == (32, 32) for name in names)
    made, tokenizer = record(out), open_tokenizer(trained["text"] / "tokenizer")
    request = made["request"]
    assert request["prompts"] == list(PROMPTS[1::2]) and request["step"] == 4 and request["tokenizer"] == tokenizer.fingerprint
    assert (request["guidance"], request["top_k"], request["top_p"], request["temperature"]) == (3, 40, 0.95, 0.9)
    assert [(i["file"], i["prompt"], i["seed"]) for i in made["images"]] == [(n, i // 3, 7 + i) for i, n in enumerate(names)]
    ids = np.array([i["ids"] for i in made["images"]])
    assert ids.shape == (6, 64) and ids.min() >= 0 and ids.max() < 64 and len(np.unique(ids, axis=0)) == 6
    assert all(-64 * np.log(64) * 2 < i["log_prob"] < 0 for i in made["images"])
    assert made["calls"] == 64 and f"6 images in {out}" in said and "64 calls of the model" in said


def test_the_batch_changes_no_byte(trained, one_by_one, tmp_path):
    sample("--workdir", trained["text"], "--out", tmp_path, *PROMPTS, "--num", 3, "--seed", 7, "--batch", 8, "--rerank", *SHARP)
    assert files(tmp_path) == files(one_by_one[0]) and len(set(files(tmp_path).values())) == 7
    mine, theirs = record(tmp_path), record(one_by_one[0])
    assert {key: mine[key] for key in ("request", "images", "calls")} == {key: theirs[key] for key in ("request", "images", "calls")}
    assert mine["request"]["rows_per_device"] == 8


def test_the_same_request_may_be_drawn_again_and_devices_change_no_byte(trained, one_by_one, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(one_by_one[0], out)
    (out / "p000_s00000008.png").unlink()
    assert len(jax.devices()) == 8
    flags = ["--workdir", trained["text"], "--out", out, *PROMPTS, "--num", 3, "--seed", 7, "--batch", 3, "--rerank", *SHARP]
    assert cli.main(["sample", *map(str, flags)]) == 0
    said = capsys.readouterr()
    assert "6 images in " in said.err and "64 calls of the model" in said.out
    assert files(out) == files(one_by_one[0]) and record(out)["images"] == record(one_by_one[0])["images"]


def test_the_seed_of_an_image_draws_it_again_alone_and_the_best_are_kept(trained, one_by_one, tmp_path):
    whole = record(one_by_one[0])["images"]
    for first in (0, 3):
        scores = [i["score"] for i in whole[first : first + 3]]
        assert [i["rank"] for i in whole[first : first + 3]] == [1 + sorted(scores, reverse=True).index(s) for s in scores]
    said = sample("--workdir", trained["text"], "--out", tmp_path, *PROMPTS[2:], "--num", 3, "--seed", 10, "--rerank", "--keep", 1, *SHARP)
    winner = max(whole[3:], key=lambda i: i["score"])
    name = f"p000_s{winner['seed']:08d}.png"
    assert set(files(tmp_path)) == {name, "grid.png"}
    assert files(tmp_path)[name] == files(one_by_one[0])[winner["file"]]
    again = record(tmp_path)["images"]
    assert [i["score"] for i in again] == [i["score"] for i in whole[3:]]
    assert [i["file"] for i in again] == [name if i["rank"] == 1 else None for i in again]
    assert "1 images in" in said and "the best 1 of each 3 by likelihood" in said and "3 drawn" in said


def test_a_network_of_images_and_texts_ranks_them(capsys, trained, tmp_path):
    clip = small_clip.write(tmp_path)
    opened = small_clip.settings(tmp_path / "model.safetensors", tmp_path / "merges.txt")
    with pytest.MonkeyPatch.context() as patch:  # The small network has narrow heads, for which there is no flag.
        patch.setitem(command.SCORERS, "clip", lambda **files: opened)
        flags = ["--workdir", trained["text"], *PROMPTS, "--num", 2, "--rerank", "clip", "--scorer-weights", clip.weights,
                 "--scorer-vocabulary", clip.vocabulary, "--out", tmp_path / "out"]  # fmt: skip
        assert cli.main(["sample", *map(str, flags)]) == 0
    made, scorer = record(tmp_path / "out"), opened.open()
    images = np.stack([np.asarray(Image.open(tmp_path / "out" / i["file"])) for i in made["images"]])
    expected = cosines(scorer, images, np.repeat(PROMPTS[1::2], 2).tolist())
    np.testing.assert_allclose([i["score"] for i in made["images"]], expected, atol=1e-5)
    assert made["request"]["scorer_sha256"] == scorer.identity and "by clip" in capsys.readouterr().out
    nothing = ["--workdir", trained["none"], "--rerank", "clip", "--scorer-weights", clip.weights, "--scorer-vocabulary", clip.vocabulary]
    assert "is told nothing; use --rerank likelihood" in refused(capsys, *nothing)


def test_the_upper_rows_of_an_image_are_kept_token_by_token(trained, tmp_path):
    image = open_source("shapes:test?size=40&count=1")[0]["image"]
    pictures.save_png(tmp_path / "image.png", image)
    said = sample("--workdir", trained["text"], "--out", tmp_path / "out", *PROMPTS, "--num", 2, "--batch", 3,
                  "--image", tmp_path / "image.png", "--keep-rows", 3)
    assert "their upper 12 of 32 pixels, 3 of 8 rows of tokens, are from" in said
    made = record(tmp_path / "out")
    ids = np.array([i["ids"] for i in made["images"]])
    tokenizer = open_tokenizer(trained["text"] / "tokenizer")
    pixels = Resize()(image, 32)[None].astype(np.float32) / 255
    encode = lambda params, x: tokenizer.config.make().apply({"params": params}, x, method="encode").ids
    own = jax.jit(encode)(tokenizer.params, pixels)[0, :, 0]
    np.testing.assert_array_equal(ids[:, :24], np.broadcast_to(own[:24], (4, 24)))
    assert len(np.unique(ids[:, 24:], axis=0)) == 4
    assert made["calls"] == 1 + 40  # A parallel pass over what is given, then position by position.


def test_classes_by_name_or_number(trained, tmp_path):
    workdir = ("--workdir", trained["class"], "--num", 2)
    sample(*workdir, "--out", tmp_path / "a", "--classes", "red square, purple cross")
    sample(*workdir, "--out", tmp_path / "b", "--classes", "1,34")
    a, b = record(tmp_path / "a"), record(tmp_path / "b")
    assert a["request"] == b["request"] and a["request"]["prompts"] == ["red square", "purple cross"]
    assert files(tmp_path / "a") == files(tmp_path / "b") and len(files(tmp_path / "a")) == 5


def test_a_model_that_is_told_nothing(trained, tmp_path):
    sample("--workdir", trained["none"], "--num", 2, "--temperature", 0.5)
    made = record(trained["none"] / "samples")  # Where they go unless told otherwise.
    assert [i["file"] for i in made["images"]] == ["p000_s00000000.png", "p000_s00000001.png"] and made["request"]["prompts"] == [""]


def refused(capsys, *args) -> str:
    """The one sentence of a refusal by the command in this process."""
    capsys.readouterr()
    assert cli.main(["sample", "--quiet", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("vimlab: error: ")]
    assert out == "" and "Traceback" not in err
    return line.removeprefix("vimlab: error: ")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--num", 0], "--num is 0, but must be at least 1"),
        (["--batch", 0], "--batch is 0, but must be at least 1"),
        (["--seed", -1], "--seed is -1, but must be at least 0"),
        (["--temperature", "nan"], "--temperature is nan, but must be finite and at least 0"),
        (["--top-k", -1], "--top-k is -1, but must be at least 0"),
        (["--top-p", 0], "--top-p is 0.0, but must be above 0 and at most 1"),
        (["--guidance", "inf"], "--guidance is inf, but must be finite and at least 0"),
        (["--keep", 5, "--rerank"], "--keep is 5, but must be at least 1 and at most --num 4"),
        (["--keep", 1], "--keep is given, but nothing to choose by; add --rerank"),
        (["--rerank", "--scorer-weights", "a"], "but nothing reads them; add --rerank clip"),
        (["--keep-rows", 1], "--image and --keep-rows belong together"),
        (["--prompts", "no.txt"], "--prompts no.txt does not exist"),
        (["--image", "no.png", "--keep-rows", 1], "--image no.png does not exist"),
        (["--image", __file__, "--keep-rows", 1], "cannot be decoded"),
        ([], "holds no config.json, so it is not the workdir of a run"),
    ],
)
def test_mistakes_that_need_no_model_to_be_seen(capsys, tmp_path, flags, sentence):
    assert sentence in refused(capsys, "--workdir", tmp_path, *flags)
    assert not list(tmp_path.iterdir())


def test_mistakes_that_the_model_shows_are_found_before_its_weights_are_read(capsys, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(command.Trained, "predict", property(lambda self: pytest.fail("the weights were read")))
    text, classes, out = ("--workdir", trained["text"]), ("--workdir", trained["class"]), ("--out", tmp_path / "out")
    image, first_stage = tmp_path / "image.png", tmp_path / "first"
    pictures.save_png(image, np.zeros((32, 32, 3), np.uint8))
    first_stage.mkdir()
    runs.write_json(first_stage / "config.json", runs.to_dict(runs.resolve(configs.load("configs/vitvq_shapes.py"))))
    for flags, sentence in [
        ([*text, *out], "takes a text, but was given nothing; give --prompt or --prompts"),
        ([*text, *out, "--classes", "red circle"], "takes a text, but was given a class; give --prompt or --prompts"),
        (["--workdir", trained["none"], *out, *PROMPTS], "takes nothing, but was given a text; leave out --prompt, --prompts and --classes"),
        ([*classes, *out, *PROMPTS], "takes a class, but was given a text; give --classes"),
        ([*classes, *out, "--classes", "red circel"], "there is no class 'red circel'; did you mean 'red circle'? (there are 35, "),
        ([*classes, *out, "--classes", "35"], "there is no class '35' (there are 35, 'red circle' to 'purple cross', or by number 0 to 34)"),
        ([*classes, *out, "--classes", "1", "--guidance", 2], "--guidance is 2, but"),
        ([*text, *out, "--prompt", "x" * 70], "has 70 tokens, but at most 63 fit; shorten it"),
        ([*text, *out, *PROMPTS, "--seed", 2**32 - 7], "the seeds of 8 images must stay below 2^32"),
        ([*text, *out, *PROMPTS, "--image", image, "--keep-rows", 8], "--keep-rows is 8, but of the 8 rows of tokens at least 1 and at most 7"),
        ([*text, *out, *PROMPTS, "--step", 3], "has no checkpoint of step 3; it has [4]"),
        ([*text, "--out", image, *PROMPTS], "image.png is not a folder; choose another"),
        (["--workdir", first_stage, *out], "is the workdir of a tokenizer, which draws no images; give that of a generator"),
    ]:
        assert sentence in refused(capsys, *flags)
    new = tmp_path / "new"
    shutil.copytree(trained["text"], new, ignore=shutil.ignore_patterns("checkpoints"))
    assert "holds no finished checkpoint yet" in refused(capsys, "--workdir", new, *out, *PROMPTS)
    assert not out[1].exists()


def test_another_tokenizer_than_the_one_trained_with_is_refused(capsys, trained, tmp_path):
    workdir = tmp_path / "w"
    shutil.copytree(trained["text"], workdir)
    config = json.loads((workdir / "tokenizer/config.json").read_text())
    config["config"]["model"]["quantizer"]["layer_norm"] = False
    (workdir / "tokenizer/config.json").write_text(json.dumps(config))
    assert "was trained with another tokenizer (fingerprint " in refused(capsys, "--workdir", workdir, *PROMPTS)


def test_a_folder_keeps_the_samples_of_one_request(capsys, trained, one_by_one, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(one_by_one[0], out)
    flags = ["--workdir", trained["text"], "--out", out, *PROMPTS, "--num", 3, "--seed", 7, "--rerank", *SHARP]
    before = files(out)
    assert "out holds images of another request (seed 7, not 8); choose another, or remove it" in refused(capsys, *flags, "--seed", 8)
    assert "(prompts ['a red circle', 'a" in refused(capsys, *flags, "--prompt", "one more")
    assert "(rows_per_device 8, not 16)" in refused(capsys, *flags, "--batch", 9)
    (out / "samples.json").unlink()
    assert "p000_s00000007.png, but no samples.json that explains it" in refused(capsys, *flags)
    (out / "samples.json").write_text("[]")
    assert "samples.json is not one of ours" in refused(capsys, *flags)
    assert files(out) == before


def test_prompts_are_read_from_a_column(capsys, tmp_path):
    (tmp_path / "c.tsv").write_text("Words\na")
    assert "c.tsv has no column 'Prompt', but 'Words'" in refused(capsys, "--workdir", tmp_path, "--prompts", tmp_path / "c.tsv")


def test_a_file_of_prompts_gives_the_same_pictures_and_only_those_that_are_missing(trained, one_by_one, tmp_path):
    (tmp_path / "p.tsv").write_text("Prompt\tCategory\n" + "".join(f"{p}\tShapes\n" for p in PROMPTS[1::2]))
    flags = ["--workdir", trained["text"], "--file", tmp_path / "p.tsv", "--out", tmp_path / "out", "--num", 3, "--seed", 7, *SHARP]
    first = call("eval", "prompts", *flags, "--batch", 1)
    assert first.returncode == 0 and "6 images in" in first.stderr, first.stderr
    mine = {p.name: p.read_bytes() for p in (tmp_path / "out/pictures").iterdir()}
    theirs = files(one_by_one[0])
    assert mine == {f"{i // 3:05d}_{i % 3:02d}.png": theirs[f"p{i // 3:03d}_s{7 + i:08d}.png"] for i in range(6)}
    kept = tmp_path / "out/pictures/00000_00.png"
    before = kept.stat().st_mtime_ns
    for name in ("00000_02.png", "00001_00.png"):
        (tmp_path / "out/pictures" / name).unlink()
    second = call("eval", "prompts", *flags, "--batch", 8)
    assert "4 of which were there already" in second.stdout and "(4 were there already)" in second.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "out/pictures").iterdir()} == mine and kept.stat().st_mtime_ns == before


# ---- vimlab eval ----


def test_sets_of_drawings_are_evaluated_and_compared(trained, tmp_path, capsys):
    """`vimlab eval --evals fid` as a user runs it: again from nothing on more devices, at the best step, and compared."""
    workdir = shutil.copytree(trained["class"], tmp_path / "class")
    data = ("--config.data.train=shapes:train?count=64", "--config.data.eval=shapes:test?count=24")
    flags = ("--workdir", workdir, *data, "--config.evals.fid.extractor.name=random", "--config.evals.fid.count=16", "--config.evals.fid.rows_per_device=4")

    def figures(*more, devices=1):
        result = call("eval", *flags, *more, devices=devices)
        assert result.returncode == 0, result.stderr
        return json.loads((workdir / "evals" / "fid_00000004.json").read_text())

    first = figures("--evals", "fid,likelihood")
    kept = list((workdir / "evals" / "kept").rglob("*.npz"))
    assert kept
    shutil.copy(workdir / "evals" / "fid_00000004.json", tmp_path / "first.json")
    for file in kept:
        file.unlink()
    again = figures("--evals", "fid", "--step", "best", devices=3)
    assert again["metrics"] == pytest.approx(first["metrics"], rel=1e-6) and first["protocol"]["extractor"] == "random-conv-v1"
    assert cli.main(["eval", "compare", str(workdir), str(tmp_path / "first.json")]) == 0 and "the same protocol" in capsys.readouterr().out
    for more, message in (
        (("--evals", "fid", "--step", "best", "--best", "fid/psnr"), "of the checkpoints at [4] none has it yet"),
        (("--evals", "fid", "--step", "last"), "--step is 'last'"),
        (("--evals", "fidd"), "'fidd' is unknown"),
    ):
        assert cli.main(["eval", *map(str, flags), *more]) == 2 and message in capsys.readouterr().err
