"""The small CLIP of tests/known_answers/clip.npz (made by tools/known_answers/clip.py), as files that a user has."""

import json
import pathlib

import numpy as np

from vimlab import safetensors_io
from vimlab.scoring.scorers import Clip

ANSWERS = np.load(pathlib.Path(__file__).parent / "known_answers/clip.npz")
TEXTS = json.loads(str(ANSWERS["texts"]))
PICTURES = [ANSWERS[f"picture{i}"] for i in range(len(ANSWERS["image_features"]))]
WEIGHTS = {name.removeprefix("weights/"): ANSWERS[name] for name in ANSWERS if name.startswith("weights/")}
MERGES = [tuple(merge.split(" ")) for merge in ANSWERS["merges"].tolist()]
HEAD_DIM = 16


def write(folder: pathlib.Path) -> Clip:
    """Writes model.safetensors and merges.txt, and says how to open them."""
    safetensors_io.write(folder / "model.safetensors", WEIGHTS)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, MERGES), ""]), "utf-8")
    return settings(folder / "model.safetensors", folder / "merges.txt")


def settings(weights: pathlib.Path, vocabulary: pathlib.Path) -> Clip:
    return Clip(weights=str(weights), vocabulary=str(vocabulary), image_head_dim=HEAD_DIM, text_head_dim=HEAD_DIM)
