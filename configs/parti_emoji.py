"""The demo's second stage: Parti on the captioned emoji, 64 tokens of 1024 codes, on two CPU cores.

paper:    after "Scaling Autoregressive Models for Content-Rich Text-to-Image Generation", section 2, at a size of our own
command:  vimlab train --config configs/vitvq_emoji.py --workdir runs/vitvq_emoji, then
          vimlab train --config configs/parti_emoji.py:tokenizer=runs/vitvq_emoji --workdir DIR
          (:data=PATH trains on your own captioned pictures: any folder, tar or data set that `vimlab data check` reads)
hardware: 2 CPU cores
hours:    0.1, the second stage
expected: on the 200 held-out emoji 5.32 bits a token, where the tokens' frequencies alone give 9.44; pictures of the right colour and kind
params:   generator 1,444,096 without embeddings and softmax
status:   trained and measured
"""

import ml_collections

from vimlab.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tokenizer="runs/vitvq_emoji", tokens="", data="emoji", holdout=0, smoke=False)
    # Glyphs are square already; pictures of any shape are cut, not squeezed.
    crops = dict(crop=dict(name="resize"), eval_crop=dict(name="resize"))
    if arg.data != "emoji":
        crops = dict(crop=dict(name="generator"), eval_crop=dict(name="center"))
    splits = dict(train=arg.data, eval=None, holdout=arg.holdout) if arg.holdout else dict(train=f"{arg.data}#train", eval=f"{arg.data}#test")
    config = dict(
        task="generator",
        seed=0,
        duration="600 steps",
        batch_size=64,
        tokenizer=arg.tokenizer,
        model=dict(
            depth=4, width=128, heads=4, mlp=512, condition=dict(name="text", depth=2), conv_kernel=11,
            activation="relu", use_bias=False, dropout=0.0, remat="full",
        ),
        drop=dict(rate=0.1),
        replace=0.3,
        optim=dict(name="adamw", learning_rate=2e-3, warmup="50 steps", schedule="cosine", final=0.02, b2=0.96, weight_decay=0.045, clip=1.0),
        data=crops | splits | dict(tokens=arg.tokens or None, text=dict(name="bytes", length=64)),
        log=dict(every="50 steps"),
        checkpoint=dict(every="300 steps"),
        evals=dict(likelihood=dict(every="300 steps"), samples=dict(every="600 steps", guidance=2.0, temperature=0.6)),
    )  # fmt: skip
    if arg.smoke:
        config |= dict(duration="20 steps", batch_size=16, log=dict(every="5 steps"), checkpoint=dict(every="5 steps"))
        config["model"] |= dict(depth=2, width=32, heads=2, mlp=64, condition=dict(name="text", depth=1))
        config["evals"] = dict(likelihood=dict(every="10 steps"), samples=dict(every="10 steps", count=4))
    return ml_collections.ConfigDict(config)
