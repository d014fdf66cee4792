"""Known answers of the metrics between sets: torch-fidelity's Fréchet distance, KID, Inception Score, precision and recall.

`make` runs where torch and torch-fidelity (0.4.0) are installed; the project itself uses neither. `check` runs where vimlab is.
tools/check_metrics_against_torch.py calls both. Features and logits are drawn by NumPy from the seed stored in the file, so that
the file holds only the answers. torch-fidelity is given f64: its definitions are compared, not its rounding.
"""

import os

import numpy as np

SEED = 5
KID = {"kid_subsets": 7, "kid_subset_size": 120, "rng_seed": 2020}


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples f32[300,24], the reference f32[350,24] that they fall short of, and logits f32[203,10] in the order of classes."""
    random = np.random.RandomState(seed)
    mixing = random.randn(24, 24) / 5 + np.eye(24)
    reference = np.maximum(random.randn(350, 24) @ mixing + 0.4, 0)
    samples = np.maximum(1.15 * random.randn(300, 24) @ mixing + 0.5, 0)
    logits = random.randn(203, 10) + 4 * np.eye(10)[np.arange(203) * 10 // 203]
    return samples.astype(np.float32), reference.astype(np.float32), logits.astype(np.float32)


def make(path: str | os.PathLike) -> None:
    """The torch side: writes the answers."""
    import torch

    from known_answers import torch_fidelity

    torch_fidelity()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    samples, reference, logits = (torch.from_numpy(x).double() for x in draw(SEED))
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, (samples, reference)), verbose=False)
    kid = kid_features_to_metric(samples, reference, **KID, verbose=False)
    shuffled, ordered = (isc_features_to_metric(logits, splits=10, shuffle=shuffle, rng_seed=2020) for shuffle in (True, False))
    prc = prc_features_to_metric(samples, reference, prc_neighborhood=3, verbose=False)
    answers = {
        "frechet": fid["frechet_inception_distance"],
        "kid_mean": kid["kernel_inception_distance_mean"],
        "kid_std": kid["kernel_inception_distance_std"],
        "is_mean": shuffled["inception_score_mean"],
        "is_std": shuffled["inception_score_std"],
        "is_in_order_mean": ordered["inception_score_mean"],
        "precision": prc["precision"],
        "recall": prc["recall"],
    }
    np.savez(path, seed=SEED, **answers)


def check(path: str | os.PathLike) -> list[tuple[str, float, float]]:
    """The JAX side: (name, relative difference from torch-fidelity's figure, tolerance) of each answer in the file."""
    from vimlab.evals.frechet import Moments, frechet_distance
    from vimlab.evals.inception_score import inception_score
    from vimlab.evals.kernel_distance import kernel_distance
    from vimlab.evals.manifold import manifold_metrics

    answers = dict(np.load(path))
    samples, reference, logits = draw(int(answers.pop("seed")))
    moments = [Moments(x.shape[1]) for x in (samples, reference)]
    for sums, features in zip(moments, (samples, reference), strict=True):
        sums.add(features)
    kid = kernel_distance(
        samples, reference, subsets=KID["kid_subsets"], subset_size=KID["kid_subset_size"], seed=KID["rng_seed"]
    )
    score, figures = inception_score([logits], len(logits)), manifold_metrics(samples, reference)
    found = {
        "frechet": frechet_distance(*moments),
        "kid_mean": kid[0],
        "kid_std": kid[1],
        "is_mean": score[0],
        "is_std": score[1],
        "is_in_order_mean": inception_score([logits], len(logits), seed=None)[0],
        "precision": figures["precision"],
        "recall": figures["recall"],
    }
    # torch-fidelity takes the mean of memberships in f32.
    tolerances = {name: 1e-6 if name in ("precision", "recall") else 1e-9 for name in answers}
    return [(name, abs(found[name] / float(answer) - 1), tolerances[name]) for name, answer in answers.items()]
