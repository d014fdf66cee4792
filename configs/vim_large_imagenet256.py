"""VIM-Large: as VIM-Base (configs/vim_base_imagenet256.py, whose arguments it takes) with 36 blocks of width 2048.

paper:    "Vector-quantized Image Modeling with Improved VQGAN", sections 3.2 and 4.2, Tables 2, 5 and 6
command:  vimlab train --config configs/vim_large_imagenet256.py:tokenizer=PATH --workdir DIR
hardware: TPU v4 in the paper; any mesh that divides a batch of 1024, such as --config.mesh.fsdp=-1 --config.mesh.data=1
hours:    not known; 4.7e11 tokens, 5.4e21 FLOPs
expected: the paper's FID 4.17, IS 175.1 without guidance or rejection; not yet reproduced here
params:   generator 1,812,901,888 without embeddings and softmax
status:   the architecture is tested; the full run has not been tried
"""

import dataclasses
import pathlib

import ml_collections

from vimlab.config import load
from vimlab.generators.sizes import VIM


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = load(f"{pathlib.Path(__file__).with_name('vim_base_imagenet256.py')}:{arg or ''}")
    if "smoke" not in (arg or "").split(","):
        config.model.update(dataclasses.asdict(VIM["large"]))
    return config
