"""The paper's Table 4 in small: the dimension of the codes, 4 to 256, with and without l2 normalisation, three seeds each.

    vimlab sweep run experiments/code_dimension.py --base-arg data=PATH --workdir DIR
    vimlab sweep table DIR --out experiments/results/code_dimension.json --out experiments/results/code_dimension.md
    vimlab sweep plot DIR --out experiments/results/code_dimension.html

PATH holds CIFAR-10 with the splits train and test. The config is shortened to 200 of its 5500 steps at batch 64 and is itself otherwise, its
re-seeding of unused codes included, which the paper does not have: without that, at this length, all latents fell onto one code within 40
steps in 6 of the 14 settings that were tried. That is about a minute a trial on two CPU cores, start included, so the 42 trials take about an
hour; evaluated once, at the end, on the 2,000 test images. JAX_COMPILATION_CACHE_DIR=FOLDER spares the second and third seed compilation.
"""

import itertools

from vimlab.sweep import Against, Report, fixed, product, seeds

base = "configs/vitvq_cifar10.py"
STEPS = 200
DIM, L2 = "model.quantizer.dim", "model.quantizer.normalize"
# "Vector-quantized Image Modeling with Improved VQGAN", Table 4, ImageNet at 256 px: (dimension, l2): (rFID, usage).
PAPER = {
    (4, True): (3.68, 0.96), (8, True): (1.52, 0.96), (16, True): (1.50, 0.95), (32, True): (1.55, 0.96), (64, True): (2.50, 0.37),
    (128, True): (2.77, 0.14), (256, True): (3.68, 0.04), (32, False): (5.44, 0.02),
}  # fmt: skip


def sweep():
    recipe = {
        "duration": STEPS, "optim.warmup": 40, "log.every": 20, "checkpoint.every": STEPS,
        "evals.reconstruction.every": STEPS, "evals.codebook.every": STEPS,
    }  # fmt: skip
    return product(fixed(recipe), seeds(3), {DIM: [4, 8, 16, 32, 64, 128, 256], L2: [True, False]})


def report():
    columns = ("codebook/usage", "codebook/perplexity", "reconstruction/psnr", "reconstruction/ssim")
    rows = [[str(dim), str(l2).lower(), f"{rfid:.2f}", f"{usage:.0%}"] for (dim, l2), (rfid, usage) in PAPER.items()]
    return Report(
        title="The dimension of the codes, and l2 normalisation",
        columns=columns,
        best="reconstruction/psnr",
        baseline={DIM: 32, L2: True},
        plots=[*(Against(column, DIM, L2) for column in columns), "train/codebook_usage", "train/loss"],
        reference=("The paper's Table 4 (ImageNet, 256 px, 8192 codes).", ["dim", "normalize", "rFID", "usage"], rows),
        findings=findings,
    )


def findings(groups):
    """Whether settings that the paper tells apart stand in its order here."""
    mean = {}
    for group in groups:
        setting = int(group["changes"][DIM]), group["changes"][L2] == "true"
        mean[setting] = [group["figures"][name]["mean"] for name in ("reconstruction/psnr", "codebook/usage")]
    pairs = list(itertools.combinations(PAPER, 2))
    by_usage = [(PAPER[a][1] - PAPER[b][1]) * (mean[a][1] - mean[b][1]) > 0 for a, b in pairs if abs(PAPER[a][1] - PAPER[b][1]) > 0.011]
    by_error = [(PAPER[b][0] - PAPER[a][0]) * (mean[a][0] - mean[b][0]) > 0 for a, b in pairs if abs(PAPER[a][0] - PAPER[b][0]) > 0.051]
    dims = [dim for dim, l2 in mean if l2]
    higher = [sum(mean[dim, True][i] > mean[dim, False][i] for dim in dims) for i in (0, 1)]
    verdict = "holds" if all(by_usage + by_error) else "holds in part" if sum(by_usage + by_error) > len(by_usage + by_error) / 2 else "does not hold"
    return [
        f"The paper's order {verdict}: of the {len(by_usage)} pairs of settings that it tells apart by usage, {sum(by_usage)} stand in the same order "
        f"here, and of the {len(by_error)} that it tells apart by rFID, {sum(by_error)} do by PSNR; l2 normalisation raises usage at {higher[1]} of "
        f"{len(dims)} dimensions and PSNR at {higher[0]}."
    ]
