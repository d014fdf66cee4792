"""CLIP's weights from the user's file: Hugging Face's names or OpenAI's, in safetensors, torch.save's formats or TorchScript."""

import hashlib
import math
import os
import pathlib
import re
from typing import Any

import numpy as np

from vimlab import safetensors_io, torch_io
from vimlab.config import UserError

NEEDED = (
    "give model.safetensors or pytorch_model.bin of a Hugging Face CLIP with a vision transformer (openai/clip-vit-base-patch32, "
    "…-base-patch16, …-large-patch14), or OpenAI's own ViT-B-32.pt"
)
# OpenAI's names, the part of Hugging Face's that stands for it; in this order.
OPENAI = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.attn\.in_proj_(weight|bias)$", r".self_attn.qkv_proj.\1"),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
)
BLOCK = {"norm1": "layer_norm1", "out": "self_attn.out_proj", "norm2": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2"}


class ClipError(UserError):
    """A file of weights or words that is absent or is not CLIP's; the message names it and says what it must be."""


def identity(path: str | os.PathLike) -> str:
    """The sha256 of a file of weights, in hexadecimal. Raises ClipError where there is none."""
    with open(_existing(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Reads both towers, of any size of vision transformer.

    Returns:
      {"image": tower, "text": tower} of f32 host arrays. Of both "positions" [N,W], "after.scale" and "after.bias" [W] (the last
      norm), "projection" [W,D] and "blocks", stacked over layers: "norm1.*", "norm2.*", "qkv.*", "out.*", "up.*", "down.*". Of
      the image tower "patch" [P·P·3,W] (a pixel's row, column, channel), "class" [W], "before.*"; of the text tower "tokens" [V,W].

    Raises:
      ClipError: no such file, one that lacks a part of CLIP, a ResNet's, shapes that do not fit, or numbers that are not finite.
    """
    found = _read(_existing(path))
    try:
        towers = {"image": _image_tower(found), "text": _text_tower(found)}
        for tower in towers.values():
            _check(tower)
    except KeyError as error:
        raise ClipError(f"{path} holds no {error.args[0]}, so it is not a whole CLIP; {NEEDED}") from None
    except ValueError as error:
        raise ClipError(f"{path} is no CLIP that is known here ({error}); {NEEDED}") from None
    return towers


def _existing(path: str | os.PathLike) -> pathlib.Path:
    if not pathlib.Path(path).is_file():
        raise ClipError(f"the CLIP weights {str(path)!r} do not exist; {NEEDED}")
    return pathlib.Path(path)


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The file's arrays under Hugging Face's names and in its layout, but with queries, keys and values as OpenAI joins them."""
    try:
        found = safetensors_io.read(path)[0] if path.suffix == ".safetensors" else torch_io.read(path)
    except (safetensors_io.SafetensorsError, torch_io.TorchFileError) as error:
        raise ClipError(f"CLIP weights: {error}") from error
    if "visual.attnpool.c_proj.weight" in found:
        raise ClipError(f"{path} is a CLIP with a ResNet, and only those with a vision transformer are known here; {NEEDED}")
    if "visual.class_embedding" not in found:
        return found
    # Matrices, where Hugging Face has Linears, which are their transposes.
    found |= {name: found[name].T for name in ("visual.proj", "text_projection") if name in found}
    renamed = {}
    for name, x in found.items():
        for pattern, theirs in OPENAI:
            name = re.sub(pattern, theirs, name)
        renamed[name] = x
    return renamed


def _image_tower(found: dict[str, np.ndarray]) -> dict[str, Any]:
    kernels = found["vision_model.embeddings.patch_embedding.weight"]
    return {
        "patch": _f32(kernels.transpose(2, 3, 1, 0).reshape(-1, len(kernels))),
        "class": _f32(found["vision_model.embeddings.class_embedding"]),
        **_pair(found, "vision_model.pre_layrnorm", "before.scale", "before.bias"),
        **_rest(found, "vision_model", "post_layernorm", "visual_projection"),
    }


def _text_tower(found: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "tokens": _f32(found["text_model.embeddings.token_embedding.weight"]),
        **_rest(found, "text_model", "final_layer_norm", "text_projection"),
    }


def _rest(found: dict[str, np.ndarray], tower: str, norm: str, projection: str) -> dict[str, Any]:
    layers = {int(m[1]) for name in found if (m := re.match(rf"{tower}\.encoder\.layers\.(\d+)\.", name))}
    blocks = [_block(found, f"{tower}.encoder.layers.{i}") for i in range(max(layers, default=0) + 1)]
    return {
        "positions": _f32(found[f"{tower}.embeddings.position_embedding.weight"]),
        **_pair(found, f"{tower}.{norm}", "after.scale", "after.bias"),
        "projection": _f32(found[f"{projection}.weight"].T),
        "blocks": {name: np.stack([block[name] for block in blocks]) for name in blocks[0]},
    }


def _block(found: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    block = {}
    for ours, theirs in BLOCK.items():
        block |= _pair(found, f"{prefix}.{theirs}", f"{ours}.scale" if "norm" in ours else f"{ours}.w", f"{ours}.b" + "ias" * ("norm" in ours))
    for kind, end in (("weight", "w"), ("bias", "b")):
        joined = found.get(f"{prefix}.self_attn.qkv_proj.{kind}")
        if joined is None:
            joined = np.concatenate([found[f"{prefix}.self_attn.{n}_proj.{kind}"] for n in "qkv"])
        block[f"qkv.{end}"] = _f32(joined.T)
    return block


def _pair(found: dict[str, np.ndarray], name: str, weight: str, bias: str) -> dict[str, np.ndarray]:
    """A norm's scale or a Linear's weight, which torch keeps as [out,in], and its bias."""
    return {weight: _f32(found[f"{name}.weight"].T), bias: _f32(found[f"{name}.bias"])}


def _f32(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32)


def _check(tower: dict[str, Any]) -> None:
    """Raises ValueError where the shapes are not those of one transformer, or a number is not finite."""
    (positions, width), blocks = tower["positions"].shape, tower["blocks"]
    layers, inner = len(blocks["up.w"]), blocks["up.w"].shape[-1]
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, inner), "down": (inner, width)}
    for name, shape in shapes.items():
        if blocks[f"{name}.w"].shape != (layers, *shape) or blocks[f"{name}.b"].shape != (layers, shape[1]):
            raise ValueError(f"{name} has shape {blocks[f'{name}.w'].shape[1:]}, not {shape}")
    start = "patch" if "patch" in tower else "tokens"
    if tower[start].shape[1] != width or len(tower["projection"]) != width:
        raise ValueError(f"{start} and projection have widths {tower[start].shape[1]} and {len(tower['projection'])}, not {width}")
    if "patch" in tower:
        side, grid = math.isqrt(len(tower["patch"]) // 3), math.isqrt(positions - 1)
        if side * side * 3 != len(tower["patch"]) or grid * grid != positions - 1:
            raise ValueError(f"{positions} positions and patches of {len(tower['patch'])} numbers are of no square")
    if not all(np.isfinite(x).all() for x in [*blocks.values(), *(x for name, x in tower.items() if name != "blocks")]):
        raise ValueError("it holds numbers that are not finite")
