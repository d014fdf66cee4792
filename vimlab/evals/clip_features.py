"""CLIP's image tower as an extractor of features: a Fréchet distance on them is CLIP-FID.

"The Role of ImageNet Classes in Fréchet Inception Distance" (Kynkäänniemi et al., 2023) proposes it, and the `clean-fid` package
computes it (model_name="clip_vit_b_32") on the projected embedding as the tower gives it, not brought to unit length, of images
resized by Pillow's bicubic to 224 and rounded to 8 bits. So does this one, in f32, where clean-fid on a GPU has f16 towers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from vimlab.scoring import clip
from vimlab.scoring.scorers import Clip, name_of


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageTower:
    """An extractor.

    Attributes:
      name: such as "clip-vit-b-32", printed beside every figure; it tells settings other than OpenAI's.
      identity: sha256 of the weights' file.
      weights: the image tower's, on the host.
      apply: pure (weights, images f32[B,H,W,3] in [0,1] of any size) → {"features": f32[B,D]}; the same object for equal settings.
      is_fid: a distance between its features is CLIP-FID, which is no FID.
    """

    name: str
    identity: str
    weights: clip.Tower
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]]
    is_fid: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipFeatures:
    """CLIP's image tower, from the user's file; no vocabulary is needed.

    Attributes:
      weights, activation, head_dim: see Clip.
    """

    NAME: ClassVar[str] = "clip"
    weights: str = ""
    activation: clip.Activation = "quick_gelu"
    head_dim: int = clip.HEAD_DIM

    def open(self) -> ImageTower:
        """Reads the weights. Raises UserError where the file is absent or not CLIP's, or these settings do not fit it."""
        tower, identity = Clip(weights=self.weights, activation=self.activation, image_head_dim=self.head_dim).image_tower()
        unusual = f"-{self.activation}" * (self.activation != "quick_gelu") + f"-heads{self.head_dim}" * (self.head_dim != clip.HEAD_DIM)
        return ImageTower(name=name_of(tower) + unusual, identity=identity, weights=tower, apply=_apply(self.head_dim, self.activation))


@functools.cache
def _apply(head_dim: int, activation: clip.Activation) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
    def apply(weights: Any, images: jax.Array) -> dict[str, jax.Array]:
        return {"features": clip.image_features(weights, images, head_dim=head_dim, activation=activation)}

    return apply
