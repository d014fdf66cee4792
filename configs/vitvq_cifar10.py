"""A ViT-VQGAN for CIFAR-10 that trains on two CPU cores: 32 px, patch 4, 64 tokens of 1024 codes.

paper:    after "Vector-quantized Image Modeling with Improved VQGAN", section 3, at a size of our own
command:  vimlab train --config configs/vitvq_cifar10.py:data=PATH --workdir DIR
          (PATH: a folder of WebDataset tars, an imported data set, or tfds:cifar10, the default)
hardware: 2 CPU cores
hours:    0.4
expected: on the 2,000 test images of a 20,000-image subset: 25.8 dB, SSIM 0.870, usage 100%, perplexity 871 of 1024
params:   tokenizer 845,104
status:   trained and measured
"""

import ml_collections

from vimlab.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, data="tfds:cifar10", smoke=False)
    tower = dict(depth=3, width=96, heads=3, mlp=384)
    config = dict(
        task="tokenizer",
        seed=0,
        duration="5500 steps",
        batch_size=64,
        model=dict(
            image_size=32, patch=4, encoder=tower, decoder=tower, output="rgb", quantizer=dict(name="vq", codes=1024, dim=32)
        ),
        loss=dict(l2=1.0, logit_laplace=0.0, perceptual=None, adversarial=None),
        optim=dict(name="adamw", learning_rate=2e-3, warmup="200 steps", schedule="cosine", final=0.02, weight_decay=1e-4, clip=1.0),
        reseed=dict(every="5 steps", until="80 percent"),
        data=dict(
            train=f"{arg.data}#train", eval=f"{arg.data}#test", crop=dict(name="resize", flip=True), eval_crop=dict(name="resize")
        ),
        log=dict(every="50 steps"),
        checkpoint=dict(every="500 steps"),
        evals=dict(reconstruction=dict(every="1000 steps"), codebook=dict(every="1000 steps")),
    )
    if arg.smoke:
        tower = dict(depth=2, width=32, heads=2, mlp=64)
        config |= dict(duration="20 steps", batch_size=16, log=dict(every="5 steps"), checkpoint=dict(every="5 steps"))
        config["model"] |= dict(encoder=tower, decoder=tower, quantizer=dict(name="vq", codes=64, dim=32))
        config["data"] |= dict(train="emoji:train", eval="emoji:test")
        config["evals"] = dict(reconstruction=dict(every="10 steps"), codebook=dict(every="10 steps"))
    return ml_collections.ConfigDict(config)
