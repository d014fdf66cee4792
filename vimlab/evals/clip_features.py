"""CLIP's image tower as an extractor of features: a Fréchet distance on them is CLIP-FID.

"The Role of ImageNet Classes in Fréchet Inception Distance" (Kynkäänniemi et al., 2023) proposes it, and the `clean-fid` package
computes it (model_name="clip_vit_b_32") on the projected embedding as the tower gives it, not brought to unit length, of images
resized by Pillow's bicubic to 224 and rounded to 8 bits. So does this one, in f32, where clean-fid on a GPU has f16 towers.
"""

import dataclasses
from typing import Any

import jax

from vimlab.scoring import clip, clip_weights
from vimlab.scoring.scorers import Clip, name_of


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """An extractor: `apply(weights, images)` with the weights as an argument.

    Attributes:
      name: such as "clip-vit-b-32", printed beside every figure.
      identity: sha256 of the weights' file.
      weights: the image tower's, on the host.
      settings: see Clip.settings.
    """

    name: str
    identity: str
    weights: clip.Tower
    settings: dict[str, Any]

    def apply(self, weights: clip.Tower, images: jax.Array) -> dict[str, jax.Array]:
        """{"features": f32[B,D]} of images f32[B,H,W,3] in [0,1] of any size, which are rounded to 8 bits first."""
        return {"features": clip.image_features(weights, images, **self.settings)}


def clip_features(config: Clip) -> ClipFeatures:
    """Reads the image tower of the file that `config.weights` names; its vocabulary is not needed.

    Raises:
      ClipError, ConfigError: the file is absent or is not CLIP's, or the settings do not fit it.
    """
    tower = config.towers()["image"]
    return ClipFeatures(name_of(tower), clip_weights.identity(config.weights), tower, config.settings("image"))
