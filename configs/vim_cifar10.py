"""VIM on CIFAR-10: class-conditional, 64 tokens of 1024 codes, trains on two CPU cores.

paper:    after "Vector-quantized Image Modeling with Improved VQGAN", section 3.2, at a size of our own
command:  vimlab train --config configs/vitvq_cifar10.py:data=PATH --workdir runs/vitvq_cifar10, then
          vimlab tokenize --config configs/vim_cifar10.py:data=PATH --out runs/cifar10_tokens --views 2, then
          vimlab train --config configs/vim_cifar10.py:data=PATH,tokens=runs/cifar10_tokens --workdir DIR
          (PATH: a folder of WebDataset tars, an imported data set, or tfds:cifar10, the default)
hardware: 2 CPU cores
hours:    0.6, the second stage, at the 0.72 s a step that it takes alone (measured beside other work: 1.4)
expected: trained on 20,000 pictures, on 2,000 test pictures 7.50 bits a token, 2.27 under the entropy of the tokens' frequencies;
          a linear probe of block 3 names 49.5% of classes (pixels 39.3%, the tokenizer's latents 33.8%)
params:   generator 2,669,568 without embeddings and softmax
status:   trained and measured
"""

import ml_collections

from vimlab.config import parse_arg


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(arg, tokenizer="runs/vitvq_cifar10", data="tfds:cifar10", tokens="", smoke=False)
    config = dict(
        task="generator",
        seed=0,
        duration="3000 steps",
        batch_size=64,
        tokenizer=arg.tokenizer,
        model=dict(
            depth=6, width=192, heads=6, mlp=768, condition=dict(name="class"), conv_kernel=None,
            activation="gelu", use_bias=True, dropout=0.0, remat="full",
        ),
        drop=dict(rate=0.1),
        optim=dict(name="adamw", learning_rate=1.5e-3, warmup="100 steps", schedule="cosine", final=0.02, b2=0.96, weight_decay=0.045, clip=1.0),
        data=dict(
            train=f"{arg.data}#train", eval=f"{arg.data}#test", crop=dict(name="resize", flip=True), eval_crop=dict(name="resize"),
            views=2, tokens=arg.tokens or None,
        ),
        log=dict(every="50 steps"),
        checkpoint=dict(every="500 steps"),
        evals=dict(likelihood=dict(every="500 steps"), samples=dict(every="1000 steps", count=10, guidance=2.0)),
    )  # fmt: skip
    if arg.smoke:
        config |= dict(duration="20 steps", batch_size=16, log=dict(every="5 steps"), checkpoint=dict(every="5 steps"))
        config["model"] |= dict(depth=2, width=32, heads=2, mlp=64)
        config["data"] |= dict(train="shapes:train?count=256", eval="shapes:test?count=32")
        config["evals"] = dict(likelihood=dict(every="10 steps"), samples=dict(every="10 steps", count=4))
    return ml_collections.ConfigDict(config)
