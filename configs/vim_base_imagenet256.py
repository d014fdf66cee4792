"""VIM-Base: class-conditional ImageNet at 256 px on 32x32 tokens of a ViT-VQGAN; :condition=none models images alone.

paper:    "Vector-quantized Image Modeling with Improved VQGAN", sections 3.2 and 4.2, Tables 2, 5 and 6
command:  vimlab train --config configs/vim_base_imagenet256.py:tokenizer=PATH --workdir DIR
          (PATH: the workdir of configs/vitvq_small_imagenet256.py, or an export of it)
hardware: TPU v4 in the paper; any mesh that divides a batch of 1024
hours:    not known; 4.7e11 tokens, 2.1e21 FLOPs
expected: the paper's FID 8.81, IS 110.8 without guidance; not yet reproduced here
params:   generator 679,959,552 without embeddings and softmax
status:   the architecture is tested; the full run has not been tried

Weight decay and the kind of augmentation are not in the paper; they are Parti's decay and the tokenizer's crops. The paper
uses no guidance; --config.drop.rate=0.1 trains for it.
"""

import dataclasses

import ml_collections

from vimlab.config import parse_arg
from vimlab.generators.sizes import VIM


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tokenizer="runs/vitvq_small_imagenet256", data="tfds:imagenet2012", tokens="", condition="class", smoke=False)
    config = dict(
        task="generator",
        seed=0,
        duration="450000 steps",
        batch_size=1024,
        tokenizer=arg.tokenizer,
        model=dataclasses.asdict(VIM["base"])
        | dict(condition=dict(name=arg.condition), conv_kernel=None, activation="gelu", use_bias=True, dropout=0.1),
        optim=dict(
            name="adafactor", learning_rate=4.5e-4, warmup="5000 steps", schedule="exponential", decay_start="80000 steps", final=1e-5 / 4.5e-4,
            b1=0.9, b2=0.96, moment="int8", min_dim=64, weight_decay=0.045,
        ),
        data=dict(
            train=f"{arg.data}#train", eval=f"{arg.data}#validation", tokens=arg.tokens or None, crop=dict(name="tokenizer"),
            eval_crop=dict(name="center"),
        ),
        mesh=dict(data=-1),
        log=dict(every="100 steps"),
        checkpoint=dict(every="5000 steps", keep_every="50000 steps"),
        evals=dict(likelihood=dict(every="10000 steps"), samples=dict(every="10000 steps")),
    )  # fmt: skip
    if arg.smoke:
        config |= dict(duration="20 steps", batch_size=16, log=dict(every="5 steps"), checkpoint=dict(every="5 steps"))
        config["model"] |= dict(depth=2, width=32, heads=2, mlp=64)
        config["optim"] |= dict(warmup="5 steps", decay_start="10 steps")
        config["data"] |= dict(train="shapes:train?count=256", eval="shapes:test?count=32", crop=dict(name="resize"), eval_crop=dict(name="resize"))
        config["evals"] = dict(likelihood=dict(every="10 steps"), samples=dict(every="10 steps", count=4))
    return ml_collections.ConfigDict(config)
