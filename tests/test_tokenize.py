"""`vimlab tokenize` with a real tokenizer: the cache holds what that tokenizer makes of the crops that a run on pixels sees."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vimlab import config as configs
from vimlab import run as runs
from vimlab import safetensors_io, tokenize
from vimlab.config import ConfigError
from vimlab.data.base import DataError
from vimlab.data.cache import check_cache
from vimlab.data.formats.tokens import TokenRecords
from vimlab.data.pipeline import DataConfig, Resize, Tokenizer, TrainPipeline, open_train_eval
from vimlab.pretrained import open_tokenizer
from vimlab.run import Run
from vimlab.tokenizers.quantizers import VectorQuantizerConfig
from vimlab.tokenizers.sizes import ViTSize
from vimlab.tokenizers.tokenizer import TokenizerConfig

TOWER = ViTSize(depth=1, width=16, heads=2, mlp=32)
MODEL = TokenizerConfig(image_size=16, patch=4, encoder=TOWER, decoder=TOWER, output="rgb", quantizer=VectorQuantizerConfig(codes=64, dim=4))
DATA = "shapes:train?size=24&count=40"


def export(folder, seed=0):
    """A tokenizer with fresh weights, as `vimlab ckpt export` writes one. Returns its path."""
    params = jax.jit(lambda key: nn.unbox(MODEL.make().init(key, jnp.zeros((1, 16, 16, 3)))["params"]))(jax.random.key(seed))
    arrays = {"/".join(["params", "tokenizer", *(k.key for k in path)]): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    folder.mkdir()
    safetensors_io.write(folder / "model.safetensors", arrays, {"kind": "inference", "step": "0"})
    (folder / "config.json").write_text(json.dumps({"config": {"task": "tokenizer", "model": configs.to_dict(MODEL)}}))
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return export(tmp_path_factory.mktemp("trained") / "tokenizer")


def ids_of(path):
    """Plainly: uint8[B,16,16,3] → i32[B,16,1] by the tokenizer at a path."""
    params = jax.tree.map(jnp.asarray, open_tokenizer(path).params)
    return jax.jit(lambda images: MODEL.make().apply({"params": params}, images / jnp.float32(255), method="encode").ids)


@pytest.fixture
def flags(tokenizer):
    """A second-stage run's config, as arguments."""
    keys = {"tokenizer": tokenizer, "seed": "5", "data.train": DATA, "data.eval": "none", "data.holdout": "4", "data.crop.name": "tokenizer"}
    return ["--config", "configs/parti_shapes.py:smoke", *(f"--config.{key}={value}" for key, value in keys.items())]


@pytest.mark.parametrize("views, crop", [(2, Tokenizer()), (1, Resize())])
def test_the_cache_holds_the_tokens_of_the_batches_of_pixels(tmp_path, tokenizer, views, crop):
    data = DataConfig(train=DATA, holdout=3, crop=crop)
    tokenize.tokenize(tokenizer, data, 5, tmp_path / "out", views=views, batch_size=10, shard_records=16, quiet=True)
    records, encode = TokenRecords(tmp_path / "out"), ids_of(tokenizer)
    check_cache(records, tokenizer_fingerprint=open_tokenizer(tokenizer).fingerprint, spec=MODEL.spec, data=data, seed=5)
    same = {"image_size": 16, "crop": crop, "batch_size": 8, "seed": 5}
    pixels, tokens = TrainPipeline(open_train_eval(data)[0], views=views, **same), TrainPipeline(records, **same)
    shown = set()
    for step in range(37 * 2 * views // 8):
        want, got = pixels.batch(step), tokens.batch(step)
        np.testing.assert_array_equal(got["tokens"], encode(want["image"]))
        np.testing.assert_array_equal(got["index"], want["index"])
        shown |= {(i, t.tobytes()) for i, t in zip(got["index"].tolist(), got["tokens"], strict=True)}
    assert len(shown) == 37 * views and records.manifest["dtype"] == "float32"


def test_the_command_makes_what_its_config_trains_on(tmp_path, flags, capsys):
    ask = lambda name, *more: tokenize.main([*flags, "--out", str(tmp_path / name), *more])
    assert ask("out", "--config.data.views=2", "--batch-size", "16") == 0
    said = capsys.readouterr().out
    assert said == f"36 records, 2 views of 4x4 tokens each\ntrain on it with --config.data.tokens={tmp_path / 'out'}\n"
    _, overrides = configs.split_overrides([*flags, f"--config.data.tokens={tmp_path / 'out'}", "--config.data.views=2"])
    run = Run(runs.resolve(configs.load("configs/parti_shapes.py:smoke"), overrides))  # Which checks the cache.
    assert isinstance(run.train_source, TokenRecords) and (len(run.train_source), len(run.eval_source)) == (36, 4)
    assert ask("b", "--views", "2", "--config.data.views=1", "--batch-size", "7") == 0
    assert capsys.readouterr().out.endswith(f"--config.data.tokens={tmp_path / 'b'} --config.data.views=2\n")
    shards = lambda name: {p.name: p.read_bytes() for p in (tmp_path / name).glob("tokens-*")}
    assert shards("out") == shards("b")  # Whatever the batch.
    assert ask("c", "--shard-records", "30") == 0
    assert TokenRecords(tmp_path / "c").views == 1 and len(shards("c")) == 2


def test_mistakes_are_one_sentence(tmp_path, flags):
    ask = lambda *more, out="out": tokenize.main([*flags, "--out", str(tmp_path / out), *more])
    with pytest.raises(ConfigError, match="vitvq_emoji.py is the config of a tokenizer, which reads no tokens"):
        tokenize.main(["--config", "configs/vitvq_emoji.py", "--out", str(tmp_path / "out")])
    for flag in ("--views", "--batch-size", "--shard-records"):
        with pytest.raises(ConfigError, match=f"{flag} is 0, but must be at least 1"):
            ask(flag, "0")
    with pytest.raises(ConfigError, match="tokenizer 'nowhere' does not exist"):
        ask("--config.tokenizer=nowhere")
    assert not list(tmp_path.iterdir())  # Nothing is begun before all is known to be there.
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="there' exists already"):
        ask("--config.tokenizer=nowhere", out="there")


def test_a_beginning_with_another_tokenizer_is_left_alone(tmp_path, flags, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    ask = lambda *more: tokenize.main([*flags, "--out", str(tmp_path / "out"), *more])
    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            ask()
    other = export(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match=r"out.partial' is the beginning of another cache \(tokenizer.fingerprint '\w{16}', not '\w{16}'\)"):
        ask(f"--config.tokenizer={other}")
    monkeypatch.setattr(tokenize, "encoder", lambda *_: stop)  # All shards are there: nothing is encoded again.
    assert ask() == 0


def test_the_encoder_uses_all_devices_and_any_batch(tokenizer):
    encode, images = tokenize.encoder(open_tokenizer(tokenizer), jnp.float32), np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8)
    ids = encode(images)
    assert ids.shape == (16, 16, 1) and ids.dtype == jnp.int32 and ids.sharding.num_devices == 8
    np.testing.assert_array_equal(ids[:11], ids_of(tokenizer)(images))
