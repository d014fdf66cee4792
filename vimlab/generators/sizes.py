"""Named sizes of generators: Table 2 of the ViT-VQGAN paper (VIM) and Table 1 of Parti's."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorSize:
    """depth: decoder blocks; width: model dimension; heads; mlp: hidden width of the blocks."""

    depth: int
    width: int
    heads: int
    mlp: int


VIM = {
    "base": GeneratorSize(depth=24, width=1536, heads=16, mlp=6144),
    "large": GeneratorSize(depth=36, width=2048, heads=32, mlp=8192),
}
# Name: depth of the text encoder, and the decoder.
PARTI = {
    "350m": (12, GeneratorSize(depth=12, width=1024, heads=16, mlp=4096)),
    "750m": (12, GeneratorSize(depth=36, width=1024, heads=16, mlp=4096)),
    "3b": (12, GeneratorSize(depth=36, width=2048, heads=32, mlp=8192)),
    "20b": (16, GeneratorSize(depth=64, width=4096, heads=64, mlp=16384)),
}
