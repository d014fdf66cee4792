"""Weight files that the public knows, by a short id: what each is, where it is published, its hash, its licence."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """A published file.

    Attributes:
      id: short name.
      files: names under which the same bytes are published; the first is its name in the weights folder.
      sha256: of its bytes.
      what: what it holds.
      page: where it is published.
      licence: of the weights as their publisher states it, else of the project that publishes them.
      use: what vimlab needs it for.
    """

    id: str
    files: tuple[str, ...]
    sha256: str
    what: str
    page: str
    licence: str
    use: str


OPENAI_CLIP = "https://github.com/openai/CLIP/blob/main/clip/clip.py"
HF_CLIP = "MIT (that of openai/CLIP)"
CLIP_USE = "CLIP score, CLIP-FID, reranking"
# The hashes are in public: in the files' names, in OpenAI's download addresses, in Hugging Face's file pages, in projects that pin them.
_FILES = (
    Known(
        id="inception",
        files=("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth"),
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        what="InceptionV3 of 2015-12-05",
        page="https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
        licence="Apache-2.0",
        use="FID, sFID, IS, KID, precision and recall",
    ),
    Known(
        id="vgg16",
        files=("vgg16-397923af.pth",),
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        what="torchvision's VGG16",
        page="https://download.pytorch.org/models/vgg16-397923af.pth",
        licence="BSD-3-Clause",
        use="LPIPS, perceptual loss",
    ),
    Known(
        id="lpips-vgg",
        files=("vgg.pth",),
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        what="LPIPS v0.1 heads",
        page="https://github.com/richzhang/PerceptualSimilarity/tree/master/lpips/weights/v0.1",
        licence="BSD-2-Clause",
        use="LPIPS, perceptual loss",
    ),
    Known(
        id="clip-b32",
        files=("ViT-B-32.pt",),
        sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        what="OpenAI's CLIP ViT-B/32, TorchScript",
        page=OPENAI_CLIP,
        licence="MIT",
        use=CLIP_USE,
    ),
    Known(
        id="clip-l14",
        files=("ViT-L-14.pt",),
        sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        what="OpenAI's CLIP ViT-L/14, TorchScript",
        page=OPENAI_CLIP,
        licence="MIT",
        use=CLIP_USE,
    ),
    Known(
        id="clip-b32-hf",
        files=("clip-vit-base-patch32.bin",),
        sha256="a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
        what="Hugging Face's CLIP ViT-B/32, pytorch_model.bin",
        page="https://huggingface.co/openai/clip-vit-base-patch32",
        licence=HF_CLIP,
        use=CLIP_USE,
    ),
    Known(
        id="clip-l14-hf",
        files=("clip-vit-large-patch14.safetensors",),
        sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        what="Hugging Face's CLIP ViT-L/14, model.safetensors",
        page="https://huggingface.co/openai/clip-vit-large-patch14",
        licence=HF_CLIP,
        use=CLIP_USE,
    ),
    Known(
        id="clip-l14-hf-bin",
        files=("clip-vit-large-patch14.bin",),
        sha256="f1a17cdbe0f36fec524f5cafb1c261ea3bbbc13e346e0f74fc9eb0460dedd0d3",
        what="Hugging Face's CLIP ViT-L/14, pytorch_model.bin",
        page="https://huggingface.co/openai/clip-vit-large-patch14",
        licence=HF_CLIP,
        use=CLIP_USE,
    ),
    Known(
        id="clip-bpe",
        files=("bpe_simple_vocab_16e6.txt.gz",),
        sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
        what="CLIP's byte-pair vocabulary",
        page="https://github.com/openai/CLIP/blob/main/clip/bpe_simple_vocab_16e6.txt.gz",
        licence="MIT",
        use="the text side of CLIP",
    ),
)
KNOWN: dict[str, Known] = {known.id: known for known in _FILES}
