"""The paper's Table 4 in small: the dimension of the codes, 4 to 256, with and without l2 normalisation, three seeds each.

    vimlab sweep run experiments/code_dimension.py --base-arg data=PATH --workdir DIR
    vimlab sweep table DIR --out experiments/results/code_dimension.json --out experiments/results/code_dimension.md
    vimlab sweep plot DIR --out experiments/results/code_dimension.html

PATH holds CIFAR-10 with the splits train and test. As in the paper nothing re-seeds unused codes, and no LayerNorm stands before the
quantizer: that l2 normalisation alone is what is switched. Trained for 200 of the config's 5500 steps, which is about a minute a trial on
two CPU cores, so that the 42 trials take about an hour.
"""

from vimlab.sweep import fixed, product, seeds

base = "configs/vitvq_cifar10.py"
STEPS = 200


def sweep():
    recipe = {
        "duration": STEPS, "optim.learning_rate": 1e-3, "optim.warmup": 40, "reseed": None, "model.quantizer.layer_norm": False,
        "evals.reconstruction.every": STEPS, "evals.codebook.every": STEPS, "checkpoint.every": STEPS, "log.every": 20,
    }  # fmt: skip
    axes = {"model.quantizer.dim": [32, 4, 8, 16, 64, 128, 256], "model.quantizer.normalize": [True, False]}
    return product(fixed(recipe), seeds(3), axes)
