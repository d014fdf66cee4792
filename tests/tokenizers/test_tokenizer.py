"""The assembly: images to tokens and back by every way, parameter and FLOP counts, and settings that cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vimlab.config import ConfigError
from vimlab.tokenizers.quantizers import VectorQuantizerConfig
from vimlab.tokenizers.sizes import BASE, LARGE, PAIRS, SMALL, ViTSize
from vimlab.tokenizers.tokenizer import TokenizerConfig
from vimlab.tokens import Tokens

pytestmark = pytest.mark.usefixtures("compiled_quickly")

TINY = ViTSize(depth=2, width=16, heads=2, mlp=24)
OTHER = ViTSize(depth=1, width=32, heads=4, mlp=40)
CONFIG = TokenizerConfig(image_size=16, patch=4, encoder=TINY, decoder=OTHER, quantizer=VectorQuantizerConfig(codes=32, dim=8))
IMAGES = np.random.default_rng(0).uniform(size=(3, 16, 16, 3)).astype(np.float32)


def random_params(module, scale=0.3):
    abstract = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), jnp.asarray(IMAGES))))
    leaves, treedef = jax.tree.flatten(abstract)
    draw = lambda i, leaf: jnp.asarray(scale * np.random.default_rng(i).normal(size=leaf.shape), jnp.float32)
    return treedef.unflatten([draw(i, leaf) for i, leaf in enumerate(leaves)])


@pytest.fixture(scope="module", params=["logit_laplace", "rgb"])
def tokenizer(request):
    """Module, parameters that make varied pictures, and one pass."""
    config = dataclasses.replace(CONFIG, output=request.param)
    module = config.make()
    params = random_params(module)
    return config, module, params, jax.jit(module.apply)(params, jnp.asarray(IMAGES))


def test_encode_then_decode_is_the_whole_pass(tokenizer):
    _, module, params, out = tokenizer
    tokens = jax.jit(lambda p, x: module.apply(p, x, method="encode"))(params, jnp.asarray(IMAGES))
    ids = tokens.ids
    assert ids.shape == (3, 16, 1) and ids.dtype == jnp.int32 and tokens.spec == module.spec
    np.testing.assert_array_equal(ids, out.quantized.ids)
    pictures = jax.jit(lambda p, t: module.apply(p, t, method="decode"))(params, tokens)
    assert pictures.shape == IMAGES.shape and float(pictures.min()) >= 0 and float(pictures.max()) <= 1
    np.testing.assert_allclose(pictures, out.images.clip(0, 1), atol=1e-5)
    assert float(jnp.std(pictures)) > 0.01 and len(np.unique(ids)) > 3  # Not all the same.


def test_tokens_of_another_tokenizer_are_refused(tokenizer):
    _, module, params, out = tokenizer
    other = Tokens(out.quantized.ids, dataclasses.replace(module.spec, codes=64))
    with pytest.raises(ValueError, match="codes=64.*codes=32"):
        module.apply(params, other, method="decode")


def test_each_token_is_a_patch(tokenizer):
    """The decoder's head writes token n into the n-th square, in raster order."""
    _, module, params, out = tokenizer
    params = jax.tree.map(lambda p: p, params)
    head = params["params"]["decoder"]["head_out"]
    head["b"] = jnp.arange(head["b"].size, dtype=jnp.float32) / 100
    head["w"] = jnp.zeros_like(head["w"])
    images = jax.jit(module.apply)(params, jnp.asarray(IMAGES)).images
    for i in range(4):
        np.testing.assert_allclose(images[:, 4 * i : 4 * i + 4], images[:, :4], atol=1e-6)
        np.testing.assert_allclose(images[:, :, 4 * i : 4 * i + 4], images[:, :, :4], atol=1e-6)
    assert float(images[0, 0, 1, 0]) > float(images[0, 0, 0, 0]) and float(images[0, 1, 0, 0]) > float(images[0, 0, 1, 0])


def test_outputs(tokenizer):
    config, _, _, out = tokenizer
    if config.output == "rgb":
        assert out.laplace is None
    else:
        mean, log_scale = out.laplace
        assert mean.shape == log_scale.shape == IMAGES.shape and not np.allclose(mean, log_scale)
        # The map of pixels to [0.1, 0.9] and the logit, inverted (DALL-E, appendix A.3).
        expected = ((1 / (1 + np.exp(-np.float64(mean))) - 0.1) / 0.8).clip(0, 1)
        np.testing.assert_allclose(out.images.clip(0, 1), expected, rtol=1e-3, atol=1e-4)


def test_rgb_starts_at_mid_grey():
    module = dataclasses.replace(CONFIG, output="rgb").make()
    zeros = random_params(module, 0.0)
    np.testing.assert_allclose(jax.jit(module.apply)(zeros, jnp.asarray(IMAGES)).images, 0.5)


def test_gradients_reach_every_parameter():
    module = CONFIG.make()

    def loss(params):
        out = module.apply(params, jnp.asarray(IMAGES))
        return (out.images**2).sum() + out.quantized.losses["codebook"].sum() + out.laplace[0].sum() + out.laplace[1].sum()

    grads = jax.jit(jax.grad(loss))(random_params(module))
    dead = [jax.tree_util.keystr(path) for path, g in jax.tree_util.tree_leaves_with_path(grads) if not jnp.abs(g).max() > 0]
    assert not dead


def test_spec():
    spec = TokenizerConfig().spec
    assert (spec.grid, spec.length, spec.codes, spec.groups, spec.bits) == ((32, 32), 1024, 8192, 1, 13 * 1024)


def test_sizes_are_table_2s():
    rows = {(s.depth, s.heads, s.width, s.mlp) for s in (SMALL, BASE, LARGE)}
    assert rows == {(8, 8, 512, 2048), (12, 12, 768, 3072), (32, 16, 1280, 5120)}


def tower_by_hand(size: ViTSize, inputs: int, outputs: int, learned: int) -> int:
    d, m = size.width, size.mlp
    block = 4 * (d * d + d) + (d * m + m) + (m * d + d) + 2 * 2 * d
    return (inputs * d + d) + learned * d + size.depth * block + 2 * d + (d * m + m) + (m * outputs + outputs)


@pytest.mark.parametrize(
    "config",
    [TokenizerConfig(encoder=e, decoder=d) for e, d in PAIRS.values()]
    + [
        CONFIG,
        dataclasses.replace(CONFIG, positions="learned"),
        dataclasses.replace(CONFIG, output="rgb"),
        dataclasses.replace(CONFIG, quantizer=VectorQuantizerConfig(codes=32, dim=8, bank="linear")),
    ],
    ids=[*PAIRS, "tiny", "learned", "rgb", "linear"],
)
def test_parameter_count_is_the_modules_and_ours_by_hand(config):
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(config.make().init, jax.random.key(0), images)
    assert config.param_count() == sum(x.size for x in jax.tree.leaves(shapes))
    learned = config.spec.length if config.positions == "learned" else 0
    pixels, channels, dim = 3 * config.patch**2, config.channels // 3, config.quantizer.dim
    by_hand = tower_by_hand(config.encoder, pixels, config.encoder.width, learned) + config.encoder.width * dim + dim
    by_hand += tower_by_hand(config.decoder, dim, pixels * channels, learned)
    by_hand += dim * dim if config.quantizer.bank == "linear" else config.quantizer.codes * dim
    assert config.param_count() == by_hand


def test_flop_count_is_xlas():
    size = ViTSize(depth=1, width=128, heads=2, mlp=512)
    config = TokenizerConfig(
        image_size=32, patch=4, encoder=size, decoder=size, quantizer=VectorQuantizerConfig(codes=512, dim=32), remat="none"
    )
    module, images = config.make(), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), images))
    counted = jax.jit(module.apply).lower(params, images).compile().cost_analysis()["flops"]
    assert config.flops() == pytest.approx(counted, rel=0.06)


def test_options_change_the_program_and_not_the_result(tokenizer):
    """More blocks a step of the scan than there are blocks, too."""
    config, _, params, out = tokenizer
    module = dataclasses.replace(config, remat="full", unroll=8).make()
    np.testing.assert_allclose(jax.jit(module.apply)(params, jnp.asarray(IMAGES)).images, out.images, atol=1e-5)


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(image_size=30), "image_size 30 is not a multiple of patch 4"),
        (dict(patch=0), "patch"),
        (dict(encoder=ViTSize(depth=1, width=18, heads=4, mlp=8)), "encoder.width 18 does not divide into 4 heads"),
        (dict(decoder=ViTSize(depth=1, width=18, heads=2, mlp=8)), "decoder.width 18 must be a multiple of 4"),
    ],
)
def test_impossible_settings_are_refused(bad, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(CONFIG, **bad)
