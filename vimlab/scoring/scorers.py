"""Image-text scorers by name: what gives images and texts unit vectors of one space, whose cosine says how well they fit."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from vimlab import weights as weight_files
from vimlab.config import ConfigError
from vimlab.sampling.sampler import in_groups
from vimlab.scoring import clip, clip_text, clip_weights

# In the weights folder, the first of these that is there.
WEIGHTS = ("clip-b32", "clip-b32-hf", "clip-l14", "clip-l14-hf", "clip-l14-hf-bin")


@runtime_checkable
class ImageTextScorer(Protocol):
    """Places images and texts in one space.

    Attributes:
      name: of the network, printed beside every figure that it gave.
      identity: sha256 of its weights' file.
    """

    name: str
    identity: str

    def images(self, images: np.ndarray) -> np.ndarray:
        """f32[M,D] of unit length, of uint8[M,H,W,3]."""

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """f32[M,D] of unit length, of M texts."""

    def protocol(self) -> dict[str, Any]:
        """What fixes the vectors, as JSON values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """CLIP with a vision transformer, from the user's files.

    Attributes:
      weights: path of the weights (see vimlab.scoring.clip_weights), published or one's own; empty for the weights folder's.
      vocabulary: path of the vocabulary (see vimlab.scoring.clip_text); empty for the weights folder's.
      activation: "quick_gelu" in OpenAI's, "gelu" in most of LAION's.
      image_head_dim, text_head_dim: width of an attention head; 64 in OpenAI's, 80 and 64 in LAION's H/14.
    """

    NAME: ClassVar[str] = "clip"
    weights: str = ""
    vocabulary: str = ""
    activation: clip.Activation = "quick_gelu"
    image_head_dim: int = clip.HEAD_DIM
    text_head_dim: int = clip.HEAD_DIM

    def open(self) -> "ClipScorer":
        """Reads the files. Raises UserError for what is wrong with them, before anything is computed."""
        return self._located(vocabulary=str(weight_files.locate("clip-bpe", path=self.vocabulary, allow_unknown=True).path))._open()

    def _located(self, **more: str) -> "Clip":
        return dataclasses.replace(self, weights=str(weight_files.locate(*WEIGHTS, path=self.weights, allow_unknown=True).path), **more)

    def _open(self) -> "ClipScorer":
        text = clip_text.open_vocabulary(self.vocabulary)
        towers = clip_weights.load(self.weights)
        for kind, tower in towers.items():
            self._check(kind, tower)
        if text.size != len(towers["text"]["tokens"]):
            raise ConfigError(
                f"the vocabulary {self.vocabulary} has {text.size:,} words, but the text tower of {self.weights} knows "
                f"{len(towers['text']['tokens']):,}; give the one that belongs to it"
            )
        return ClipScorer(self, towers, text)

    def image_tower(self) -> tuple[clip.Tower, str]:
        """The weights of the image tower alone, without a vocabulary, and their file's sha256; raises as `open` does."""
        config = self._located()
        tower = clip_weights.load(config.weights)["image"]
        config._check("image", tower)
        return tower, clip_weights.identity(config.weights)

    def settings(self, kind: str) -> dict[str, Any]:
        """What the function of the "image" or "text" tower is told beside the weights."""
        return {"head_dim": getattr(self, f"{kind}_head_dim"), "activation": self.activation}

    def _check(self, kind: str, tower: clip.Tower) -> None:
        """Raises ConfigError where these settings do not fit a tower, or a Hugging Face config.json beside its file says otherwise."""
        width, head_dim = tower["positions"].shape[1], self.settings(kind)["head_dim"]
        if head_dim < 1 or width % head_dim:
            raise ConfigError(f"{kind}_head_dim is {head_dim}, but the {kind} tower of {self.weights} is {width} wide, no multiple of it")
        beside = pathlib.Path(self.weights).parent / "config.json"
        try:
            content = json.loads(beside.read_bytes()) if beside.is_file() else {}
        except ValueError as error:
            raise ConfigError(f"{beside}, which tells of the weights beside it, is no JSON ({error}); fetch it again or remove it") from None
        section, said = content.get({"image": "vision_config", "text": "text_config"}[kind]) or {}, {}
        if "hidden_act" in section:
            said["activation"] = section["hidden_act"]
        if {"hidden_size", "num_attention_heads"} <= section.keys():
            said[f"{kind}_head_dim"] = section["hidden_size"] // section["num_attention_heads"]
        for field, value in said.items():
            if value != getattr(self, field):
                raise ConfigError(f"{field} is {getattr(self, field)!r}, but {beside} says {value!r} for these weights; set {field}={value}")


# Each has a NAME, paths `weights` and `vocabulary`, and `open()`, which makes an ImageTextScorer; a config's `scorer` is one.
SCORERS: dict[str, type] = {s.NAME: s for s in (Clip,)}


class ClipScorer:
    """An ImageTextScorer of CLIP's towers, on the first of this process's devices.

    Args:
      config: says how the towers are computed.
      towers: "image" and "text", as `clip_weights.load` returns them.
      text: their vocabulary.
    """

    def __init__(self, config: Clip, towers: dict[str, clip.Tower], text: clip_text.ClipText):
        self.name, self.identity = name_of(towers["image"]), clip_weights.identity(config.weights)
        self._config, self._text, image, words = config, text, config.settings("image"), config.settings("text")
        self._towers = jax.device_put(towers, jax.local_devices()[0])
        self._alone = jax.sharding.Mesh(jax.local_devices()[:1], ("one",))  # Whatever mesh the caller computes on.
        self._length = len(towers["text"]["positions"])
        self._image = jax.jit(lambda tower, images: clip.unit(clip.image_features(tower, images.astype(jnp.float32) / 255, **image)))
        self._texts = jax.jit(lambda tower, ids: clip.unit(clip.text_features(tower, ids, **words)))

    def images(self, images: np.ndarray) -> np.ndarray:
        """f32[M,D] of unit length, of uint8[M,H,W,3]; an image's vector does not depend on its neighbours."""
        with jax.set_mesh(self._alone):
            return in_groups(partial(self._image, self._towers["image"]), images)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """f32[M,D] of unit length; of a text that is too long, only the beginning counts."""
        with jax.set_mesh(self._alone):
            return in_groups(partial(self._texts, self._towers["text"]), self._text.encode(texts, self._length))

    def protocol(self) -> dict[str, Any]:
        """What fixes the vectors, as JSON values."""
        tower = self._towers["image"]
        return {
            "scorer": self.name,
            "scorer_sha256": self.identity,
            "scorer_vocabulary_sha256": clip_weights.identity(self._config.vocabulary),
            "scorer_image": self._config.settings("image"),
            "scorer_text": self._config.settings("text"),
            "scorer_pixels": f"8 bits, Pillow's bicubic to {clip.resolution(tower)}, middle square",
            "scorer_words": f"no prompt around them, cut to {self._length} ids",
        }


def name_of(image_tower: clip.Tower) -> str:
    """The common name, such as "clip-vit-b-32" or "clip-vit-l-14-336"."""
    width, size, side = image_tower["positions"].shape[1], clip.patch(image_tower), clip.resolution(image_tower)
    letter = {768: "b", 1024: "l", 1280: "h"}.get(width, str(width))
    return f"clip-vit-{letter}-{size}" + f"-{side}" * (side != 224)


def cosines(scorer: ImageTextScorer, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """f32[M]: how well each of uint8[M,H,W,3] fits the text of its place, from -1 to 1."""
    return (scorer.images(images) * scorer.texts(texts)).sum(-1)
