"""Inception against torch's stored answers on the same drawn weights; extractors by name; mistakes in their weights named."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimlab import config, safetensors_io, weights
from vimlab.evals import extractors, inception, random_features

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from known_answers import inception as answers  # noqa: E402

ANSWER = ROOT / "tests/known_answers/inception.npz"


@pytest.fixture(scope="module")
def drawn():
    """The tensors of pytorch-fid's file as the torch program drew them."""
    named = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, (inputs, outputs, height, width) in inception.shapes().items():
        named[f"{name}.conv.weight"] = (outputs, inputs, height, width)
        named |= {f"{name}.bn.{part}": (outputs,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {name: answers.draw(name, shape) for name, shape in named.items()}


@pytest.fixture(scope="module")
def drawn_file(drawn, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "drawn.safetensors"
    safetensors_io.write(path, drawn)
    return path


def test_inception_matches_torch_with_both_resizes(drawn_file):
    extractor = extractors.Inception(weights=str(drawn_file), allow_unknown=True).open()
    assert (extractor.name, extractor.is_fid) == ("inception-v3-fid-unverified", False)
    assert extractor.identity == weights.sha256(drawn_file) and isinstance(extractor, extractors.Extractor)
    answer = np.load(ANSWER)
    images, trunk = jnp.float32(answer["images"]) / 255, jax.jit(inception.trunk)
    batches = {"pytorch-fid": (0, 2), "tf1": (0,)}  # Pairs of pictures: one shape, compiled once.
    for resize, starts in batches.items():
        pairs = [trunk(extractor.weights, inception.prepare(images[i : i + 2], resize)) for i in starts]
        for key in ("features", "spatial", "logits") if resize == "pytorch-fid" else ("features",):
            found, expected = np.concatenate([p[key] for p in pairs]), answer[f"small/{resize}/{key}"]
            assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), (resize, key)
    shapes = jax.eval_shape(extractor.apply, extractor.weights, jax.ShapeDtypeStruct((3, 32, 48, 3), jnp.float32))
    assert {k: x.shape for k, x in shapes.items()} == {"features": (3, 2048), "spatial": (3, 2023), "logits": (3, 1008)}


@pytest.mark.parametrize("half_pixel", [True, False])
@pytest.mark.parametrize("size", [5, 299, 512])
def test_resize_is_linear_interpolation_at_stated_coordinates(half_pixel, size):
    values = np.random.default_rng(0).uniform(size=size)
    places = (np.arange(299) + 0.5) * size / 299 - 0.5 if half_pixel else np.arange(299) * size / 299
    expected = np.interp(places, np.arange(size), values)  # The ends are held, as in both.
    # The weights come from places in f32, which up to 512 are exact to 2^-15 of a pixel; neighbours differ by 1 at most. Measured: 1.3e-5.
    np.testing.assert_allclose(inception._interpolation(size, half_pixel) @ values, expected, rtol=0, atol=2**-15)


def test_pools_leave_padding_out():
    x = np.random.default_rng(1).standard_normal((1, 5, 4, 2)).astype(np.float32)
    windows = lambda reduce: [[reduce(x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2], (0, 1)) for j in range(4)] for i in range(5)]
    mean, largest = jax.jit(lambda x: (inception._mean_pool(x), inception._max_pool(inception._pad(x, -jnp.inf), stride=1)))(x)
    np.testing.assert_allclose(mean[0], windows(np.mean), rtol=0, atol=3e-7)  # Nine numbers of about 1 in f32; measured: 6e-8.
    np.testing.assert_array_equal(largest[0], windows(np.max))


def test_the_name_says_the_resize_and_the_published_file_alone_is_fid(monkeypatch):
    known = weights.KNOWN["inception"]
    monkeypatch.setattr(weights, "locate", lambda *ids, **_: weights.Found(pathlib.Path("fetched.pth"), known.sha256, known))
    monkeypatch.setattr(weights, "read", lambda path: {})
    monkeypatch.setattr(inception, "convert", lambda arrays, origin: {})
    opened = [extractors.Inception(resize=resize).open() for resize in ("pytorch-fid", "tf1", "pytorch-fid")]
    assert [e.name for e in opened[:2]] == ["inception-v3-fid", "inception-v3-fid-tf1"]
    assert all(e.is_fid and e.identity == known.sha256 for e in opened)
    assert opened[0].apply is opened[2].apply and opened[0].apply is not opened[1].apply


def test_weights_of_another_network_are_named(drawn):
    def fails(match, **changed):
        with pytest.raises(weights.WeightsError, match=match):
            inception.convert({k: x for k, x in (drawn | changed).items() if x is not None}, "mine.pth")

    fails(r"mine.pth lacks Mixed_6a.branch3x3.conv.weight", **{"Mixed_6a.branch3x3.conv.weight": None})
    fails(r"has fc.weight of shape \(1000, 2048\), so it is not FID's InceptionV3", **{"fc.weight": drawn["fc.weight"][:1000]})
    fails("Conv2d_1a_3x3.bn.bias that are not finite", **{"Conv2d_1a_3x3.bn.bias": np.full(32, np.nan, np.float32)})


def test_random_features_are_fixed_and_see_what_changes():
    extractor = extractors.Random().open()
    assert (extractor.name, extractor.is_fid) == ("random-conv-v1", False)
    # Another hash means other features: give VERSION a new number.
    assert extractor.identity.startswith("f468ca3852ffa3df")
    kernel = extractor.weights["conv1.w"]
    assert abs(kernel.mean()) < 0.003 and abs(kernel.var() / (2 / (9 * 32)) - 1) < 0.03
    rng = np.random.default_rng(2)
    image = np.kron(rng.uniform(size=(1, 8, 8, 3)), np.ones((1, 4, 4, 1))).astype(np.float32)
    noisy = np.clip(image + 0.1 * rng.standard_normal(image.shape), 0, 1).astype(np.float32)
    apply = jax.jit(extractor.apply)
    a, b, c = apply(extractor.weights, np.concatenate([image, noisy, image[:, :, ::-1]]))["features"]
    assert a.shape == (512,) and np.abs(a - b).max() > 0.01 and np.abs(a - c).max() > 0.001
    with pytest.raises(config.ConfigError, match="8x8 are too small for the extractor random-conv-v1"):
        random_features.apply(extractor.weights, jnp.zeros((1, 8, 8, 3)))


def test_a_config_chooses_by_name():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Section:
        extractor: extractors.ExtractorConfig = extractors.Inception()

    chosen = config.resolve(Section, {"extractor": {"name": "random"}})
    assert chosen.extractor == extractors.Random()
    chosen = config.resolve(Section, {}, [("extractor.resize", "tf1")])
    assert chosen.extractor == extractors.Inception(resize="tf1")
    with pytest.raises(config.ConfigError, match=r"extractor.name is 'incepton'; did you mean 'inception'\?"):
        config.resolve(Section, {"extractor": {"name": "incepton"}})
