"""One module a metric: what check_metrics_against_torch.py compares, with torch's half and ours."""

import importlib.util

_KEPT = []  # A library's operators live as long as the object that defined them.


def declare_operators() -> None:
    """Makes torchvision importable also where it was built for CUDA and torch for CPU; the operators are not used here."""
    if _KEPT or not importlib.util.find_spec("torchvision"):
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)


def torch_fidelity():
    """The package."""
    declare_operators()
    import torch_fidelity

    return torch_fidelity
