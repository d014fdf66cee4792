"""InceptionV3 of FID: torch-fidelity's network and pytorch-fid's resize against vimlab's, with random weights."""

import itertools
import pathlib
import zlib

import numpy as np

ABOUT = "torch-fidelity's InceptionV3 with either resize, weights drawn at random and saved by torch.save"
PACKAGES = ("torch", "torch-fidelity")
TOLERANCE = 1e-4
SEED = 5
PHOTOGRAPHS = 4
EMOJI = (3, 200, 700, 1100)
RESIZES = ("pytorch-fid", "tf1")


def draw(name: str, shape: tuple[int, ...], seed: int = SEED) -> np.ndarray:
    """One tensor by its name in torch, f32: kernels of He's variance, batch norm statistics far from 0 and 1."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith(("bn.weight", "running_var")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) == 1:
        return (0.2 * rng.standard_normal(shape)).astype(np.float32)
    fan_in = np.prod(shape[1:])
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))


def inputs(data: pathlib.Path) -> dict[str, np.ndarray]:
    """Photographs in their own sizes, and four small pictures of embedded emoji, uint8[4,40,56,3], which may be stored."""
    from vimlab.data.images import decode
    from vimlab.data.sources import open_source

    photographs = open_source(str(data / "imagenet_sample"))
    step = len(photographs) // PHOTOGRAPHS
    found = {f"photograph{i}": decode(photographs[i * step]["image"])[None] for i in range(PHOTOGRAPHS)}
    emoji = open_source("emoji:train")
    return found | {"small": np.stack([decode(emoji[i]["image"])[12:52, 4:60] for i in EMOJI])}


def theirs(inputs: dict[str, np.ndarray], folder: pathlib.Path) -> dict[str, np.ndarray]:
    """torch-fidelity's features; for pytorch-fid's, its network behind torch's own interpolation, as pytorch-fid has it."""
    import torch
    import torch.nn.functional as F

    from known_answers import torch_fidelity

    fidelity = torch_fidelity().feature_extractor_inceptionv3

    class Network(fidelity.FeatureExtractorInceptionV3):
        """Draws its weights, saves them, and keeps the branch that sFID reads."""

        def load_state_dict(self, _):
            drawn = {n: torch.from_numpy(draw(n, tuple(t.shape))) if t.ndim else t for n, t in self.state_dict().items()}
            torch.save(drawn, folder / "weights.pth")
            return super().load_state_dict(drawn)

    (folder / "weights.pth").write_bytes(b"")
    load, torch.load = torch.load, lambda *args, **kwargs: {}
    network = Network("drawn", ["2048", "logits_unbiased"], str(folder / "weights.pth"))
    torch.load = load
    kept = {}
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, output: kept.update(spatial=output))
    resize_tf1 = fidelity.interpolate_bilinear_2d_like_tensorflow1x

    def pytorch_fid(x, size, align_corners):
        x = 2 * F.interpolate(x / 255, size=size, mode="bilinear", align_corners=False) - 1
        return x * 128 + 128  # Which the network will undo.

    answers = {}
    for (name, images), resize in itertools.product(inputs.items(), RESIZES):
        fidelity.interpolate_bilinear_2d_like_tensorflow1x = resize_tf1 if resize == "tf1" else pytorch_fid
        features, logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        spatial = kept["spatial"][:, :7].permute(0, 2, 3, 1).flatten(1)
        found = {"features": features, "logits": logits, "spatial": spatial}
        answers |= {f"{name}/{resize}/{key}": x.numpy() for key, x in found.items()}
    return answers


def ours(inputs: dict[str, np.ndarray], folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The extractor's, opened from the file that torch wrote."""
    import jax

    from vimlab.evals.extractors import Inception

    answers = {}
    for resize in RESIZES:
        extractor = Inception(weights=str(folder / "weights.pth"), resize=resize, allow_unknown=True).open()
        apply = jax.jit(extractor.apply)
        for name, images in inputs.items():
            found = apply(extractor.weights, images.astype(np.float32) / 255)
            answers |= {f"{name}/{resize}/{key}": np.asarray(x) for key, x in found.items()}
    return answers


def stored(inputs: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The emoji and what torch makes of them; of "tf1", which has the same layers, the first two's features."""
    kept = {key: x for key, x in theirs.items() if key.startswith("small/pytorch-fid")}
    return {"images": inputs["small"], "small/tf1/features": theirs["small/tf1/features"][:2]} | kept
