"""Writes tests/losses/lpips_answer.npz: LPIPS of random pictures under random weights, by an independent torch program.

    python tools/make_lpips_answer.py

Run it where torch is installed; the project itself does not use torch. Weights and pictures are drawn by NumPy from the seed
stored in the file, in the order of `draw` below, so that the file holds only the answers: distances and some gradients.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F

SEED = 20
PLAN = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
TAPS = (1, 4, 8, 12, 16)  # Where in PLAN a stage ends.


def draw(seed):
    """Convolutions [(w[out,in,3,3], b[out])] and heads [w[width]] in torch's layout, and two batches of pictures [2,3,48,40]."""
    rng = np.random.default_rng(seed)
    convolutions, channels = [], 3
    for width in (p for p in PLAN if p != "pool"):
        kernel = rng.standard_normal((width, channels, 3, 3), dtype=np.float32) * np.float32(np.sqrt(2 / (9 * channels)))
        convolutions.append((kernel, rng.standard_normal(width, dtype=np.float32) * np.float32(0.1)))
        channels = width
    heads = [np.abs(rng.standard_normal(width, dtype=np.float32)) for width in (64, 128, 256, 512, 512)]
    images = rng.uniform(size=(2, 3, 48, 40)).astype(np.float32)
    return convolutions, heads, images, rng.uniform(size=images.shape).astype(np.float32)


def features(convolutions, pictures):
    x = (pictures * 2 - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
        1, 3, 1, 1
    )
    found, remaining = [], iter(convolutions)
    for i, step in enumerate(PLAN):
        if step == "pool":
            x = F.max_pool2d(x, 2)
        else:
            w, b = next(remaining)
            x = F.relu(F.conv2d(x, torch.from_numpy(w), torch.from_numpy(b), padding=1))
        if i in TAPS:
            found.append(x)
    return found


def lpips(convolutions, heads, a, b):
    total = 0
    for x, y, head in zip(features(convolutions, a), features(convolutions, b), heads, strict=True):
        x, y = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
        total = total + F.conv2d((x - y).square(), torch.from_numpy(head).view(1, -1, 1, 1)).mean((1, 2, 3))
    return total


def main():
    convolutions, heads, images, reconstructions = draw(SEED)
    target, moving = torch.from_numpy(images), torch.from_numpy(reconstructions).requires_grad_()
    distance = lpips(convolutions, heads, target, moving)
    distance.sum().backward()
    out = pathlib.Path(__file__).resolve().parents[1] / "tests/losses/lpips_answer.npz"
    np.savez(out, seed=SEED, distance=distance.detach().numpy(), gradient=moving.grad[:, :, ::8, ::8].numpy())
    print(out, distance.tolist())


if __name__ == "__main__":
    main()
