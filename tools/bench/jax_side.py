"""The vimlab child of the benchmark: the same task, step and search that `vimlab train` runs."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from jax_step import Step, flatten
from pair import Arrays, serve

from vimlab.config import Duration
from vimlab.data.pipeline import DataConfig
from vimlab.losses.perceptual import STAGES, WIDTHS
from vimlab.optim import AdamW
from vimlab.tasks.tokenizer_config import AdversarialConfig, LossConfig, TokenizerRun
from vimlab.tasks.tokenizer_task import TokenizerTask
from vimlab.tokenizers.code_search import nearest_codes
from vimlab.tokenizers.quantizers import VectorQuantizerConfig, l2_normalize
from vimlab.tokenizers.sizes import ViTSize
from vimlab.tokenizers.tokenizer import TokenizerConfig


def make_task(cell: dict) -> TokenizerTask:
    """The cell as `vimlab train` would build it."""
    tower, gan = ViTSize(**cell["tower"]), cell["gan"]
    config = TokenizerRun(
        duration=Duration(1000),
        batch_size=cell["batch"],
        data=DataConfig(train="none"),
        model=TokenizerConfig(
            image_size=cell["image_size"],
            patch=cell["patch"],
            encoder=tower,
            decoder=tower,
            output="rgb" if cell["epsilon"] is None else "logit_laplace",
            laplace_epsilon=cell["epsilon"] or 0.1,
            quantizer=VectorQuantizerConfig(codes=cell["codes"], dim=cell["dim"]),
        ),
        loss=LossConfig(
            logit_laplace=cell["laplace"],
            adversarial=gan
            and AdversarialConfig(
                weight=gan["weight"], r1=gan["r1"], r1_every=gan["r1_every"], channel_multiplier=gan["multiplier"],
                base_channels=gan["base"], max_channels=gan["largest"], minibatch_group=gan["group"],
            ),
        ),
        optim=AdamW(learning_rate=cell["learning_rate"], schedule="constant"),
        reseed=None,
    )  # fmt: skip
    return TokenizerTask(config, 1000, lambda duration: int(duration.count), jnp.float32)


def common_arrays(cell: dict) -> Arrays:
    """The inputs and weights that both sides start from."""
    rng = np.random.default_rng(0)
    if cell["kind"] == "search":
        draw = lambda *shape: np.asarray(l2_normalize(jnp.asarray(rng.standard_normal(shape, np.float32))))
        return {"latents": draw(cell["images"], cell["length"], cell["dim"]), "codebook": draw(cell["codes"], cell["dim"])}
    arrays = flatten(jax.jit(make_task(cell).init)(jax.random.key(0)).params)
    if cell["lpips"]:
        arrays |= {f"vgg/{k}": v for k, v in random_vgg(rng).items()}
    shape = (cell["batch"], cell["image_size"], cell["image_size"], 3)
    return arrays | {"images": np.random.default_rng(0).integers(0, 256, shape, np.uint8)}


def random_vgg(rng: np.random.Generator) -> Arrays:
    """LPIPS weights that keep activations' size; a timing does not depend on what they have learned."""
    weights, channels = {}, 3
    for stage, (indices, width) in enumerate(zip(STAGES, WIDTHS, strict=True)):
        for i in indices:
            weights[f"conv{i}.w"] = rng.standard_normal((3, 3, channels, width), np.float32) * (2 / (9 * channels)) ** 0.5
            weights[f"conv{i}.b"] = np.full(width, 0.01, np.float32)
            channels = width
        weights[f"head{stage}"] = rng.random(width, np.float32)
    return weights


class Train:
    """A training step as `vimlab train` makes it."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        task = make_task(cell)
        vgg = {k.removeprefix("vgg/"): v for k, v in arrays.items() if k.startswith("vgg/")}
        if vgg:
            task.frozen = {"vgg": vgg}
        self.step = Step(task, {"image": jnp.asarray(arrays["images"])}, arrays)

    def first(self, phase: str) -> Arrays:
        task, images = self.step.task, self.step.batch["image"] / np.float32(255)
        reconstructions = jax.jit(task.predict_fns()["reconstruct"])(self.step.initial, self.step.frozen, images)
        return {"reconstructions": np.asarray(reconstructions)} | self.step.begin(_number(phase))

    def run(self, phase: str) -> None:
        self.step.next(_number(phase))


def _number(phase: str) -> int:
    """R1 is due on multiples of r1_every."""
    return 0 if phase == "r1" else 1


class Search:
    """`nearest_codes` as the quantizer calls it."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        self.latents, self.codebook = jnp.asarray(arrays["latents"]), jnp.asarray(arrays["codebook"])
        self.search = jax.jit(nearest_codes)

    def first(self, phase: str) -> Arrays:
        ids = np.asarray(self.search(self.latents, self.codebook))
        return {"codes": np.asarray(self.codebook)[ids.ravel()]}

    def run(self, phase: str) -> None:
        self.search(self.latents, self.codebook).block_until_ready()


def make(cell: dict, variant: str, arrays: Arrays) -> Train | Search:
    return {"train": Train, "search": Search}[cell["kind"]](cell, variant, arrays)


if __name__ == "__main__":
    serve(make, common_arrays)
