"""The torch child of the generator's benchmark; run in torch's own environment."""

import os

import numpy as np
import torch
from pair import Arrays, Work, serve
from torch import Tensor
from torch_generator import Trainer, generator


class Train:
    """A training step, eager or compiled."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        ids, condition = arrays["tokens"], arrays["text" if cell["text"] else "label"]
        self.batch = torch.tensor(ids).long(), torch.tensor(condition).long()
        self.trainer = Trainer(cell, arrays, compiled=variant == "compile")

    def first(self, phase: str) -> Arrays:
        self.trainer.reset()
        loss = self.trainer.step(*self.batch).numpy()
        return {"loss": loss} | {f"gradients of {k}": v for k, v in self.trainer.gradients().items()}

    def run(self, phase: str) -> None:
        self.trainer.step(*self.batch)


class Decode:
    """Greedy tokens with a cache, each block's step eager or compiled."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        self.net, self.inputs = generator(cell, arrays).eval(), (torch.tensor(arrays["label"]).long(), cell["guidance"])
        if variant == "compile":
            for block in self.net.backbone.blocks:
                block.step = torch.compile(block.step)

    def first(self, phase: str) -> Arrays:
        return {"ids": self.net.decode(*self.inputs).numpy()}

    def run(self, phase: str) -> None:
        self.net.decode(*self.inputs)


class GPT2:
    """`transformers`' GPT-2 of the same size, random weights: a token a row, then as many as the cell decodes."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel  # Only the cells that have this peer need it.

        model, self.length = cell["model"], cell["side"] ** 2
        config = GPT2Config(
            vocab_size=cell["codes"], n_positions=self.length + 1, n_embd=model["width"], n_layer=model["depth"],
            n_head=model["heads"], n_inner=model["mlp"], bos_token_id=None, eos_token_id=None, attn_implementation="sdpa",
        )  # fmt: skip
        self.net = GPT2LMHeadModel(config).eval()
        self.ids = torch.tensor(arrays["label"]).long()[:, None] % cell["codes"]

    def first(self, phase: str) -> Arrays:
        if self._draw().shape[1] != self.length + 1:
            raise RuntimeError("GPT-2 did not decode as many tokens as it was asked for")
        return {}

    def run(self, phase: str) -> None:
        self._draw()

    def _draw(self) -> Tensor:
        with torch.inference_mode():
            return self.net.generate(
                self.ids, attention_mask=torch.ones_like(self.ids), do_sample=False, use_cache=True, pad_token_id=0,
                min_new_tokens=self.length, max_new_tokens=self.length,
            )  # fmt: skip


class Filter:
    """Top-k by topk; then top-p by a sort of all, as libraries have it, or of the k."""

    def __init__(self, cell: dict, variant: str, arrays: Arrays) -> None:
        self.inputs = torch.tensor(arrays["logits"]), cell["k"], cell["p"]
        self.filter = {"sort": sort_filter, "topk": topk_filter}[variant]

    def first(self, phase: str) -> Arrays:
        with torch.inference_mode():
            return {"kept": self.filter(*self.inputs).isfinite().numpy().astype(np.int64)}

    def run(self, phase: str) -> None:
        with torch.inference_mode():
            self.filter(*self.inputs)


def sort_filter(logits: Tensor, k: int, p: float) -> Tensor:
    logits = logits.masked_fill(logits < logits.topk(k).values[:, -1:], -torch.inf)
    values, order = logits.sort(descending=True)
    shares = values.softmax(-1)
    return torch.full_like(logits, -torch.inf).scatter(1, order, values.masked_fill(shares.cumsum(-1) - shares >= p, -torch.inf))


def topk_filter(logits: Tensor, k: int, p: float) -> Tensor:
    values, order = logits.topk(k)
    shares = values.softmax(-1)
    return torch.full_like(logits, -torch.inf).scatter(1, order, values.masked_fill(shares.cumsum(-1) - shares >= p, -torch.inf))


def make(cell: dict, variant: str, arrays: Arrays) -> Work:
    if variant == "gpt2":
        return GPT2(cell, variant, arrays)
    return {"train": Train, "decode": Decode, "filter": Filter}[cell["kind"]](cell, variant, arrays)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    torch.manual_seed(0)
    serve(make)
