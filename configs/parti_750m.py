"""Parti-750M: as Parti-350M, with a decoder of 36 blocks.

paper:    "Scaling Autoregressive Models for Content-Rich Text-to-Image Generation", sections 2 to 4, Table 1
command:  vimlab train --config configs/parti_750m.py:data=DATA,tokenizer=PATH,vocabulary=FILE --workdir DIR
          (the arguments, and what the paper leaves open, are those of configs/parti_350m.py)
hardware: data-parallel TPU v4 in the paper; any mesh that divides a batch of 8192
hours:    not known; 3.7e9 images
expected: the paper's zero-shot MS-COCO FID 10.71; not yet reproduced here
params:   generator 755,111,936 without embeddings and softmax
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
        text_depth, size = PARTI["750m"]
        config.model.update(dataclasses.asdict(size))
        config.model.condition.depth = text_depth
        config.accumulate = 2  # What blocks keep for the backward pass would not fit 256 v4 at once; see `vimlab plan`.
    return config
