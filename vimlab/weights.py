"""Public weight files by a short id: what each is, where it is published, its hash; finding, checking and reading the user's copy.

Nothing is downloaded. A user fetches a file from the page that publishes it and puts it into the weights folder (the environment
variable VIMLAB_WEIGHTS, else ~/.cache/vimlab/weights), or names its path in a config.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import sys
import zipfile

import numpy as np

from vimlab import safetensors_io, torch_io
from vimlab.config import UserError

VARIABLE = "VIMLAB_WEIGHTS"


class WeightsError(UserError):
    """A weights file that is absent, damaged, unknown or of another kind; the message names it and says what to do."""


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


@dataclasses.dataclass(frozen=True)
class Found:
    """A file on this machine.

    Attributes:
      path: where it lies.
      sha256: of its bytes, as they are now.
      known: the published file that it is; None for any other.
    """

    path: pathlib.Path
    sha256: str
    known: Known | None


def folder() -> pathlib.Path:
    """Where the user puts weight files; it need not exist."""
    return pathlib.Path(os.environ.get(VARIABLE) or "~/.cache/vimlab/weights").expanduser()


def held(known: Known) -> pathlib.Path | None:
    """The file of the weights folder that bears a name of this one; None where there is none. Its bytes are not looked at."""
    return next((path for name in known.files if (path := folder() / name).is_file()), None)


def sha256(path: str | os.PathLike) -> str:
    """Of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_by(digest: str) -> Known | None:
    """The published file with this sha256."""
    return next((known for known in KNOWN.values() if known.sha256 == digest), None)


def locate(*ids: str, path: str | os.PathLike = "", allow_unknown: bool = False) -> Found:
    """Finds and checks the user's copy of one of several files that serve the same purpose.

    Args:
      ids: keys of KNOWN; the first that the weights folder holds is taken.
      path: a file to take in place of the folder's.
      allow_unknown: whether a file of another hash than the published ones is taken, as weights that nobody has verified.

    Raises:
      WeightsError: no such file, a damaged one, one of another purpose, or an unknown one that is not allowed.
    """
    wanted = [KNOWN[i] for i in ids]
    if path:
        place = pathlib.Path(path).expanduser()
        if not place.is_file():
            raise WeightsError(f"the weights {str(path)!r} do not exist; give the path of {_offer(wanted)}")
    else:
        place = next(filter(None, map(held, wanted)), None)
        if place is None:
            raise WeightsError(
                f"the weights folder {str(folder())!r} lacks {_offer(wanted)}, needed for {wanted[0].use}; fetch it there and run "
                "`vimlab weights add FILE`, or name its path in the config"
            )
    found = identify(place)
    if found.known in wanted:
        return found
    if found.known is not None:
        raise WeightsError(f"{place} is {found.known.what}, but {_offer(wanted)} is needed; give that")
    if not allow_unknown:
        raise WeightsError(
            f"{place} has the sha256 {found.sha256[:16]}…, which is not that of {_offer(wanted)}; give that file, or accept this one "
            "with allow_unknown=True, and figures will be marked as unverified"
        )
    return found


def identify(path: str | os.PathLike) -> Found:
    """Hashes a file. Raises WeightsError where it bears the name of a published one but not its bytes."""
    place = pathlib.Path(path)
    digest = sha256(place)
    named = next((known for known in KNOWN.values() if place.name in known.files), None)
    if named is not None and named.sha256 != digest:
        raise WeightsError(
            f"{place} is damaged, or is another file of that name: its sha256 starts with {digest[:8]} where {named.what} has "
            f"{named.sha256[:8]}; fetch it again from {named.page}"
        )
    return Found(place, digest, known_by(digest))


def add(path: str | os.PathLike) -> Found:
    """Copies a published file, whatever its name, into the weights folder: all of it or nothing.

    Raises:
      WeightsError: no such file, or not the bytes of a published one.
    """
    source = pathlib.Path(path).expanduser()
    if not source.is_file():
        raise WeightsError(f"{str(path)!r} does not exist; give a file to add")
    found = identify(source)
    if found.known is None:
        raise WeightsError(
            f"{source} has the sha256 {found.sha256[:16]}…, which is of no file that vimlab knows (it knows {', '.join(KNOWN)}): it is "
            "cut off or another one; fetch it again, or name its path in the config with allow_unknown=True"
        )
    target = folder() / found.known.files[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(target.name + ".tmp")
    try:
        shutil.copyfile(source, beside)
        if sha256(beside) != found.sha256:
            raise WeightsError(f"{source} changed while it was copied to {target}, which is left as it was; add it again")
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    return dataclasses.replace(found, path=target)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a `.safetensors`, an `.npz`, or else a torch file by name, on the host.

    Raises:
      UserError: the file is damaged, or holds something else; the message names it.
    """
    suffix = pathlib.Path(path).suffix
    if suffix == ".safetensors":
        return safetensors_io.read(path)[0]
    if suffix != ".npz":
        return torch_io.read(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} is not a whole .npz file ({error}); fetch it again or save it again") from error


def _offer(wanted: list[Known]) -> str:
    return " or ".join(f"{known.files[0]} ({known.what}, {known.page})" for known in wanted)


if __name__ == "__main__":
    from vimlab.cli import entry

    entry(["weights", *sys.argv[1:]])
