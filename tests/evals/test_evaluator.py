"""Evaluators: masked, independent of batch size and devices, and no figure without its protocol."""

import hashlib
import json
import re

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
from PIL import Image

from vimlab import pictures, safetensors_io
from vimlab.config import ConfigError, resolve, to_dict
from vimlab.evals import EvalsConfig, Subject, evaluate, reconstruction, suited
from vimlab.evals.codebook import Codebook
from vimlab.evals.reconstruction import Reconstruction
from vimlab.losses import perceptual
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import batch_sharding
from vimlab.tokens import Tokens, TokenSpec

PROTOCOL = dict(
    data="folder:pets",
    fingerprint="c0ffee",
    split="test",
    crop="resize-short + centre",
    size=16,
    dtype="float32",
    parameters="ema",
    command="vimlab eval",
)
SPEC = TokenSpec(grid=(4, 4), codes=64)
GAIN = 1.2937  # no level times it lies half-way between two levels
IMAGES = np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), np.uint8)


@jax.jit
def reconstruct(state, images):
    """Brightens by a factor, out of [0, 1] for many pixels."""
    return images * state["gain"]


@jax.jit
def encode(state, images):
    """4x4 patches by their mean brightness."""
    means = images.reshape(-1, 4, 4, 4, 4, 3).mean((2, 4, 5)).reshape(-1, 16, 1)
    return Tokens(jnp.clip((means - 0.3) * 160, 0, 63).astype(jnp.int32), SPEC)


def batches(size, place=lambda x: x):
    """One pass with the last batch filled up by white images under mask 0."""
    for start in range(0, len(IMAGES), size):
        real = IMAGES[start : start + size]
        fill = np.full((size - len(real), *IMAGES.shape[1:]), 255, np.uint8)
        mask = np.arange(size, dtype=np.float32) < len(real)
        yield {"image": place(np.concatenate([real, fill])), "mask": place(mask.astype(np.float32))}


def subject(size=8, gain=GAIN, place=lambda x: x, **kwargs):
    fns = {"reconstruct": reconstruct, "encode": encode}
    fields = dict(
        state={"gain": np.float32(gain)},
        predict_fns=fns,
        batches=lambda: batches(size, place),
        spec=SPEC,
        protocol=PROTOCOL,
        step=40,
    )
    return Subject(**fields | kwargs)


def run_all(**kwargs):
    return {e.NAME: e().run(subject(**kwargs)) for e in (Reconstruction, Codebook)}


def test_figures_of_a_known_reconstruction():
    """Against NumPy on all 21 images at once; the filled-up examples and what lies over 1 before rounding do not count."""
    metrics = Reconstruction().run(subject()).metrics
    x = IMAGES / 255
    y = np.round(np.clip(x.astype(np.float32) * np.float32(GAIN), 0, 1) * 255) / 255
    errors = np.square(x - y).mean((1, 2, 3))
    expected = {
        "l2": errors.mean(),
        "l1": np.abs(x - y).mean(),
        "psnr": (-10 * np.log10(errors)).mean(),
        "psnr_of_mean_mse": -10 * np.log10(errors.mean()),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-6), name
    assert metrics["psnr"] > metrics["psnr_of_mean_mse"] + 1e-4


def test_figures_depend_on_neither_batch_size_nor_devices():
    reference = run_all(size=21)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    place = lambda x: jax.device_put(x, batch_sharding(mesh))
    for other in (run_all(size=1), run_all(size=8), run_all(size=24, place=place)):
        for name, result in reference.items():
            assert other[name].metrics == pytest.approx(result.metrics, rel=1e-6)
            assert other[name].protocol == result.protocol and result.protocol["count"] == 21
            assert other[name].arrays == result.arrays
        np.testing.assert_array_equal(
            other["reconstruction"].pictures["reconstruction"], reference["reconstruction"].pictures["reconstruction"]
        )


def test_rounding_hides_errors_under_half_a_level():
    metrics = Reconstruction().run(subject(gain=1.001)).metrics
    assert metrics["l2"] == 0 and metrics["psnr"] == pytest.approx(100) and metrics["ssim"] == pytest.approx(1)


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    """Random weights that pass for LPIPS's."""
    rng, named, channels = np.random.default_rng(5), {}, 3
    for stage, width in zip(perceptual.STAGES, perceptual.WIDTHS, strict=True):
        for index in stage:
            kernel = rng.standard_normal((width, channels, 3, 3), dtype=np.float32)
            named[f"features.{index}.weight"] = kernel * np.float32(np.sqrt(2 / (9 * channels)))
            named[f"features.{index}.bias"], channels = np.full(width, 0.1, np.float32), width
    for k, total in enumerate(perceptual.HEAD_SUMS):
        named[f"lin{k}.model.1.weight"] = np.full((1, perceptual.WIDTHS[k], 1, 1), total / perceptual.WIDTHS[k], np.float32)
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    safetensors_io.write(path, named)
    return path


def test_lpips_is_reported_where_its_weights_are_given(lpips_file):
    evaluator = Reconstruction(lpips=(str(lpips_file),))
    result = evaluator.run(subject(size=7))
    weights = perceptual.load_weights(lpips_file)
    x = IMAGES.astype(np.float32) / 255
    y = np.round(np.clip(x * np.float32(GAIN), 0, 1) * 255) / 255
    values = np.asarray(jax.jit(perceptual.lpips)(weights, x, y))
    assert result.metrics["lpips"] == pytest.approx(float(values.mean()), rel=1e-4) and values.mean() > 1e-3
    assert result.arrays["worst"] == np.argsort(-values)[:8].tolist() and result.protocol["worst"] == "by LPIPS"
    assert result.protocol["lpips_sha256"] == {"lpips.safetensors": hashlib.sha256(lpips_file.read_bytes()).hexdigest()}
    with pytest.raises(perceptual.PerceptualError, match="the perceptual weights 'none.pth' do not exist"):
        Reconstruction(lpips=("none.pth",)).run(subject(predict_fns={"reconstruct": lambda *args: pytest.fail("it ran")}))


@pytest.mark.parametrize("size", [1, 8, 21])
def test_the_worst_reconstructions_are_shown(size):
    x = IMAGES / 255
    y = np.round(np.clip(np.float32(x) * np.float32(GAIN), 0, 1) * 255) / 255
    errors = np.square(x - y).mean((1, 2, 3))
    result = Reconstruction(pictures=5).run(subject(size=size))
    worst = np.argsort(-errors)[:5]
    assert result.arrays["worst"] == worst.tolist() and result.protocol["worst"] == "by PSNR"
    labels = [f"image {i}, {-10 * np.log10(errors[i]):.1f} dB" for i in worst]
    expected = pictures.captioned(IMAGES[worst], labels, beside=np.uint8(np.round(y[worst] * 255)))
    np.testing.assert_array_equal(result.pictures["reconstruction_worst"], expected)


def test_similarity_is_left_out_where_the_window_does_not_fit():
    figures = lambda side: set(jax.eval_shape(reconstruction._figures, *[jnp.zeros((1, side, side + 9, 3))] * 2, None))
    assert figures(10) == {"psnr", "l1", "l2"} and figures(160) - figures(10) == {"ssim"}
    assert figures(161) - figures(160) == {"ms_ssim"}


def test_codebook_counts_real_images_only():
    ids = np.asarray(encode({}, IMAGES / np.float32(255)).ids)
    result = Codebook(batch=10).run(subject())
    np.testing.assert_array_equal(result.arrays["counts"][0], np.bincount(ids.ravel(), minlength=64))
    expected = np.mean([len(np.unique(ids[i : i + 10])) / 64 for i in (0, 10)])
    assert result.metrics["usage_batch"] == pytest.approx(expected, abs=1e-12)


def test_files_carry_the_protocol(tmp_path):
    figures = evaluate(EvalsConfig().named(["reconstruction", "codebook"]), subject(), tmp_path)
    record = json.loads((tmp_path / "evals" / "reconstruction_00000040.json").read_text())
    assert record["metrics"]["psnr"] == figures["eval/reconstruction/psnr"]
    assert record["protocol"].items() >= (PROTOCOL | {"count": 21, "rounding": "uint8", "step": 40}).items()
    assert record["protocol"]["version"] and record["protocol"]["date"] and re.fullmatch("[0-9a-f]{12}", record["protocol"]["code"])
    assert sum(json.loads((tmp_path / "evals" / "codebook_00000040.json").read_text())["arrays"]["counts"][0]) == 21 * 16
    shown = np.asarray(Image.open(tmp_path / "pictures" / "reconstruction_00000040.png"))
    np.testing.assert_array_equal(shown[18:114:6, 2:98:6], IMAGES[0])
    np.testing.assert_array_equal(shown[134:230:6, 2:98:6], np.minimum(np.round(IMAGES[0] * np.float32(GAIN)), 255))


def test_a_figure_that_is_not_finite_is_null_in_the_file_and_not_hidden(tmp_path):
    figures = evaluate({"reconstruction": Reconstruction()}, subject(gain=np.nan), tmp_path)
    assert np.isnan(figures["eval/reconstruction/psnr"])
    assert json.loads((tmp_path / "evals" / "reconstruction_00000040.json").read_text())["metrics"]["psnr"] is None


def test_mistakes_are_one_sentence(tmp_path):
    cases = [
        (dict(protocol={k: v for k, v in PROTOCOL.items() if k != "split"}), "whole protocol.*split"),
        (dict(batches=lambda: iter([])), "'folder:pets'.*holds no images"),
        (dict(predict_fns={"loss": reconstruct}), r"cannot 'reconstruct'.*\['loss'\]"),
        (dict(predict_fns={"reconstruct": lambda s, x: x[:, :8]}), "own image size"),
    ]
    for change, message in cases:
        with pytest.raises(ConfigError, match=message):
            evaluate({"reconstruction": Reconstruction()}, subject(**change), tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is written where a figure would lack something"
    with pytest.raises(ConfigError, match="'fdi' is unknown; known are"):
        EvalsConfig().named(["codebook", "fdi"])


def test_which_evaluators_suit_a_model():
    records = made_up.shapes(1)
    generator = {"nll": encode, "sample": encode}
    other = made_up.renamed(records, ["a photo of a dog"])
    assert suited(subject()) == ["reconstruction", "codebook"]
    assert suited(made_up.subject(records, generator)) == ["likelihood", "samples", "alignment"]
    assert suited(made_up.subject(other, generator)) == suited(made_up.subject(records, generator, condition="class"))
    assert suited(made_up.subject(other, generator)) == ["likelihood", "samples"]


def test_config_section():
    config = resolve(
        EvalsConfig, {"reconstruction": {"every": "2 epochs"}}, [("codebook.batch", "64"), ("reconstruction.pictures", "4")]
    )
    assert config.reconstruction.every.unit == "epochs" and config.reconstruction.pictures == 4
    assert list(config.enabled()) == ["reconstruction", "codebook"] and config.codebook.batch == 64
    assert resolve(EvalsConfig, to_dict(config)) == config
    drawing = resolve(EvalsConfig, {}, [("alignment.scales", "1,2.5"), ("alignment.guidance", "none"), ("samples.schedule", "cosine")])
    assert drawing.alignment.scales == (1.0, 2.5) and drawing.alignment.guidance is None and drawing.alignment.count == 200
    assert drawing.samples.schedule == "cosine" and resolve(EvalsConfig, to_dict(drawing)) == drawing
    assert EvalsConfig().enabled() == {} and resolve(EvalsConfig, {"codebook": {}}, [("codebook", "none")]).codebook is None
    with pytest.raises(ConfigError, match="did you mean 'reconstruction'"):
        resolve(EvalsConfig, {"reconstructions": {}})
