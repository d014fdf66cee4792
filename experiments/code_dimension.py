"""The paper's Table 4 in small: the dimension of the codes, 4 to 256, with and without l2 normalisation, three seeds each.

    vimlab sweep run experiments/code_dimension.py --base-arg data=PATH --workdir DIR
    vimlab sweep table DIR --out experiments/results/code_dimension.json --out experiments/results/code_dimension.md
    vimlab sweep plot DIR --out experiments/results/code_dimension.html

PATH holds CIFAR-10 with the splits train and test. The config is shortened to 200 of its 5500 steps at batch 64 and is itself otherwise, its
re-seeding of unused codes and its LayerNorm before the quantizer included, which the paper does not have. Without both, and at a learning rate
of 1e-3, one seed of each was tried: within 40 steps all latents fell onto one code in 6 of the 14 settings, and codes of more than 4 dimensions
never passed a perplexity of 8, so that there was nothing to compare. A trial takes about a minute on two idle CPU cores, start included, so the 42
take about an hour; they are evaluated once, at the end, on the 2,000 test images. JAX_COMPILATION_CACHE_DIR=FOLDER spares the second and third
seed their compilation.
"""

import itertools
import statistics

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
    """Whether settings that the paper tells apart stand in its order here, as far as the seeds tell them apart."""
    found = {(int(g["changes"][DIM]), g["changes"][L2] == "true"): g["figures"] for g in groups}

    def order(a, b, figure):
        """1 where a has more of a figure than b, -1 where less, 0 where their difference over seeds is within its spread."""
        x, y = (found[setting][figure]["seeds"] for setting in (a, b))
        differences = [x[seed] - y[seed] for seed in x]
        mean = statistics.mean(differences)
        return 0 if abs(mean) <= statistics.stdev(differences) else 1 if mean > 0 else -1

    def compared(figure, column, sign, least):
        """Same, reversed, level: the pairs that differ by more than `least` in the paper."""
        pairs = [(a, b) for a, b in itertools.combinations(PAPER, 2) if abs(PAPER[a][column] - PAPER[b][column]) > least]
        signs = [order(a, b, figure) * (1 if sign * (PAPER[a][column] - PAPER[b][column]) > 0 else -1) for a, b in pairs]
        return [signs.count(s) for s in (1, -1, 0)]

    usage, error = compared("codebook/usage", 1, 1, 0.011), compared("reconstruction/psnr", 0, -1, 0.051)
    dims = [dim for dim, l2 in found if l2]
    gains = [[order((d, True), (d, False), figure) for d in dims] for figure in ("codebook/usage", "reconstruction/psnr")]
    verdict = "holds" if usage[0] + error[0] == sum(usage + error) else "does not hold" if usage[0] + error[0] <= usage[1] + error[1] else "holds in part"
    return [
        f"The paper's order {verdict}: of the {sum(usage)} pairs of settings that it tells apart by usage, {usage[0]} stand in its order here, {usage[1]} "
        f"in the other, and {usage[2]} are level within the spread over seeds; of the {sum(error)} that it tells apart by rFID, {error[0]} stand in its "
        f"order by PSNR, {error[1]} in the other, {error[2]} are level. l2 normalisation raises usage at {gains[0].count(1)} of {len(dims)} dimensions and "
        f"lowers it at {gains[0].count(-1)}; it raises PSNR at {gains[1].count(1)} and lowers it at {gains[1].count(-1)}."
    ]
