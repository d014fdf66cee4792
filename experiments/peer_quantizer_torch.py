"""The torch half of peer_quantizer.py: trains the benchmark's plain ViT with the quantizer of vector-quantize-pytorch."""

import argparse
import importlib.metadata
import json
import math
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import VectorQuantize

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools/bench"))

from torch_reference import Tokenizer, adamw, load

# The library's own settings for ViT-VQGAN: cosine similarity, few dimensions, codes from k-means over the first batch, codes
# with an average count under 2 replaced, moving averages as the codebook. They differ in how gradients pass the rounding.
COMMON = {"use_cosine_sim": True, "kmeans_init": True, "kmeans_iters": 10, "threshold_ema_dead_code": 2}
SETTINGS = {"rotation": {"rotation_trick": True}, "straight_through": {"rotation_trick": False, "commitment_weight": 0.25}}


class Quantizer(torch.nn.Module):
    """The library's quantizer behind the signature of the benchmark's."""

    def __init__(self, codes: int, dim: int, **settings) -> None:
        super().__init__()
        self.quantizer = VectorQuantize(dim=dim, codebook_size=codes, **settings)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        vectors, ids, loss = self.quantizer(latents)
        return vectors, ids, loss.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", required=True)
    parser.add_argument("--setting", choices=SETTINGS, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    inputs = dict(np.load(args.inputs))
    recipe = json.loads(str(inputs["recipe"]))
    torch.manual_seed(recipe["seed"])
    settings = COMMON | SETTINGS[args.setting]
    quantizer = Quantizer(recipe["codes"], recipe["dim"], **settings)
    net = Tokenizer(recipe["image_size"], recipe["patch"], recipe["tower"], quantizer, recipe["dim"], None)
    load(net, {k.removeprefix("weights/"): x for k, x in inputs.items() if k.startswith("weights/")})
    start = time.time()
    train(net, inputs["train"], recipe)
    figures = {"settings": settings, "step": recipe["steps"], "minutes": (time.time() - start) / 60}
    figures |= evaluate(net, inputs["test"], recipe["codes"])
    figures["versions"] = {p: importlib.metadata.version(p) for p in ("torch", "vector-quantize-pytorch")}
    print(json.dumps(figures))
    args.out.write_text(json.dumps(figures, indent=1) + "\n")


def train(net: Tokenizer, images: np.ndarray, recipe: dict) -> None:
    """The recipe's steps on shuffled epochs with random flips."""
    optim, rng = adamw(net, recipe["learning_rate"]), np.random.default_rng(recipe["seed"])
    order = np.concatenate(
        [rng.permutation(len(images)) for _ in range(-(-recipe["steps"] * recipe["batch_size"] // len(images)))]
    )
    net.train()
    for step in range(recipe["steps"]):
        chosen = images[order[step * recipe["batch_size"] : (step + 1) * recipe["batch_size"]]]
        if recipe["flip"]:
            chosen = np.where((rng.random(len(chosen)) < 0.5)[:, None, None, None], chosen[:, :, ::-1], chosen)
        batch = to_torch(chosen)
        pictures, _, ids, loss = net(batch)
        loss = loss + F.mse_loss(pictures, batch)
        optim.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), recipe["clip"])
        for group in optim.param_groups:
            group["lr"] = recipe["learning_rate"] * share(step, recipe)
        optim.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.4f} codes in the batch {len(ids.unique())}", flush=True)


def share(step: int, recipe: dict) -> float:
    """Linear warm-up, then a cosine to `final`: the learning rate's share of its peak."""
    warmup = recipe["warmup"]
    progress = min(max((step - warmup) / max(recipe["steps"] - warmup, 1), 0), 1)
    cosine = recipe["final"] + (1 - recipe["final"]) * 0.5 * (1 + math.cos(math.pi * progress))
    return cosine * min(1.0, (step + 1) / max(warmup, 1))


def to_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def evaluate(net: Tokenizer, images: np.ndarray, codes: int) -> dict[str, float]:
    """Usage and perplexity of the codes, and the mean PSNR of reconstructions rounded to 8 bits, over all images."""
    net.eval()
    psnrs, counts = [], torch.zeros(codes, dtype=torch.int64)
    for first in range(0, len(images), 250):
        batch = to_torch(images[first : first + 250])
        pictures, _, ids, _ = net(batch)
        rounded = (pictures.clamp(0, 1) * 255).round() / 255
        psnrs.append(-10 * (rounded - batch).square().mean((1, 2, 3)).clamp(min=1e-10).log10())
        counts += ids.flatten().bincount(minlength=codes)
    p = counts[counts > 0].double() / counts.sum()
    return {
        "images": len(images), "usage": (counts > 0).double().mean().item(), "perplexity": (-(p * p.log()).sum()).exp().item(),
        "psnr": torch.cat(psnrs).double().mean().item(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
