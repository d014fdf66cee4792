"""What keeps a codebook alive: the recipe as printed, re-seeding and when it ends, other estimators, dimensions, terms.

    vimlab sweep run experiments/codebook_life.py --base-arg data=PATH --workdir DIR
    vimlab sweep table DIR --out TABLE.md

PATH holds CIFAR-10 with the splits train and test. experiments/results/codebook_life.{json,md} calls the trials as TRIALS does.
"""

from vimlab.sweep import Report, chain, fixed, product

base = "configs/vitvq_cifar10.py"
STEPS = 600
NO_RESEED = {"reseed": "none"}
EVERY_25 = {"reseed.every": "25"}
PLAIN = {"model.quantizer.normalize": "false", "model.quantizer.layer_norm": "false"}
TRIALS = {
    "recipe": NO_RESEED,
    "reseed_25": EVERY_25,
    "reseed_25_to_end": EVERY_25 | {"reseed.until": "100 percent"},
    "reseed_25_to_half": EVERY_25 | {"reseed.until": "50 percent"},
    "reseed_5": {"reseed.every": "5"},
    "reseed_100": {"reseed.every": "100"},
    "data_init_only": {"reseed.until": "1 steps"},
    "linear_bank": NO_RESEED | {"model.quantizer.bank": "linear"},
    "rotation": NO_RESEED | {"model.quantizer.estimator": "rotation"},
    "rotation_reseed": EVERY_25 | {"model.quantizer.estimator": "rotation"},
    "entropy_0.1": NO_RESEED | {"model.quantizer.entropy": "0.1"},
    "entropy_0.01_reseed": EVERY_25 | {"model.quantizer.entropy": "0.01"},
    "sum_reseed": EVERY_25 | {"model.quantizer.reduction": "sum"},
    "dim8_recipe": NO_RESEED | {"model.quantizer.dim": "8"},
    "dim8_reseed": EVERY_25 | {"model.quantizer.dim": "8"},
    "dim16_reseed": EVERY_25 | {"model.quantizer.dim": "16"},
    "plain_l2_dim64": NO_RESEED | PLAIN | {"model.quantizer.dim": "64"},
    "plain_l2_dim64_reseed": EVERY_25 | PLAIN | {"model.quantizer.dim": "64"},
}


def sweep():
    ends = ("duration", "evals.reconstruction.every", "evals.codebook.every", "checkpoint.every")
    common = dict.fromkeys(ends, STEPS) | {"optim.learning_rate": 1e-3}  # The learning rate at which they were compared.
    return product(fixed(common), chain(*map(fixed, TRIALS.values())))


def report():
    return Report(
        title=f"What keeps a codebook alive, {STEPS} steps",
        columns=["codebook/usage", "codebook/perplexity", "reconstruction/psnr", "reconstruction/ssim"],
        best="reconstruction/psnr",
        baseline=NO_RESEED,
    )
