"""Weights that leave and enter: export to safetensors with a JSON config, and start from weights made elsewhere."""

import json
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from vimlab import paths, safetensors_io
from vimlab.checkpoint import Checkpointer, CheckpointError, check_fit, named
from vimlab.checksums import SEAL, write_file

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
Arrays = dict[str, jax.ShapeDtypeStruct]


def export(
    workdir: str | paths.Path,
    out: str | paths.Path,
    kind: Literal["inference", "full"] = "inference",
    step: int | None = None,
) -> paths.Path:
    """Writes `model.safetensors` and `config.json` into the folder `out` from a run's checkpoint.

    `inference` holds the weights to use: the average of each network where one is kept, else the trained ones, always under
    `params/{network}/…`; only the networks that the run's `meta["inference_networks"]` lists, where it lists any. `full`
    holds all arrays of the TrainState. `config.json` holds the run's meta (config, class table, versions), kind, step,
    and the arrays' shapes and dtypes.

    Args:
      workdir: a run's folder, its `checkpoints` folder, or one step of it.
      step: which checkpoint; by default the newest good one.

    Returns:
      The path of the safetensors file.

    Raises:
      CheckpointError: no such checkpoint, or `out` already holds an export.
    """
    out = paths.place(out)
    if (out / WEIGHTS).exists():
        raise CheckpointError(f"{out / WEIGHTS} already exists; choose another folder")
    checkpointer, step = _checkpoint(workdir, step)
    meta, stored = checkpointer.read_meta(step), checkpointer.arrays(step)
    if kind == "inference":
        networks = meta.get("inference_networks") or sorted({n.split("/")[1] for n in stored if n.startswith("params/")})
        sources = {f"params/{n.split('/', 1)[1]}": n for network in networks for n in _weights_of(network, stored)}
    else:
        sources = {n: n for n in stored}
    found = checkpointer.load(step, {n: stored[n] for n in sources.values()}, subset=True)
    arrays = {name: found[source] for name, source in sources.items()}
    return write_export(out, arrays, meta | {"kind": kind, "step": step})


def write_export(out: paths.Path, arrays: dict[str, Any], meta: dict[str, Any]) -> paths.Path:
    """Writes arrays and what is known of them into a folder that `open_weights` opens. Returns the safetensors file's path."""
    table = {name: {"shape": list(x.shape), "dtype": str(x.dtype)} for name, x in arrays.items()}
    paths.make_folder(out)
    write_file(out / CONFIG, json.dumps(meta | {"arrays": table}, indent=1).encode())
    safetensors_io.write(out / WEIGHTS, arrays, {name: str(meta[name]) for name in ("kind", "step") if name in meta})
    return out / WEIGHTS


def init_from(path: str | paths.Path, abstract_params: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Weights alone, averaged where an average was kept, from whatever `open_weights` opens.

    Args:
      abstract_params: {network: pytree of jax.ShapeDtypeStruct}, with the shardings wanted.

    Returns:
      ({network: parameters} of the networks that are there, names of those that are not, such as a discriminator that an
      inference export leaves out).

    Raises:
      CheckpointError: there is nothing to read, none of the networks is in it, or a network's names or shapes differ.
    """
    _, stored, read = open_weights(path)
    params, missing = {}, []
    for network, abstract in abstract_params.items():
        there = _weights_of(network, stored)
        if not there:
            missing.append(network)
            continue
        prefix = "/".join(there[0].split("/", 2)[:2])
        wanted = {f"{prefix}/{name}": x for name, x in named(abstract).items()}
        check_fit(f"network {network!r} in {path}", {name: stored[name] for name in there}, wanted)
        found = read(wanted)
        params[network] = jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in wanted])
    if not params:
        raise CheckpointError(f"{path} holds none of the networks {sorted(abstract_params)}")
    return params, missing


def open_weights(path: str | paths.Path) -> tuple[dict[str, Any], Arrays, Callable[[Arrays], dict[str, jax.Array]]]:
    """Opens a run's folder, its `checkpoints`, one step of those, an exported folder or a safetensors file.

    Returns:
      (meta, {name: shape and dtype}, read), where `read` takes {name: jax.ShapeDtypeStruct with its sharding} and returns
      those arrays. meta is empty for a file without a `config.json` beside it.

    Raises:
      CheckpointError: there is no such thing at `path`.
    """
    path = paths.place(path)
    paths.check(path, "the weights' place")
    file = path / WEIGHTS if (path / WEIGHTS).is_file() else path
    if file.is_file():
        arrays, _ = safetensors_io.read(file)
        config = file.with_name(CONFIG)
        meta = json.loads(config.read_bytes()) if config.is_file() else {}
        stored = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
        return meta, stored, lambda wanted: {name: _place(arrays[name], x.sharding) for name, x in wanted.items()}
    checkpointer, step = _checkpoint(path)
    return checkpointer.read_meta(step), checkpointer.arrays(step), lambda wanted: checkpointer.load(step, wanted, subset=True)


def _checkpoint(path: str | paths.Path, step: int | None = None) -> tuple[Checkpointer, int]:
    """The checkpoints at a path, and the verified step that the path or the argument names, else the newest good one."""
    path = paths.absolute(paths.place(path))
    if path.name.isdigit() and (path / SEAL).is_file():
        path, step = path.parent, int(path.name) if step is None else step
    checkpointer = Checkpointer(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    step = checkpointer.find(step)
    if step is None:
        raise CheckpointError(f"{path} holds neither checkpoints nor {WEIGHTS}; give a run's folder or an exported one")
    return checkpointer, step


def _weights_of(network: str, stored: Arrays) -> list[str]:
    """The names of a network's weights: averaged where an average is kept, else trained; empty where it is not there."""
    averaged = [name for name in stored if name.startswith(f"ema/{network}/")]
    return averaged or [name for name in stored if name.startswith(f"params/{network}/")]


def _place(x: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array | np.ndarray:
    if sharding is None:
        return np.array(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: np.array(x[index]))
