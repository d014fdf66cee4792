"""A trained tokenizer from its checkpoint: its own config, its weights, and the fingerprint that its tokens carry."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vimlab import config as configs
from vimlab import paths
from vimlab.checkpoint import named
from vimlab.config import ConfigError
from vimlab.export import init_from, open_weights, write_export
from vimlab.tokenizers.tokenizer import TokenizerConfig


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained tokenizer.

    Attributes:
      path: the run, checkpoint, export or safetensors file that it came from.
      meta: what its checkpoint says about itself; "config" is its run's.
      config: of the model, as its checkpoint has it.
      params: f32 arrays of NumPy; averaged ones where the run kept an average.
    """

    path: str
    meta: dict[str, Any]
    config: TokenizerConfig
    params: Any

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any weight and with anything in the config that changes tokens."""
        digest = hashlib.sha256(repr((self.config.image_size, self.config.patch, self.config.positions, self.config.quantizer)).encode())
        for path, x in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(x).tobytes())
        return digest.hexdigest()[:16]

    def write(self, folder: paths.Path) -> None:
        """Writes the tokenizer as an inference export of its own, beside `folder` first and then renamed; in a bucket the weights come last."""
        beside = folder if paths.is_bucket(folder) else folder.with_name(f".{folder.name}.part")
        paths.delete_folder(beside)
        write_export(beside, {f"params/tokenizer/{name}": x for name, x in named(self.params).items()}, self.meta | {"kind": "inference"})
        if beside != folder:
            beside.rename(folder)


def open_tokenizer(path: str | paths.Path) -> Pretrained:
    """Reads a trained tokenizer from whatever `vimlab.export.open_weights` opens.

    Raises:
      ConfigError: the path holds no tokenizer, or weights without the config that belongs to them.
      CheckpointError: there is nothing to read, or it is damaged.
    """
    path = paths.place(path)
    paths.check(path, "the tokenizer")
    path = path if paths.is_bucket(path) else path.expanduser()
    if not path.exists():
        raise ConfigError(f"the tokenizer {str(path)!r} does not exist; train one first, and name its workdir or an export of it")
    meta = open_weights(path)[0]
    config = meta.get("config")
    if not config or config.get("task") != "tokenizer":
        what = f"a run of the task {config['task']!r}" if config else "weights without their config.json"
        raise ConfigError(f"{str(path)!r} is {what}, not a trained tokenizer; name a tokenizer's workdir or an export of it")
    model = configs.resolve(TokenizerConfig, config["model"])
    params, _ = init_from(path, {"tokenizer": shapes(model)})
    return Pretrained(str(path), meta, model, jax.tree.map(np.asarray, params["tokenizer"]))


def shapes(model: TokenizerConfig) -> Any:
    """Shapes and types of a tokenizer's parameters."""
    images = (1, model.image_size, model.image_size, 3)
    return jax.eval_shape(lambda: nn.unbox(model.make().init(jax.random.key(0), jnp.zeros(images))["params"]))

