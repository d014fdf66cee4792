"""The shipped configs: each resolves, survives JSON, says in its docstring what it is, and the numbers there are true."""

import ast
import dataclasses
import json
import pathlib
import re

import jax
import pytest

from vimlab import config as configs
from vimlab import run as runs
from vimlab.config import ConfigError
from vimlab.tasks.generator_config import GeneratorRun
from vimlab.tokenizers.discriminator import Discriminator
from vimlab.tokenizers.sizes import PAIRS
from vimlab.tokens import TokenSpec

FILES = sorted((pathlib.Path(__file__).resolve().parents[1] / "configs").glob("*.py"))
IMAGENET = next(f for f in FILES if f.stem == "vitvq_small_imagenet256")
CIFAR = next(f for f in FILES if f.stem == "vitvq_cifar10")
VARIANTS = [str(f) for f in FILES] + [f"{f}:smoke" for f in FILES] + [f"{IMAGENET}:pair=bb", f"{IMAGENET}:pair=sl"]


def doc(file: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text()))


def resolve(spec: str):
    return runs.resolve(configs.load(spec))


def numbers(text: str) -> list[int]:
    return [int(n.replace(",", "")) for n in re.findall(r"(?<![\w.])\d[\d,]*\d(?![\w.%])|(?<![\w.])\d(?![\w.%])", text)]


def field(file: pathlib.Path, name: str) -> str:
    (value,) = re.findall(rf"^{name}:\s*(.+(?:\n {{10}}.+)*)$", doc(file), re.MULTILINE)
    return value


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def discriminator_params(config) -> int:
    gan, size = config.loss.adversarial, config.model.image_size
    module = Discriminator(size, gan.channel_multiplier, gan.base_channels, gan.max_channels, gan.minibatch_group)
    images = jax.ShapeDtypeStruct((gan.minibatch_group, size, size, 3), "float32")
    return count(jax.eval_shape(module.init, jax.random.key(0), images))


@pytest.mark.parametrize("spec", VARIANTS, ids=lambda s: pathlib.Path(s).name)
def test_each_resolves_and_survives_json(spec):
    config = resolve(spec)
    tree = json.loads(json.dumps(runs.to_dict(config)))
    assert runs.resolve(tree) == config and runs.to_dict(runs.resolve(tree)) == tree


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_smoke_is_small(file):
    config = resolve(f"{file}:smoke")
    generator = isinstance(config, GeneratorRun)
    assert (config.model.core_params() if generator else config.model.param_count()) < 1_000_000
    assert generator or config.model.image_size <= 32
    assert config.duration.steps(config.batch_size, 1500) <= 50
    assert config.data.train.startswith(("emoji", "shapes")), "a smoke run needs no data of the user's"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_docstrings_say_what_a_reader_needs(file):
    assert doc(file).splitlines()[0].endswith(".")
    for name in ("paper", "command", "hardware", "hours", "expected", "params", "status"):
        assert field(file, name)
    assert f"configs/{file.name}" in field(file, "command"), "the command runs this file"
    for option in re.findall(r"\W:(\w+)=(\w+)", doc(file)):
        resolve(f"{file}:{'='.join(option)}")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_parameter_counts_in_docstrings_are_true(file):
    config = resolve(str(file))
    if isinstance(config, GeneratorRun):
        assert field(file, "params").endswith("without embeddings and softmax")
        assert numbers(field(file, "params")) == [config.model.core_params()]
        return
    tokenizer, _, discriminator = field(file, "params").partition("discriminator")
    variants = [f"{file}:pair={pair}" for pair in PAIRS] if "pair" in doc(file) else [str(file)]
    assert numbers(tokenizer) == [resolve(v).model.param_count() for v in variants]
    assert numbers(discriminator) == ([discriminator_params(config)] if config.loss.adversarial else [])


def test_the_number_reader():
    assert numbers("tokenizer 59,722,784 (ss), 12 (bb), 0; x2 v0.1 1.99 95%") == [59722784, 12, 0]


def test_imagenet_is_the_papers_recipe():
    """Sections 3 and 4.1 of the ViT-VQGAN paper."""
    config = resolve(str(IMAGENET))
    sizes = {"s": (8, 512, 8, 2048), "b": (12, 768, 12, 3072), "l": (32, 1280, 16, 5120)}  # Blocks, width, heads and MLP of Table 2.
    for pair in PAIRS:
        model = resolve(f"{IMAGENET}:pair={pair}").model
        assert [dataclasses.astuple(tower) for tower in (model.encoder, model.decoder)] == [sizes[letter] for letter in pair]
    assert config.model.spec.length == 1024 and (config.model.quantizer.codes, config.model.quantizer.dim) == (8192, 32)
    assert config.batch_size == 256 and str(config.duration) == "500000 steps"
    optim, steps = config.optim, lambda d: d.steps(256)
    rate = optim.rate(500_000, steps)
    assert [float(rate(s)) for s in (49_999, 50_000, 275_000, 500_000)] == pytest.approx([1e-4, 1e-4, 0.75e-4, 0.5e-4], rel=1e-4)
    assert (optim.b1, optim.b2, optim.weight_decay) == (0.9, 0.99, 1e-4)
    loss = config.loss
    assert (loss.l2, loss.logit_laplace, loss.perceptual.weight, loss.adversarial.weight, loss.codebook) == (1.0, 0.1, 0.1, 0.1, 1.0)
    assert config.model.quantizer.beta == 0.25


def test_imagenet_arguments_are_checked():
    with pytest.raises(ConfigError, match="pair"):
        resolve(f"{IMAGENET}:pair=xx")


def test_own_pictures_are_cut_and_emoji_are_not():
    emoji = next(f for f in FILES if f.stem == "vitvq_emoji")
    own, shipped = resolve(f"{emoji}:data=pictures,holdout=9").data, resolve(str(emoji)).data
    assert (own.crop.NAME, own.eval_crop.NAME, own.holdout, own.eval) == ("tokenizer", "center", 9, None)
    assert (shipped.crop.NAME, shipped.eval_crop.NAME, shipped.eval) == ("resize", "resize", "emoji#test")


def test_cifar_is_of_the_size_that_it_says():
    model = resolve(str(CIFAR)).model
    assert (model.image_size, model.patch, model.spec.length, model.spec.codes) == (32, 4, 64, 1024)


# ---- generators ----


def config_of(stem: str):
    return resolve(str(CIFAR.with_name(f"{stem}.py")))


@pytest.mark.parametrize(
    "stem, size, steps",
    [
        ("vim_base_imagenet256", (24, 1536, 16, 6144), (4_999, 80_000, 450_000)),  # Table 2 of the ViT-VQGAN paper.
        ("vim_large_imagenet256", (36, 2048, 32, 8192), (4_999, 80_000, 450_000)),
        ("parti_350m", (12, 1024, 16, 4096), (4_999, 85_000, 450_000)),  # Table 1 of the Parti paper.
        ("parti_750m", (36, 1024, 16, 4096), (4_999, 85_000, 450_000)),
        ("parti_3b", (36, 2048, 32, 8192), (4_999, 85_000, 450_000)),
        ("parti_20b", (64, 4096, 64, 16384), (4_999, 85_000, 450_000)),
    ],
)
def test_generators_are_the_papers_recipes(stem, size, steps):
    """Section 4.2 of the ViT-VQGAN paper, section 4.1 of Parti's."""
    config, vim = config_of(stem), stem.startswith("vim")
    model, optim = config.model, config.optim
    assert (model.depth, model.width, model.heads, model.mlp, model.dropout) == (*size, 0.1)
    rates = (4.5e-4, 4.5e-4, 1e-5) if vim else (4.5e-5, 4.5e-5, 0.025 * 4.5e-5)
    assert [float(optim.rate(450_000, lambda d: d.steps(1))(s)) for s in steps] == pytest.approx(rates, rel=1e-3)
    assert (optim.NAME, optim.b1, optim.b2, optim.moment) == ("adafactor", 0.9, 0.96, "int8")
    assert config.batch_size == (1024 if vim else 8192) and str(config.duration) == "450000 steps"
    assert model.condition.NAME == ("class" if vim else "text") and model.conv_kernel == (None if vim else 11)
    if not vim:
        assert (optim.weight_decay, optim.clip) == (0.045, 4.0) and config.data.text.length == 128
        assert model.condition.depth == (16 if stem == "parti_20b" else 12) and (model.activation, model.use_bias) == ("relu", False)
        assert config.data.crop.NAME == "generator", "no mirrored writing"


@pytest.mark.parametrize("stem, millions", [("parti_350m", 352), ("parti_750m", 755), ("parti_3b", 3020), ("parti_20b", 20402)])
def test_parti_is_of_the_size_that_its_name_says(stem, millions):
    """Counted from shapes: all parameters less tables and softmax."""
    model = config_of(stem).model.make(TokenSpec((32, 32), 8192), vocabulary=16_000, text_length=128, platform="cpu")
    ids, text = jax.ShapeDtypeStruct((1, 1024), "int32"), jax.ShapeDtypeStruct((1, 128), "int32")
    params = jax.eval_shape(model.init, jax.random.key(0), ids, text)["params"]
    tables = {name: params.pop(name) for name in ("tokens", "rows", "columns", "head")}
    assert count(tables["tokens"]) == count(tables["head"]) == 8192 * model.width
    for name in ("table", "positions", "start"):
        params["conditioner"].pop(name)
    assert count(params) == config_of(stem).model.core_params() and count(params) // 1_000_000 == millions
