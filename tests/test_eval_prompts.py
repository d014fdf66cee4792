"""`vimlab eval prompts` with a model whose pictures are known: layouts on disk, interruption, the gallery, what it refuses."""

import base64
import hashlib
import html
import json
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vimlab import cli, eval_prompts, pictures
from vimlab.data.text import Bytes
from vimlab.evals import gallery
from vimlab.evals.report import write_report
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.sampling.decode import Samples
from vimlab.tokens import Tokens, TokenSpec
from vimlab.trained import Trained

SIZE, LENGTH = 8, 24
SPEC = TokenSpec(grid=(1, 3), codes=256)
TEXT = Bytes(length=LENGTH).open()
PARTI = ("Prompt\tCategory\tChallenge\tNote\nan egg\tFood\tBasic\tround\n<b>bold</b> & free\tArts\tSimple\t\na lamp\tArts\tBasic\t\n"
         "a tin whistle\tArts\tSimple\t\na pan\tFood\tBasic\t\n")  # fmt: skip
GENEVAL = [json.dumps({"tag": tag, "include": [{"class": "cup", "count": n}], "prompt": f"{n} cups"}) for n, tag in ((1, "single_object"), (2, "counting"))]


def colour(text: str, seed: int) -> tuple[int, int, int]:
    """What the model paints."""
    return tuple(hashlib.sha256(f"{text} {seed}".encode()).digest()[:3])


class Model:
    """Stands in for a trained generator; `drawn` lists the (text, seed) of all rows that it was asked for, those that fill up too."""

    def __init__(self, workdir, condition="text", guided=True):
        task = types.SimpleNamespace(text=TEXT, spec=SPEC, image_size=SIZE, identity={"tokenizer": "c0ffee"}, guided=guided)
        model = types.SimpleNamespace(condition=types.SimpleNamespace(NAME=condition))
        config = types.SimpleNamespace(model=model, precision="auto", ema=None)
        self.drawn, self.batches, self.dies_after = [], set(), np.inf
        self.trained = object.__new__(Trained)
        predict = {"sample": self.sample, "complete": self.sample, "decode": self.decode}
        self.trained.__dict__.update(workdir=workdir, config=config, task=task, mesh=make_mesh(MeshConfig(), jax.devices()[:1]), step=7, predict=predict)

    def sample(self, condition, seeds, knobs):
        if len(self.drawn) >= self.dies_after:
            raise KeyboardInterrupt
        rows = [(TEXT.decode(c), int(s)) for c, s in zip(condition, seeds, strict=True)]
        self.drawn += rows
        self.batches.add(len(rows))
        ids = np.array([colour(*row) for row in rows], np.int32)[..., None]
        return Samples(Tokens(jnp.asarray(ids), SPEC), jnp.zeros((len(rows), 3)), jnp.int32(3))

    @staticmethod
    def decode(ids):
        return np.broadcast_to(np.asarray(ids)[:, None, None] / 255, (len(ids), SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture
def model(tmp_path, monkeypatch):
    model = Model(tmp_path / "run")
    monkeypatch.setattr(eval_prompts, "open_trained", lambda workdir, step: model.trained)
    return model


@pytest.fixture
def parti(tmp_path):
    (tmp_path / "Some.tsv").write_text(PARTI)
    return tmp_path / "Some.tsv"


def run(capsys, *args) -> str:
    capsys.readouterr()
    assert cli.main(["eval", "prompts", "--quiet", *map(str, args)]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *args) -> str:
    capsys.readouterr()
    assert cli.main(["eval", "prompts", "--quiet", *map(str, args)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vimlab: error: ")]
    return line


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def shown(file):
    """The colours of a picture's tiles of SIZE pixels, row by row."""
    image = np.asarray(Image.open(file))
    assert image.ndim == 3 and not len(image) % SIZE
    tiles = image.reshape(len(image) // SIZE, SIZE, -1, SIZE, 3).swapaxes(1, 2).reshape(-1, SIZE * SIZE, 3)
    assert (tiles == tiles[:, :1]).all()
    return [tuple(t[0].tolist()) for t in tiles]


def test_a_picture_is_its_prompts_and_its_seeds_whatever_the_batch(capsys, model, parti, tmp_path):
    flat = ["--workdir", "run", "--file", parti, "--layout", "flat", "--num", 2, "--seed", 5]
    said = run(capsys, *flat, "--out", tmp_path / "a", "--batch", 1)
    assert said.startswith(f"10 pictures of 5 prompts in {tmp_path / 'a'}; prompts.json says how")
    files = tree(tmp_path / "a")
    assert sorted(files) == sorted(["prompts.json", *(f"{row:05d}_{n:02d}.png" for row in range(5) for n in range(2))])
    assert model.batches == {8}, "filled up"
    assert shown(tmp_path / "a/00002_01.png") == [colour("a lamp", 5 + 2 * 2 + 1)]
    record = json.loads(files["prompts.json"])
    assert record["images"][2]["seeds"] == [9, 10] and record["request"]["step"] == 7 and record["protocol"]["seed"] == 5
    run(capsys, *flat, "--out", tmp_path / "b", "--batch", 64)
    assert model.batches == {8, 64}
    run(capsys, *flat, "--out", tmp_path / "c", "--limit", 2)
    assert {k: v for k, v in tree(tmp_path / "b").items() if k != "prompts.json"} == {k: v for k, v in files.items() if k != "prompts.json"}
    some = {k: v for k, v in tree(tmp_path / "c").items() if k != "prompts.json"}
    assert sorted(some) == ["00000_00.png", "00000_01.png", "00002_00.png", "00002_01.png"] and all(files[k] == v for k, v in some.items())


def test_only_what_is_missing_is_drawn(capsys, model, parti, tmp_path):
    out = tmp_path / "out"
    flags = ["--workdir", "run", "--file", parti, "--num", 4, "--batch", 8, "--out", out]
    model.dies_after = 8
    assert cli.main(["eval", "prompts", "--quiet", *map(str, flags)]) == 130  # As Ctrl-C does, after one batch.
    assert len(list(out.rglob("*.png"))) == 8 and (out / "prompts.json").is_file() and not (out / "gallery.html").exists()
    model.dies_after = np.inf
    assert "20 pictures of 5 prompts" in (said := run(capsys, *flags)) and "8 of which were there already" in said
    assert len(set(model.drawn)) == 20
    whole = tree(out)
    for name in ("pictures/00001_03.png", "pictures/00004_00.png"):
        (out / name).unlink()
    model.drawn.clear()
    assert "18 of which were there already" in run(capsys, *flags)
    assert set(model.drawn) == {("<b>bold</b> & free", 7), ("a pan", 16)} and tree(out) == whole | {"prompts.json": tree(out)["prompts.json"]}
    model.drawn.clear()
    run(capsys, *flags)
    assert not model.drawn


def test_another_request_into_the_same_folder_is_refused(capsys, model, parti, tmp_path):
    flags = ["--workdir", "run", "--file", parti, "--num", 1, "--out", tmp_path / "out"]
    run(capsys, *flags)
    before = tree(tmp_path / "out")
    assert "out holds images of another request (guidance 1.0, not 2.0); choose another, or remove it" in refused(capsys, *flags, "--guidance", 2)
    assert "(limit None, not 3)" in refused(capsys, *flags, "--limit", 3)
    parti.write_text(PARTI.replace("round", "square"))
    assert "(prompts '" in refused(capsys, *flags)
    assert tree(tmp_path / "out") == before
    (tmp_path / "out/prompts.json").unlink()
    assert "holds pictures/00000_00.png, but no prompts.json that explains it" in refused(capsys, *flags)


def test_geneval_finds_its_folders(capsys, model, tmp_path):
    (tmp_path / "m.jsonl").write_text("\n".join(GENEVAL) + "\n")
    out = tmp_path / "run/prompts/geneval"  # Where they go unless told otherwise.
    said = run(capsys, "--workdir", tmp_path / "run", "--file", tmp_path / "m.jsonl", "--layout", "geneval")
    assert sorted(tree(out)) == sorted(["prompts.json", *(f"{row:05d}/{name}" for row in range(2)
                                        for name in ("metadata.jsonl", *(f"samples/{n:04d}.png" for n in range(4))))])  # fmt: skip
    assert [(out / f"0000{row}/metadata.jsonl").read_text() for row in range(2)] == GENEVAL
    assert shown(out / "00001/samples/0002.png") == [colour("2 cups", 6)]
    assert f"python evaluation/evaluate_images.py {out} --outfile {out}/results.jsonl" in said
    verdicts = [{"filename": f"x/{r:05d}/samples/{n:04d}.png", "tag": json.loads(GENEVAL[r])["tag"], "prompt": f"{r + 1} cups", "correct": n == r}
                for r in range(2) for n in range(4)]  # fmt: skip
    (out / "results.jsonl").write_text("\n".join(map(json.dumps, verdicts)))
    read = ["--workdir", tmp_path / "run", "--layout", "geneval", "--read", out / "results.jsonl"]
    assert re.search(r"^overall +0\.2500$", run(capsys, *read), re.M)
    found = json.loads((tmp_path / "run/evals/geneval_00000007.json").read_text())
    assert found["metrics"] == {"overall": 0.25, "single_object": 0.25, "counting": 0.25, "correct_images": 0.25, "correct_prompts": 1.0}
    protocol = found["protocol"]
    assert (protocol["evaluator"], protocol["step"], protocol["count"], protocol["split"]) == ("geneval", 7, 8, "all 2 prompts")
    assert protocol["sampler"]["guidance"] == 1 and protocol["seed"] == 0 and protocol["command"].startswith("vimlab")
    report = write_report(tmp_path / "run").read_text()
    assert "<h3>GenEval</h3>" in report and "8 images (all 2 prompts), step 7" in report and "Single object</td>" in report
    (out / "results.jsonl").write_text("{}")
    assert "line 1, is not one of GenEval's results" in refused(capsys, *read)


def test_dpg_bench_finds_four_pictures_in_one_and_nothing_beside_them(capsys, model, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/sea.txt").write_text("The sea.\n")
    (tmp_path / "p/hill7.txt").write_text("A hill.")
    flags = ["--workdir", tmp_path / "run", "--file", tmp_path / "p", "--layout", "dpg", "--out", tmp_path / "out"]
    said = run(capsys, *flags)
    assert sorted(tree(tmp_path / "out")) == ["images/hill7.png", "images/sea.png", "prompts.json"]
    assert shown(tmp_path / "out/images/sea.png") == [colour("The sea.", seed) for seed in (4, 5, 6, 7)]
    assert Image.open(tmp_path / "out/images/sea.png").size == (2 * SIZE, 2 * SIZE)
    assert f"PIC_NUM=4 bash dpg_bench/dist_eval.sh {tmp_path}/out/images {SIZE}\n" in said
    assert "--num is 2, but --layout dpg takes 1, or 4 to a picture" in refused(capsys, *flags, "--num", 2)
    results = tmp_path / "results.txt"
    results.write_text("/x/images/sea.png, 1.0, 1.0, 1.0, 0.0, 0.75\n/x/images/hill7.png, 0.0, 0.0, 0.5, 0.5, 0.25\nModel: images\n"
                       "L1 category scores:\n\tentity: 50.0\nL2 category scores:\n\tentity - whole: 50.0\nDPG-Bench score: 50.0\n")  # fmt: skip
    read = ["--workdir", tmp_path / "run", "--read", results, "--out", tmp_path / "out"]
    assert "DPG-Bench on 8 pictures of 2 prompts, step 7" in run(capsys, *read, "--layout", "dpg")
    assert json.loads((tmp_path / "run/evals/dpg_00000007.json").read_text())["metrics"] == {"score": 50.0, "entity": 50.0}
    assert "--read needs the --layout of the benchmark that judged: geneval or dpg" in refused(capsys, *read)
    assert "was drawn for --layout dpg, not geneval" in refused(capsys, *read, "--layout", "geneval")
    assert "holds no prompts.json; give --out the folder" in refused(capsys, *read, "--layout", "dpg", "--out", tmp_path / "p")
    assert f"was drawn by {tmp_path / 'run'}, not by {tmp_path / 'p'}" in refused(capsys, *read, "--layout", "dpg", "--workdir", tmp_path / "p")
    (tmp_path / "out/prompts.json").write_text("[]")
    assert "prompts.json is not one of ours" in refused(capsys, *read, "--layout", "dpg")


def test_the_gallery_groups_and_explains_and_loads_nothing(capsys, model, parti, tmp_path, monkeypatch):
    flags = ["--workdir", "run", "--file", parti, "--num", 2, "--out", tmp_path / "out"]
    assert "gallery.html (0.0 MB); 2 pictures by category in" in run(capsys, *flags)
    page = (tmp_path / "out/gallery.html").read_text()
    assert re.findall(r'<h2>(\w+) <span class="count">(\d)', page) == [("Food", "2"), ("Arts", "3")]
    assert [html.unescape(t) for t in re.findall(r"<figcaption><b>(.*?)</b>", page)] == [
        "an egg", "a pan", "<b>bold</b> & free", "a lamp", "a tin whistle"]  # fmt: skip
    assert re.findall(r'data-challenge="(\w+)"', page) == ["Basic", "Basic", "Simple", "Basic", "Simple"]
    assert page.count('<img class="sharp" src="data:image/png;base64,') == 10 and "seeds 8–9" in page and ">round</p>" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "://" not in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = re.search(r"script-src 'sha256-(.*?)'", page)[1]
    assert base64.b64decode(digest) == hashlib.sha256(script.encode()).digest()
    grid = np.asarray(Image.open(tmp_path / "out/grids/food.png"))
    assert {colour("a pan", 8), colour("a pan", 9), colour("an egg", 0)} <= set(map(tuple, grid.reshape(-1, 3).tolist()))
    assert sorted(p.name for p in (tmp_path / "out/grids").iterdir()) == ["arts.png", "food.png"]
    monkeypatch.setattr(gallery, "PAGE_BYTES", 100)
    run(capsys, *flags)
    page = (tmp_path / "out/gallery.html").read_text()
    assert 'src="pictures/00000_00.png"' in page and "data:image" not in page and "img-src 'self' file:;" in page


def test_large_pictures_are_made_smaller_in_the_page_and_kept_beside_it(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    pictures.save_png(tmp_path / "a.png", noise)
    source = gallery._data(tmp_path / "a.png")
    assert source.startswith("data:image/jpeg;base64,") and len(source) < 200_000
    assert gallery._small(tmp_path / "a.png", 256).shape == (256, 256, 3)


def test_prompts_without_categories_are_one_wall(capsys, model, tmp_path):
    (tmp_path / "p.txt").write_text("an egg\na lamp\n")
    run(capsys, "--workdir", "run", "--file", tmp_path / "p.txt", "--num", 1, "--out", tmp_path / "out")
    page = (tmp_path / "out/gallery.html").read_text()
    assert "<h2><" not in page and page.count("<figcaption>") == 2 and "data-by=" not in page.partition("<script>")[0]
    assert (tmp_path / "out/grids/all.png").is_file()


def test_prompts_longer_than_the_model_reads(capsys, model, tmp_path):
    (tmp_path / "p.txt").write_text(f"an egg\n{'very ' * 6}long\na lamp\n")
    flags = ["--workdir", "run", "--file", tmp_path / "p.txt", "--num", 1]
    assert (f"p.txt: 1 of 3 prompts have more than the 23 tokens that the model of {tmp_path / 'run'} reads (up to 34); add --skip-long to leave "
            "them out, or --truncate to cut them") in refused(capsys, *flags)  # fmt: skip
    said = run(capsys, *flags, "--skip-long", "--out", tmp_path / "a")
    assert "2 pictures of 2 prompts" in said and "1 prompts of the file have more than the 23 tokens that the model reads, and were left out" in said
    assert sorted(p.name for p in (tmp_path / "a/pictures").iterdir()) == ["00000_00.png", "00002_00.png"]
    assert set(model.drawn) == {("an egg", 0), ("a lamp", 2)}
    said = run(capsys, *flags, "--truncate", "--out", tmp_path / "b")
    assert "3 pictures of 3 prompts" in said and "1 prompts were cut to the 23 tokens" in said
    assert ("very very very very ver", 1) in model.drawn
    assert "The model reads only: very very very very ver<" in (tmp_path / "b/gallery.html").read_text()
    (tmp_path / "p.txt").write_text("very " * 6)
    assert "all 1 prompts are longer than the 23 tokens" in refused(capsys, *flags, "--skip-long", "--out", tmp_path / "c")


def test_mistakes_are_one_sentence(capsys, model, parti, tmp_path, monkeypatch):
    flags = ["--workdir", "run", "--file", parti, "--out", tmp_path / "out"]
    for more, sentence in [
        (["--limit", 0], "--limit is 0, but must be at least 1"),
        (["--num", 0], "--num is 0, but must be at least 1"),
        (["--top-p", 2], "--top-p is 2.0, but must be above 0 and at most 1"),
        (["--seed", 2**32 - 19], "the seeds of 20 pictures must stay below 2^32"),
        (["--layout", "geneval"], "--layout geneval needs the 'tag' and 'include' that GenEval judges by"),
        (["--layout", "dpg"], "--layout dpg names pictures after prompts; give DPG-Bench's folder of .txt files"),
        (["--out", parti], "Some.tsv is not a folder; choose another"),
        (["--file", tmp_path / "Sone.tsv"], "Sone.tsv does not exist; did you mean 'Some.tsv'?"),
    ]:
        assert sentence in refused(capsys, *flags, *more)
    for condition, guided, sentence in [
        ("class", True, "takes a class, not a text; give the workdir of a text-to-image generator"),
        ("text", False, "--guidance is 3, but"),
    ]:
        other = Model(tmp_path / "run", condition, guided)
        monkeypatch.setattr(eval_prompts, "open_trained", lambda workdir, step, other=other: other.trained)
        assert sentence in refused(capsys, *flags, "--guidance", 3)
    assert not (tmp_path / "out").exists() and not model.drawn


def test_eval_is_a_table_of_words_too(capsys):
    assert cli.main(["eval", "promts"]) == 2
    assert "there is no `vimlab eval promts`; did you mean 'prompts'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["eval", "--help"])
    assert "`vimlab eval prompts …`" in " ".join(capsys.readouterr().out.split())
