"""What judges pictures in the tokenizer benchmark's peer: vimlab's discriminator and LPIPS in plain torch."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

VGG_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


class EqualConv(nn.Module):
    """Convolution with an equalised learning rate, at half the resolution after StyleGAN2's low-pass filter if asked."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, down: bool = False, bias: bool = True, pad: int | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.down = 1 / math.sqrt(inputs * kernel**2), down
        self.pad = kernel // 2 if pad is None else pad
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("filter", (taps[:, None] * taps).expand(inputs, 1, 4, 4).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        w, groups = self.weight * self.scale, x.shape[1]
        if not self.down:
            return F.conv2d(x, w, self.bias, padding=self.pad)
        if w.shape[-1] == 1:
            return F.conv2d(F.conv2d(x, self.filter, stride=2, padding=1, groups=groups), w, self.bias)
        return F.conv2d(F.conv2d(x, self.filter, padding=self.pad + 1, groups=groups), w, self.bias, stride=2)


class Discriminator(nn.Module):
    """StyleGAN2's residual discriminator: pictures [B,3,S,S] in [0,1] → logits [B]."""

    def __init__(self, image_size: int, multiplier: float, base: int, largest: int, group: int) -> None:
        super().__init__()
        at = lambda size: max(1, min(int(base * multiplier / size), largest))
        self.sizes, self.group = [], group
        self.from_rgb = EqualConv(3, at(image_size), 1)
        size = image_size
        while size > 4:
            setattr(self, f"block{size}_conv0", EqualConv(at(size), at(size), 3))
            setattr(self, f"block{size}_conv1", EqualConv(at(size), at(size // 2), 3, down=True))
            setattr(self, f"block{size}_skip", EqualConv(at(size), at(size // 2), 1, down=True, bias=False))
            self.sizes.append(size)
            size //= 2
        self.last_conv = EqualConv(at(4) + 1, at(4), 3)
        self.dense = EqualConv(at(4), at(4), 4, pad=0)
        self.logit = EqualConv(at(4), 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        activate = lambda x: F.leaky_relu(x, 0.2) * math.sqrt(2)
        x = activate(self.from_rgb(2 * images - 1))
        for size in self.sizes:
            conv0, conv1, skip = (getattr(self, f"block{size}_{name}") for name in ("conv0", "conv1", "skip"))
            x = (activate(conv1(activate(conv0(x)))) + skip(x)) * math.sqrt(0.5)
        grouped = x.reshape(-1, self.group, *x.shape[1:])
        std = (grouped.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3)).repeat_interleave(self.group)
        x = torch.cat([x, std[:, None, None, None].expand(-1, 1, *x.shape[2:])], 1)
        return self.logit(activate(self.dense(activate(self.last_conv(x))))).flatten()


class LPIPS(nn.Module):
    """LPIPS on VGG16 with frozen weights under vimlab's names: two batches of pictures → their mean distance."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        for name, x in weights.items():
            x = torch.tensor(x).permute(3, 2, 0, 1).contiguous() if x.ndim == 4 else torch.tensor(x)
            self.register_buffer(name.replace(".", "_"), x)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("spread", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def features(self, images: Tensor) -> list[Tensor]:
        x, found = (2 * images - 1 - self.shift) / self.spread, []
        for stage, indices in enumerate(VGG_STAGES):
            x = F.max_pool2d(x, 2) if stage else x
            for i in indices:
                x = F.relu(F.conv2d(x, getattr(self, f"conv{i}_w"), getattr(self, f"conv{i}_b"), padding=1))
            found.append(x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-10))
        return found

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.features(images)
        pairs = zip(targets, self.features(reconstructions), strict=True)
        heads = [getattr(self, f"head{k}")[:, None, None] for k in range(len(VGG_STAGES))]
        return sum(((t - f).square() * h).sum(1).mean() for (t, f), h in zip(pairs, heads, strict=True))


def channels_last(x: Tensor) -> Tensor:
    """The layout in which torch's convolutions are fastest here: the discriminator by a quarter."""
    return x.contiguous(memory_format=torch.channels_last)
