"""A ViT-VQGAN for the synthetic shapes world at 32 px, patch 4: 64 tokens of 256 codes; first stage of parti_shapes.py.

paper:    after "Vector-quantized Image Modeling with Improved VQGAN", section 3, at a size of our own
command:  vimlab train --config configs/vitvq_shapes.py --workdir DIR
hardware: 2 CPU cores
hours:    0.2
expected: on the 2,000 held-out pictures: 31.0 dB, SSIM 0.955, usage 100%, perplexity 105 of 256
params:   tokenizer 820,528
status:   trained and measured
"""

import ml_collections

from vimlab.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, smoke=False)
    tower = dict(depth=3, width=96, heads=3, mlp=384)
    config = dict(
        task="tokenizer",
        seed=0,
        duration="2500 steps",
        batch_size=64,
        model=dict(
            image_size=32, patch=4, encoder=tower, decoder=tower, output="rgb", quantizer=dict(name="vq", codes=256, dim=32)
        ),
        loss=dict(l2=1.0, logit_laplace=0.0, perceptual=None, adversarial=None),
        optim=dict(name="adamw", learning_rate=2e-3, warmup="100 steps", schedule="cosine", final=0.02, weight_decay=1e-4, clip=1.0),
        reseed=dict(every="5 steps", until="80 percent"),
        data=dict(train="shapes:train", eval="shapes:test", crop=dict(name="resize"), eval_crop=dict(name="resize")),
        log=dict(every="50 steps"),
        checkpoint=dict(every="500 steps"),
        evals=dict(reconstruction=dict(every="500 steps"), codebook=dict(every="500 steps")),
    )
    if arg.smoke:
        tower = dict(depth=2, width=32, heads=2, mlp=64)
        config |= dict(
            duration="20 steps", batch_size=16, log=dict(every="5 steps"), checkpoint=dict(every="5 steps"),
            evals=dict(reconstruction=dict(every="10 steps"), codebook=dict(every="10 steps")),
        )
        config["model"] |= dict(encoder=tower, decoder=tower, quantizer=dict(name="vq", codes=64, dim=32))
        config["data"] |= dict(train="shapes:train?count=256", eval="shapes:test?count=32")
    return ml_collections.ConfigDict(config)
