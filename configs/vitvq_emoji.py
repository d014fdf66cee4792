"""The demo: a ViT-VQGAN on the embedded emoji at 32 px, patch 4: 64 tokens of 1024 codes.

paper:    after "Vector-quantized Image Modeling with Improved VQGAN", section 3, at a size of our own
command:  vimlab train --config configs/vitvq_emoji.py --workdir DIR
          (:data=PATH trains on your own pictures: any folder, tar or data set that `vimlab data check` reads)
hardware: 2 CPU cores
hours:    0.12, installation included
expected: on the 200 held-out emoji: 22.4 dB, SSIM 0.777, usage 99.4%, perplexity 695 of 1024
params:   tokenizer 845,104
status:   trained and measured
"""

import ml_collections

from vimlab.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, data="emoji", holdout=0, smoke=False)
    tower = dict(depth=3, width=96, heads=3, mlp=384)
    # Glyphs are square already; pictures of any shape are cut, not squeezed.
    crops = dict(crop=dict(name="resize", flip=False), eval_crop=dict(name="resize"))
    if arg.data != "emoji":
        crops = dict(crop=dict(name="tokenizer"), eval_crop=dict(name="center"))
    splits = dict(train=arg.data, eval=None, holdout=arg.holdout) if arg.holdout else dict(train=f"{arg.data}#train", eval=f"{arg.data}#test")
    config = dict(
        task="tokenizer",
        seed=0,
        duration="1500 steps",
        batch_size=64,
        model=dict(
            image_size=32, patch=4, encoder=tower, decoder=tower, output="rgb", quantizer=dict(name="vq", codes=1024, dim=32)
        ),
        loss=dict(l2=1.0, logit_laplace=0.0, perceptual=None, adversarial=None),
        optim=dict(name="adamw", learning_rate=2e-3, warmup="100 steps", schedule="cosine", final=0.02, weight_decay=1e-4, clip=1.0),
        reseed=dict(every="5 steps", until="80 percent"),
        data=crops | splits,
        log=dict(every="50 steps"),
        checkpoint=dict(every="300 steps"),
        evals=dict(reconstruction=dict(every="300 steps"), codebook=dict(every="300 steps")),
    )
    if arg.smoke:
        tower = dict(depth=2, width=32, heads=2, mlp=64)
        config |= dict(
            duration="20 steps", batch_size=16, log=dict(every="5 steps"), checkpoint=dict(every="5 steps"),
            evals=dict(reconstruction=dict(every="10 steps"), codebook=dict(every="10 steps")),
        )
        config["model"] |= dict(encoder=tower, decoder=tower, quantizer=dict(name="vq", codes=64, dim=32))
    return ml_collections.ConfigDict(config)
