"""`vimlab tokenize`: a data set goes through a trained tokenizer once, and second-stage runs train on the tokens."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from vimlab import config as configs
from vimlab import run as runs
from vimlab.config import ConfigError
from vimlab.data.cache import Recipe, finish, write_shards
from vimlab.data.formats.tokens import read_manifest
from vimlab.data.pipeline import DataConfig, open_train_eval
from vimlab.data.shards import claim, partial_of
from vimlab.parallel import exchange, multihost
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import batch_sharding, constrain
from vimlab.pretrained import Pretrained, open_tokenizer

WEEK = 7 * 24 * 3600.0  # Seconds.


def main(argv: Sequence[str]) -> int:
    """The `tokenize` command."""
    argv, overrides = configs.split_overrides(argv)
    parser = argparse.ArgumentParser(prog="vimlab tokenize", description="Store the tokens of a second-stage config's training data, cut as "
                                     "that config cuts them; interrupted, the same command goes on. Keys are set with --config.tokenizer=…")
    parser.add_argument("--config", required=True, help="config file of the run that is to train on the tokens")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="a new folder, for the run's --config.data.tokens")
    parser.add_argument("--batch-size", default=64, type=int, help="pictures at a time (64)")
    parser.add_argument("--views", default=None, type=int, help="fixed crops of each picture; config.data.views, or 1, if not given")
    parser.add_argument("--shard-records", default=None, type=int, help="records in a shard (by default about 32 MB)")
    multihost.add_flags(parser)
    args = parser.parse_args(argv)
    with multihost.joined(args):
        return _tokenize(args, overrides)


def _tokenize(args: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> int:
    for name in ("batch_size", "views", "shard_records"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(args, name)}, but must be at least 1")
    config = runs.resolve(configs.load(args.config), overrides)
    if not hasattr(config, "tokenizer"):
        raise ConfigError(f"{args.config} is the config of a {config.NAME}, which reads no tokens; give that of a run that is to train on them")
    views = args.views or config.data.views or 1
    manifest = tokenize(config.tokenizer, config.data, config.seed, args.out, views=views, batch_size=args.batch_size,
                        dtype=runs.dtype_of(config.precision), shard_records=args.shard_records)
    if jax.process_index() == 0:
        spec, replaced = manifest["spec"], manifest["replaced"]
        print(f"{manifest['data']['size']:,} records, {views} view{'s' * (views > 1)} of {spec['grid'][0]}x{spec['grid'][1]} tokens each"
              + (f"; {replaced:,} that cannot be decoded are replaced by the next good one" if replaced else ""))
        also = f" --config.data.views={views}" if views != (config.data.views or views) else ""
        print(f"train on it with --config.data.tokens={args.out}{also}")
    return 0


def tokenize(path: str, data: DataConfig, seed: int, out: pathlib.Path, *, views: int = 1, batch_size: int = 64,
             dtype: DTypeLike = jnp.float32, shard_records: int | None = None, quiet: bool = False) -> dict[str, Any]:
    """Makes the token cache `out` with the tokenizer at `path`, in `OUT.partial` until all is there. Returns its manifest.

    Of several processes each writes its share of the shards, into a folder that all of them see.

    Args:
      data: whose training source is read, less what it holds out, and cut by its crop policy.
      seed, views: of the fixed crops.
      batch_size: pictures at a time, rounded up to the devices.
      dtype: that the tokenizer's matrix products are computed in.

    Raises:
      DataError: `out` exists, its partial folder belongs to another cache, the data is missing or mostly undecodable.
      ConfigError, CheckpointError: there is no such tokenizer.
    """
    partial = partial_of(out)
    source, _ = open_train_eval(dataclasses.replace(data, tokens=None, text=None, eval=None))
    tokenizer = open_tokenizer(path)
    recipe = Recipe(source=source, data=data, views=views, seed=seed, tokenizer=tokenizer.fingerprint, image_size=tokenizer.config.image_size,
                    dtype=jnp.dtype(dtype).name, spec=tokenizer.config.spec, shard_records=shard_records)
    exchange.compare("cache", recipe.request)
    exchange.first(lambda: claim(partial, recipe.request, "cache"))
    write_shards(recipe, partial, encoder(tokenizer, dtype), batch_size=batch_size, process_index=jax.process_index(),
                 process_count=jax.process_count(), quiet=quiet)
    exchange.gather(None, "the end of its shards", seconds=WEEK)  # Some may have much more to do than others.
    exchange.first(lambda: finish(recipe, partial, out, tokenizer.path))
    return read_manifest(out)


def encoder(tokenizer: Pretrained, dtype: DTypeLike) -> Callable[[np.ndarray], jax.Array]:
    """The tokenizer as uint8[B,S,S,3] → i32[B',N,G], over this process's devices; B' is B rounded up to a multiple of them."""
    mesh = make_mesh(MeshConfig(), jax.local_devices())
    model = tokenizer.config.make(dtype)
    params = jax.device_put(tokenizer.params, NamedSharding(mesh, PartitionSpec()))

    @jax.jit
    def ids(params: Any, images: jax.Array) -> jax.Array:
        images = constrain(images.astype(jnp.float32) / 255, "batch", "height", "width", "channels")
        return model.apply({"params": params}, images, method="encode").ids

    def encode(images: np.ndarray) -> jax.Array:
        images = np.pad(images, ((0, -len(images) % mesh.size), (0, 0), (0, 0), (0, 0)))
        with jax.set_mesh(mesh):
            return ids(params, jax.device_put(images, batch_sharding(mesh)))

    return encode


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["tokenize", *sys.argv[1:]])
