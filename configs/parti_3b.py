"""Parti-3B: 12 encoder and 36 decoder blocks of width 2048, split four ways within a layer.

paper:    "Scaling Autoregressive Models for Content-Rich Text-to-Image Generation", sections 2 to 4, Table 1
command:  vimlab train --config configs/parti_3b.py:data=DATA,tokenizer=PATH,vocabulary=FILE --workdir DIR
          (the arguments, and what the paper leaves open, are those of configs/parti_350m.py)
hardware: TPU v4, 4-way in-layer x 128-way data parallelism in the paper (the mesh of this config): heads and hidden widths are split
          four ways, and what passes between layers by position, so that each product ends in a reduce-scatter
hours:    not known; 3.7e9 images
expected: the paper's zero-shot MS-COCO FID 8.10; not yet reproduced here
params:   generator 3,020,173,312 without embeddings and softmax
status:   the architecture is tested; the full run has not been tried
"""

import dataclasses
import pathlib

import ml_collections

from vimlab.config import load
from vimlab.generators.sizes import PARTI


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = load(f"{pathlib.Path(__file__).with_name('parti_350m.py')}:{arg or ''}")
    if "smoke" not in (arg or "").split(","):
        text_depth, size = PARTI["3b"]
        config.model.update(dataclasses.asdict(size))
        config.model.condition.depth = text_depth
        config.mesh.tensor = 4
        config.accumulate = 4  # What blocks keep for the backward pass would not fit a v4 at once; see `vimlab plan`.
    return config
