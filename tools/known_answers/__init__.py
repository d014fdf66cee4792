"""One module a metric: what check_metrics_against_torch.py compares, with torch's half and ours."""

_KEPT = []  # A library's operators live as long as the object that defined them.


def torch_fidelity():
    """The package, also where torchvision was built for CUDA and torch for CPU: then its operators, unused here, are declared first."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)
    import torch_fidelity

    return torch_fidelity
