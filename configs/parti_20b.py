"""Parti-20B: 16 encoder and 64 decoder blocks of width 4096.

paper:    "Scaling Autoregressive Models for Content-Rich Text-to-Image Generation", sections 2 to 4, Table 1
command:  vimlab train --config configs/parti_20b.py:data=DATA,tokenizer=PATH,vocabulary=FILE --workdir DIR
          (the arguments, and what the paper leaves open, are those of configs/parti_350m.py)
hardware: 1024 TPU v4 chips, 16 pipeline stages x 64-way data parallelism, in the paper (the mesh of this config). The decoder passes
          its stages in 4 rounds, as in the paper, which does not say in how many microbatches: here 32, so that a stage is idle for
          10% of the decoder's passes (one round: 32%) and for 32% of the text encoder's
hours:    not known; 3.7e9 images, 4e23 FLOPs
expected: the paper's zero-shot MS-COCO FID 7.23; not yet reproduced here
params:   generator 20,402,020,352 without embeddings and softmax
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
        text_depth, size = PARTI["20b"]
        config.model.update(dataclasses.asdict(size))
        config.model.condition.depth = text_depth
        config.model.remat = "full"
        config.mesh.update(data=-1, fsdp=4, stage=16, microbatches=32, rounds=4)
    return config
