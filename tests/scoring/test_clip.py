"""The towers against transformers' stored answers; weights under both sets of names and in every format."""

import re

import jax
import numpy as np
import pytest
import small_clip

from vimlab import safetensors_io, torch_io
from vimlab.scoring import clip, clip_weights


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    return clip_weights.load(small_clip.write(tmp_path_factory.mktemp("clip")).weights)


def openai_names(weights):
    """Hugging Face's arrays under OpenAI's names."""
    named, joined = {}, {}
    for name, x in weights.items():
        name = name.replace("vision_model.encoder.layers", "visual.transformer.resblocks")
        name = name.replace("text_model.encoder.layers", "transformer.resblocks")
        if part := re.match(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            joined.setdefault(f"{part[1]}.attn.in_proj_{part[3]}", {})[part[2]] = x
            continue
        for theirs, openai in [
            ("self_attn.out_proj", "attn.out_proj"), ("layer_norm", "ln_"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
            ("vision_model.embeddings.class", "visual.class"), ("vision_model.embeddings.patch_embedding", "visual.conv1"),
            ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"), ("visual_projection.weight", "visual.proj"),
            ("vision_model.pre_layrnorm", "visual.ln_pre"), ("vision_model.post_layernorm", "visual.ln_post"),
            ("text_model.embeddings.token", "token"), ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
            ("text_model.final_ln_", "text_model.final_layer_norm"), ("text_model.final_layer_norm", "ln_final"),
            ("text_projection.weight", "text_projection"),
        ]:  # fmt: skip
            name = name.replace(theirs, openai)
        named[name] = np.ascontiguousarray(x.T) if name in ("visual.proj", "text_projection") else x
    return named | {name: np.concatenate([parts[p] for p in "qkv"]) for name, parts in joined.items()} | {"input_resolution": np.int64([32])}


def test_towers_match_transformers(towers):
    image = jax.jit(clip.image_features, static_argnames="head_dim")
    shown = [1, 3]  # One is wide, which is made smaller and cut, one small.
    found = [image(towers["image"], small_clip.PICTURES[i][None] / np.float32(255), head_dim=small_clip.HEAD_DIM)[0] for i in shown]
    expected = small_clip.ANSWERS["image_features"][shown]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    ids = small_clip.ANSWERS["ids"]
    found = jax.jit(clip.text_features, static_argnames="head_dim")(towers["text"], ids, head_dim=small_clip.HEAD_DIM)
    expected = small_clip.ANSWERS["text_features"]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    assert clip.resolution(towers["image"]) == 32 and clip.patch(towers["image"]) == 8


def test_activations_are_their_formulas():
    x = np.linspace(-4, 4, 9)
    np.testing.assert_allclose(clip.ACTIVATIONS["quick_gelu"](x), x / (1 + np.exp(-1.702 * x)), rtol=1e-5)
    from scipy.special import erf

    np.testing.assert_allclose(clip.ACTIVATIONS["gelu"](x), x * (1 + erf(x / np.sqrt(2))) / 2, rtol=1e-5, atol=1e-6)


def test_openais_names_give_the_same_towers(towers, tmp_path):
    safetensors_io.write(tmp_path / "openai.safetensors", openai_names(small_clip.WEIGHTS))
    again = clip_weights.load(tmp_path / "openai.safetensors")
    assert jax.tree.structure(again) == jax.tree.structure(towers)
    jax.tree.map(np.testing.assert_array_equal, again, towers)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(again))


def test_tensors_of_torchscript_archives_have_their_state_dicts_names(tmp_path):
    (tmp_path / "script.pt").write_bytes(small_clip.ANSWERS["torchscript"].tobytes())
    found = torch_io.read(tmp_path / "script.pt")
    expected = {name.removeprefix("script/"): small_clip.ANSWERS[name] for name in small_clip.ANSWERS if name.startswith("script/")}
    assert sorted(found) == sorted(expected) == ["proj", "visual.0.count", "visual.0.weight", "visual.1.bias", "visual.1.weight"]
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)
        assert found[name].dtype == x.dtype


def test_mistakes_are_named(tmp_path):
    def fails(match, weights=None, name="model.safetensors"):
        if weights:
            safetensors_io.write(tmp_path / name, weights)
        with pytest.raises(clip_weights.ClipError, match=match):
            clip_weights.load(tmp_path / name)

    whole = small_clip.WEIGHTS
    fails("the CLIP weights '.*none.safetensors' do not exist; give model.safetensors or pytorch_model.bin", name="none.safetensors")
    fails("holds no vision_model.embeddings.patch_embedding.weight, so it is not a whole CLIP", {"a": np.zeros(2, np.float32)})
    fails("holds no text_model.embeddings.token_embedding.weight", {n: x for n, x in whole.items() if "text" not in n})
    name = "text_model.encoder.layers.0.layer_norm1.weight"
    fails(f"holds no {name}", {n: x for n, x in whole.items() if n != name})
    fails("is a CLIP with a ResNet", {"visual.attnpool.c_proj.weight": np.zeros((2, 2), np.float32)})
    name = "vision_model.encoder.layers.1.mlp.fc2.weight"
    fails("no CLIP that is known here", whole | {name: whole[name][:, :7]})
    name = "vision_model.embeddings.position_embedding.weight"
    fails("16 positions and patches of 192 numbers are of no square", whole | {name: whole[name][1:]})
    fails("numbers that are not finite", whole | {"text_model.final_layer_norm.bias": np.full(32, np.nan, np.float32)})
    (tmp_path / "cut.bin").write_bytes(b"half a file")
    fails("CLIP weights: .*cut.bin", name="cut.bin")
