"""ViT-VQGAN on ImageNet at 256 px: Small-Small, or :pair=bb (Base-Base), :pair=sl (Small-Large).

paper:    "Vector-quantized Image Modeling with Improved VQGAN", sections 3 and 4.1, Tables 2 to 4
command:  vimlab train --config configs/vitvq_small_imagenet256.py --workdir DIR
hardware: 128 TPU v4 in the paper; any mesh that divides a batch of 256
hours:    about 23 at the paper's 1520 images/s (ss), 37 (bb), 93 (sl)
expected: the paper's rFID 1.99 (ss), 1.55 (bb), 1.28 (sl), usage 95-96%; not yet reproduced here
params:   tokenizer 54,771,616 (ss), 178,837,152 (bb), 665,945,248 (sl); discriminator 28,864,129
status:   the architecture is tested; the full run has not been tried

The perceptual loss needs VGG16's and LPIPS's weights: --config.loss.perceptual.weights=vgg16-397923af.pth,vgg.pth.
Without them it is left out, and the log says so.
"""

import dataclasses

import ml_collections

from vimlab.config import ConfigError, parse_arg
from vimlab.tokenizers.sizes import PAIRS


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, pair="ss", data="tfds:imagenet2012", smoke=False)
    if arg.pair not in PAIRS:
        raise ConfigError(f"pair is {arg.pair!r}, but must be one of {sorted(PAIRS)}")
    encoder, decoder = map(dataclasses.asdict, PAIRS[arg.pair])
    optim = dict(
        name="adamw", learning_rate=1e-4, warmup="50000 steps", schedule="cosine", final=0.5, b1=0.9, b2=0.99, weight_decay=1e-4
    )
    config = dict(
        task="tokenizer",
        seed=0,
        duration="500000 steps",
        batch_size=256,
        model=dict(
            image_size=256,
            patch=8,
            encoder=encoder,
            decoder=decoder,
            output="logit_laplace",
            quantizer=dict(name="vq", codes=8192, dim=32),
        ),
        loss=dict(
            l2=1.0,
            logit_laplace=0.1,
            perceptual=dict(weight=0.1, weights=()),
            adversarial=dict(weight=0.1, form="softplus", r1=2.5, r1_every=16),
        ),
        optim=optim,
        reseed=dict(every="100 steps", until="80 percent"),
        data=dict(
            train=f"{arg.data}#train", eval=f"{arg.data}#validation", crop=dict(name="tokenizer"), eval_crop=dict(name="center")
        ),
        mesh=dict(data=-1, fsdp=1, tensor=1),
        log=dict(every="100 steps"),
        checkpoint=dict(every="5000 steps", keep=3, keep_every="50000 steps"),
        evals=dict(reconstruction=dict(every="25000 steps"), codebook=dict(every="25000 steps")),
    )
    if arg.smoke:
        tiny = dict(depth=2, width=64, heads=2, mlp=128)
        config |= dict(
            duration="4 steps",
            batch_size=8,
            model=config["model"] | dict(image_size=32, patch=8, encoder=tiny, decoder=tiny, quantizer=dict(name="vq", codes=64, dim=32)),
            optim=optim | dict(warmup="2 steps"),
            log=dict(every="1 steps"),
            checkpoint=dict(every="2 steps"),
            evals=dict(reconstruction=dict(every="2 steps"), codebook=dict(every="2 steps")),
        )
        config["loss"]["adversarial"] |= dict(base_channels=128, max_channels=16)
        config["data"] |= dict(train="emoji:train", eval="emoji:test")
    return ml_collections.ConfigDict(config)
