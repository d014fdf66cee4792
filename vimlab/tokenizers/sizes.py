"""Named sizes of the ViT encoder and decoder: Table 2 of "Vector-quantized Image Modeling with Improved VQGAN"."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTSize:
    """One tower. depth: blocks; width: model dimension; heads; mlp: hidden width of the blocks and of the tanh head."""

    depth: int
    width: int
    heads: int
    mlp: int


SMALL = ViTSize(depth=8, width=512, heads=8, mlp=2048)
BASE = ViTSize(depth=12, width=768, heads=12, mlp=3072)
LARGE = ViTSize(depth=32, width=1280, heads=16, mlp=5120)
PAIRS = {"ss": (SMALL, SMALL), "bb": (BASE, BASE), "sl": (SMALL, LARGE)}
