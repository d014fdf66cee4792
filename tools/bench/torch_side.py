"""The torch child of the benchmark; run in torch's own environment."""

import os

import torch
import torch._functorch.config
from pair import Arrays, serve
from torch_reference import Trainer


class Train:
    """A training step, eager or compiled."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        self.batch = arrays.pop("images")
        self.trainer = Trainer(cell, arrays, compiled=variant == "compile")

    def first(self, phase: str) -> Arrays:
        self.trainer.reset()
        fakes, loss = self.trainer.step(self.batch, phase == "r1")
        outputs = {"reconstructions": fakes.clamp(0, 1).permute(0, 2, 3, 1).numpy(), "loss": loss.numpy()}
        outputs |= {f"gradients of {k}": v for k, v in self.trainer.gradients().items()}
        return outputs

    def run(self, phase: str) -> None:
        self.trainer.step(self.batch, phase == "r1")


class Search:
    """Nearest of l2-normalised codes: the score's argmax, whole, in chunks or compiled; or through cdist."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        self.latents = torch.tensor(arrays["latents"]).flatten(0, 1)
        self.codebook = torch.tensor(arrays["codebook"])
        whole = lambda z, e: (z @ e.T).argmax(-1)
        self.search = {
            "eager": whole,
            "compile": torch.compile(whole),
            "chunked": lambda z, e: torch.cat([whole(part, e) for part in z.split(256)]),
            "cdist": lambda z, e: torch.cdist(z, e).argmin(-1),
        }[variant]

    def first(self, phase: str) -> Arrays:
        with torch.inference_mode():
            ids = self.search(self.latents, self.codebook)
        return {"codes": self.codebook[ids].numpy()}

    def run(self, phase: str) -> None:
        with torch.inference_mode():
            self.search(self.latents, self.codebook)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    torch.manual_seed(0)
    torch._functorch.config.donated_buffer = False
    serve(lambda cell, variant, arrays: {"train": Train, "search": Search}[cell["kind"]](cell, variant, arrays))
