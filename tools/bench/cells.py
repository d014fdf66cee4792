"""What tools/bench/tokenizer.py measures: cells as compare.py describes them, and the targets."""

SMALL = {"depth": 8, "width": 512, "heads": 8, "mlp": 2048}
TINY = {"depth": 6, "width": 256, "heads": 4, "mlp": 1024}
CIFAR = {"depth": 3, "width": 96, "heads": 3, "mlp": 384}
# Widths 64 at 64 px and 128 below.
NARROW_GAN = {
    "multiplier": 0.25,
    "base": 16384,
    "largest": 128,
    "group": 4,
    "weight": 0.1,
    "r1": 2.5,
    "r1_every": 16,
}


def _train(**changes) -> dict:
    cell = {
        "kind": "train", "image_size": 64, "patch": 8, "batch": 8, "tower": SMALL, "codes": 8192, "dim": 32, "epsilon": 0.1,
        "laplace": 0.1, "lpips": 0.0, "gan": None, "learning_rate": 1e-4, "phases": {"step": 1.0},
        "peers": {"eager": "torch", "compile": "torch"},
    }  # fmt: skip
    return cell | changes


# With lazy R1, 15 steps in 16 are ordinary ones; each kind is timed, and the weighted mean is reported.
_LAZY = {"ordinary": 15 / 16, "r1": 1 / 16}
CELLS = {
    "autoencoder": _train(what="ViT autoencoder step, 8x512, 64 px, patch 8, batch 8", targets={"torch": 0.9}),
    "autoencoder_cifar": _train(
        what="ViT autoencoder step, 3x96, 32 px, patch 4, batch 64 (configs/vitvq_cifar10.py)", targets={"torch": 0.9},
        image_size=32, patch=4, batch=64, tower=CIFAR, codes=1024, epsilon=None, laplace=0.0,
    ),
    "gan": _train(
        what="generator + discriminator step, 6x256, 64 px, batch 8, widths 64 to 128", targets={"torch": 1.0},
        tower=TINY, gan=NARROW_GAN, phases=_LAZY,
    ),
    "gan_lpips": _train(
        what="the same with LPIPS (random VGG16)", targets={"torch": 1.0}, tower=TINY, gan=NARROW_GAN, lpips=0.1, phases=_LAZY,
    ),
    "code_search": {
        "kind": "search", "what": "code search, 4096 latents x 8192 codes x 32", "targets": {"eager": 1.8},
        "images": 4, "length": 1024, "codes": 8192, "dim": 32, "phases": {"search": 1.0},
        "peers": {"eager": "torch", "compile": "torch", "chunked": "torch", "cdist": "torch"},
    },
}  # fmt: skip
