"""vimlab's parameter names and layouts, and torch's: weights go one way, gradients the other. Imports no vimlab.

A torch module has vimlab's names, but that the tokenizer's blocks have no module for attention and its towers none for the
stack; `blocks` is a list where vimlab has one array for all layers; a Linear holds its matrix as (out, in).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

PRODUCTS = ("qkv", "q", "kv", "out")  # Those of attention, whose biases are its own.


def vimlab_name(name: str) -> tuple[str, int | None]:
    """A torch parameter's (vimlab name, index on the leading layers dimension or None)."""
    *modules, kind = name.split(".")
    layer = None
    if "blocks" in modules:
        at = modules.index("blocks")
        layer = int(modules.pop(at + 1))
        if modules[at - 1] not in ("stack", "backbone"):
            modules.insert(at, "stack")
    if modules and modules[-1] in PRODUCTS:
        *modules, product = modules
        if not modules[-1].endswith("attention"):
            modules.append("attention")
        kind = product + ("_bias" if kind == "bias" else "")
    elif modules == ["head"]:
        modules, kind = [], "head"
    elif modules and "norm" in modules[-1]:
        kind = kind.replace("weight", "scale")
    else:
        kind = {"weight": "w", "bias": "b"}.get(kind, kind)
    return "/".join([*modules, kind]), layer


def _is_product(name: str, ndim: int) -> bool:
    """Whether a parameter is a Linear's matrix; tables and codes, which lie as vimlab's do, are not called weights."""
    return ndim == 2 and name.endswith("weight")


def _to_torch(name: str, x: Tensor, shape: torch.Size) -> Tensor:
    """vimlab's layout to torch's: kernels HWIO to OIHW, products (in…, out…) to (out, in); the rest stays."""
    if len(shape) == 4:
        return x.permute(3, 2, 0, 1)
    return x.reshape(shape[::-1]).T if _is_product(name, len(shape)) else x.reshape(shape)


def _from_torch(name: str, x: Tensor) -> np.ndarray:
    """The inverse, in a copy; heads stay merged with their dimensions."""
    if x.ndim == 4:
        x = x.permute(2, 3, 1, 0)
    elif _is_product(name, x.ndim):
        x = x.T
    return np.array(x.detach())


def part(weights: dict[str, np.ndarray], network: str) -> dict[str, np.ndarray]:
    """The arrays of one network, under names of its own."""
    return {k.removeprefix(network + "/"): v for k, v in weights.items() if k.startswith(network + "/")}


def load(net: nn.Module, weights: dict[str, np.ndarray]) -> None:
    """Copies vimlab's arrays into a network. Raises KeyError or RuntimeError where one is missing or does not fit."""
    with torch.no_grad():
        for torch_name, p in net.named_parameters():
            name, layer = vimlab_name(torch_name)
            x = weights[name] if layer is None else weights[name][layer]
            p.copy_(_to_torch(torch_name, torch.tensor(x), p.shape))


def gather(net: nn.Module, value: Callable[[nn.Parameter], Tensor]) -> dict[str, np.ndarray]:
    """`value` of every parameter under vimlab's names and, but for merged heads, in its layouts."""
    found: dict[str, list[np.ndarray]] = {}
    single = set()
    for torch_name, p in net.named_parameters():
        name, layer = vimlab_name(torch_name)
        single |= {name} if layer is None else set()
        found.setdefault(name, []).append(_from_torch(torch_name, value(p)))
    return {name: xs[0] if name in single else np.stack(xs) for name, xs in found.items()}
