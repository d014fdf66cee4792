"""Parti-350M: text to 32x32 image tokens with an encoder and a decoder of 12 blocks each, width 1024.

paper:    "Scaling Autoregressive Models for Content-Rich Text-to-Image Generation", sections 2 to 4, Table 1
command:  vimlab data vocab DATA runs/vocabulary.model --size 16000, then
          vimlab train --config configs/parti_350m.py:data=DATA,tokenizer=PATH,vocabulary=runs/vocabulary.model --workdir DIR
          (DATA: captioned images; PATH: the workdir of a ViT-VQGAN for 256 px, or an export of it)
hardware: data-parallel TPU v4 in the paper; any mesh that divides a batch of 8192
hours:    not known; 3.7e9 images
expected: the paper's zero-shot MS-COCO FID 14.10; not yet reproduced here
params:   generator 352,385,024 without embeddings and softmax
status:   the architecture is tested; the full run has not been tried

The paper leaves open which decoder layers have convolution-shaped attention, its kernel, and when texts were dropped for
guidance: here it is every layer with DALL-E's 11x11 (`--config.model.dense_layers=11` keeps the last one dense), and 10% of
texts over the whole run; --config.drop.start="95 percent" makes it a last phase.
"""

import dataclasses

import ml_collections

from vimlab.config import parse_arg
from vimlab.generators.sizes import PARTI


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg, tokenizer="runs/vitvq_small_imagenet256", data="data/captions", vocabulary="runs/vocabulary.model", tokens="", smoke=False
    )
    text_depth, size = PARTI["350m"]
    config = dict(
        task="generator",
        seed=0,
        duration="450000 steps",
        batch_size=8192,
        tokenizer=arg.tokenizer,
        model=dataclasses.asdict(size)
        | dict(condition=dict(name="text", depth=text_depth), conv_kernel=11, activation="relu", use_bias=False, dropout=0.1),
        drop=dict(rate=0.1),
        optim=dict(
            name="adafactor", learning_rate=4.5e-5, warmup="5000 steps", schedule="exponential", decay_start="85000 steps", final=0.025,
            b1=0.9, b2=0.96, moment="int8", min_dim=64, weight_decay=0.045, clip=4.0,
        ),
        data=dict(
            train=arg.data, holdout=5000, tokens=arg.tokens or None, crop=dict(name="generator"), eval_crop=dict(name="center"),
            text=dict(name="sentencepiece", vocabulary=arg.vocabulary, length=128),
        ),
        mesh=dict(data=-1),
        log=dict(every="100 steps"),
        checkpoint=dict(every="5000 steps", keep_every="50000 steps"),
        evals=dict(likelihood=dict(every="10000 steps"), samples=dict(every="10000 steps", guidance=1.2)),
    )  # fmt: skip
    if arg.smoke:
        config |= dict(duration="20 steps", batch_size=16, log=dict(every="5 steps"), checkpoint=dict(every="5 steps"))
        config["model"] |= dict(depth=2, width=32, heads=2, mlp=64, condition=dict(name="text", depth=1))
        config["optim"] |= dict(warmup="5 steps", decay_start="10 steps")
        config["data"] |= dict(
            train="emoji:train", eval="emoji:test", holdout=0, crop=dict(name="resize"), eval_crop=dict(name="resize"),
            text=dict(name="bytes", length=64),
        )  # fmt: skip
        config["evals"] = dict(likelihood=dict(every="10 steps"), samples=dict(every="10 steps", count=4))
    return ml_collections.ConfigDict(config)
