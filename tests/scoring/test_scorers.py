"""The scorer of CLIP: unit vectors that no neighbour changes, and what it says of itself."""

import json

import jax
import numpy as np
import pytest
import small_clip

from vimlab.config import ConfigError
from vimlab.evals.clip_features import ClipFeatures
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.scoring.scorers import Clip, ImageTextScorer, cosines, name_of

SQUARES = np.stack([small_clip.PICTURES[2], small_clip.PICTURES[2][:, ::-1]] * 5)  # More than are computed at a time.


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_clip.write(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def scorer(config):
    return config.open()


def test_vectors_are_the_towers_at_unit_length(scorer, config):
    assert isinstance(scorer, ImageTextScorer)
    with jax.set_mesh(make_mesh(MeshConfig(data=4, fsdp=2))):  # As evaluators call it.
        images, texts = scorer.images(SQUARES), scorer.texts(small_clip.TEXTS)
    expected = small_clip.ANSWERS["image_features"][2]
    np.testing.assert_allclose(images[0], expected / np.linalg.norm(expected), atol=1e-5)
    expected = small_clip.ANSWERS["text_features"]
    np.testing.assert_allclose(texts, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert images.shape == (10, 24) and images.dtype == texts.dtype == np.float32
    np.testing.assert_array_equal(scorer.images(SQUARES[1:2])[0], images[9])
    found = cosines(scorer, SQUARES[:3], small_clip.TEXTS[:3])
    np.testing.assert_allclose(found, np.diag(images[:3] @ texts[:3].T), atol=1e-6)


def test_what_it_says_of_itself(scorer, config):
    said = scorer.protocol()
    assert scorer.name == said["scorer"] == "clip-vit-32-8-32" and len(scorer.identity) == 64 and said["scorer_sha256"] == scorer.identity
    assert json.loads(json.dumps(said)) == said and said["scorer_text"] == {"head_dim": 16, "activation": "quick_gelu"}
    tower = lambda width, patch, side: {"positions": np.zeros(((side // patch) ** 2 + 1, width)), "patch": np.zeros((3 * patch**2, width))}
    of = lambda *sizes: name_of(tower(*sizes))
    assert [of(768, 32, 224), of(1024, 14, 336), of(1024, 14, 224)] == ["clip-vit-b-32", "clip-vit-l-14-336", "clip-vit-l-14"]


def test_features_for_a_distance_are_not_normalised(config):
    extractor = ClipFeatures(weights=config.weights, head_dim=small_clip.HEAD_DIM).open()
    found = jax.jit(extractor.apply)(extractor.weights, SQUARES[:1] / np.float32(255))
    np.testing.assert_allclose(found["features"][0], small_clip.ANSWERS["image_features"][2], rtol=1e-4, atol=1e-4)
    assert set(found) == {"features"} and extractor.name == "clip-vit-32-8-32-heads16" and len(extractor.identity) == 64
    assert not extractor.is_fid and ClipFeatures(weights=config.weights, head_dim=small_clip.HEAD_DIM).open().apply is extractor.apply


def test_settings_that_do_not_fit_the_files_are_refused(config, tmp_path):
    with pytest.raises(ConfigError, match="image_head_dim is 64, but the image tower of .* is 32 wide"):
        Clip(weights=config.weights, vocabulary=config.vocabulary).open()
    (tmp_path / "few.txt").write_text("#\nt h\n")
    with pytest.raises(ConfigError, match="few.txt has 515 words, but the text tower of .* knows 814"):
        small_clip.settings(config.weights, tmp_path / "few.txt").open()
    small_clip.write(tmp_path)
    beside = small_clip.settings(tmp_path / "model.safetensors", tmp_path / "merges.txt")
    for said, match in [
        ({"vision_config": {"hidden_act": "gelu"}}, "activation is 'quick_gelu', but .*config.json says 'gelu' .*; set activation=gelu"),
        ({"text_config": {"hidden_size": 32, "num_attention_heads": 1}}, "text_head_dim is 16, but .* says 32"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(said))
        with pytest.raises(ConfigError, match=match):
            beside.open()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        beside.open()
    said = {"vision_config": {"hidden_act": "quick_gelu", "hidden_size": 32, "num_attention_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert beside.open().name == "clip-vit-32-8-32"
