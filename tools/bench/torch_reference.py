"""The benchmark's peer: vimlab's ViT tokenizer, discriminator, LPIPS and training step in plain torch. Imports no vimlab.

Written as one writes them in torch: modules, fused query-key-value, scaled_dot_product_attention, pictures in channels-last
memory, fused AdamW. Weights come from, and gradients go back under, vimlab's parameter names, so that the two sides can be
compared.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_critics import LPIPS, Discriminator, channels_last
from torch_names import gather, load, part

BETAS = (0.9, 0.99)


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed 2-D embedding f32[side², width]: sines and cosines of the row, then of the column."""
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, width).float()


class Block(nn.Module):
    """Pre-norm attention and perceptron: [B,N,width] → [B,N,width]."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, width))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.norm2(x)), approximate="tanh"))


class Tower(nn.Module):
    """[B,N,inputs] → [B,N,features]."""

    def __init__(self, side: int, inputs: int, features: int, depth: int, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.register_buffer("positions", sincos_positions(side, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head_in, self.head_out = nn.Linear(width, mlp), nn.Linear(mlp, features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head_out(torch.tanh(self.head_in(self.norm(x))))


def unit(x: Tensor) -> Tensor:
    """Unit length over the last dimension."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


class Quantizer(nn.Module):
    """LayerNorm and l2 normalisation of latents, l2-normalised codes, straight-through: [B,N,C] → (vectors, ids, loss)."""

    def __init__(self, codes: int, dim: int, beta: float = 0.25) -> None:
        super().__init__()
        self.codebook, self.beta = nn.Parameter(torch.randn(codes, dim)), beta

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = unit(F.layer_norm(latents, latents.shape[-1:], eps=1e-6))
        codebook = unit(self.codebook)
        with torch.no_grad():
            ids = (z.flatten(0, 1) @ codebook.T).argmax(-1).view(z.shape[:2])
        codes = F.embedding(ids, codebook)
        loss = F.mse_loss(codes, z.detach()) + self.beta * F.mse_loss(z, codes.detach())
        return z + (codes - z).detach(), ids, loss


class Tokenizer(nn.Module):
    """Pictures [B,3,H,W] in [0,1] → (pictures, (mean, log scale) or None, ids, quantizer loss).

    Args:
      image_size, patch: pixels.
      tower: depth, width, heads and mlp of encoder and decoder.
      quantizer: a module of Quantizer's signature.
      dim: of the codes.
      epsilon: of the logit-Laplace map; None where the decoder predicts colours.
    """

    def __init__(
        self, image_size: int, patch: int, tower: dict[str, int], quantizer: nn.Module, dim: int, epsilon: float | None
    ) -> None:
        super().__init__()
        self.patch, self.epsilon, self.side = patch, epsilon, image_size // patch
        channels = 3 if epsilon is None else 6
        self.encoder = Tower(self.side, 3 * patch**2, tower["width"], **tower)
        self.project = nn.Linear(tower["width"], dim)
        self.quantizer = quantizer
        self.decoder = Tower(self.side, dim, channels * patch**2, **tower)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor, Tensor]:
        b, p, s = len(images), self.patch, self.side
        patches = (2 * images - 1).reshape(b, 3, s, p, s, p).permute(0, 2, 4, 3, 5, 1).reshape(b, s * s, p * p * 3)
        vectors, ids, loss = self.quantizer(self.project(self.encoder(patches)))
        pixels = self.decoder(vectors).view(b, s, s, p, p, -1).permute(0, 5, 1, 3, 2, 4).reshape(b, -1, s * p, s * p)
        if self.epsilon is None:
            return pixels + 0.5, None, ids, loss
        mean, log_scale = pixels.chunk(2, 1)
        return ((mean.sigmoid() - self.epsilon) / (1 - 2 * self.epsilon)).clamp(0, 1), (mean, log_scale), ids, loss


def logit_laplace_nll(images: Tensor, mean: Tensor, log_scale: Tensor, epsilon: float) -> Tensor:
    """Mean negative log-likelihood of pictures under a Laplace distribution of their logits."""
    x = (1 - 2 * epsilon) * images + epsilon
    return ((torch.logit(x) - mean).abs() * torch.exp(-log_scale) + log_scale + torch.log(2 * x * (1 - x))).mean()


REGIONS = (Block, Quantizer, LPIPS)  # What torch.compile compiles.


class Trainer:
    """One training step, generator and discriminator, on both networks' AdamW.

    Args:
      spec: the cell, as in cells.py.
      weights: {vimlab name: array} of "tokenizer/…", and of "discriminator/…" and "vgg/…" where the cell has them.
      compiled: through torch.compile, else eager.
    """

    def __init__(self, spec: dict, weights: dict[str, np.ndarray], compiled: bool) -> None:
        self.spec = spec
        self.weights = {name: part(weights, name) for name in ("tokenizer", "discriminator", "vgg")}
        epsilon = spec["epsilon"]
        quantizer = Quantizer(spec["codes"], spec["dim"])
        self.nets = {"tokenizer": Tokenizer(spec["image_size"], spec["patch"], spec["tower"], quantizer, spec["dim"], epsilon)}
        if spec["gan"]:
            gan = spec["gan"]
            self.nets["discriminator"] = Discriminator(
                spec["image_size"], *(gan[k] for k in ("multiplier", "base", "largest", "group"))
            )
        self.lpips = LPIPS(self.weights["vgg"]) if spec["lpips"] else None
        for net in (self.nets.get("discriminator"), self.lpips):
            if net:
                net.to(memory_format=torch.channels_last)
        self.optims = {name: adamw(net, spec["learning_rate"]) for name, net in self.nets.items()}
        # Block by block ("regional compilation"): seconds of compiling instead of minutes for graphs of 16 blocks. The
        # discriminator stays eager: compiled graphs cannot be differentiated twice for R1 and compute all gradients or none,
        # which made the step 1.3 times as long.
        regions = [m for net in (*self.nets.values(), self.lpips) if net for m in net.modules() if isinstance(m, REGIONS)]
        for module in regions if compiled else ():
            module.compile()
        self.reset()

    def reset(self) -> None:
        """Back to the given weights and fresh optimizers."""
        for name, net in self.nets.items():
            load(net, self.weights[name])
            self.optims[name].state.clear()

    def _generate(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstructions, weighted loss without the adversarial term)."""
        fakes, laplace, _, loss = self.nets["tokenizer"](images)
        loss = loss + F.mse_loss(fakes, images)
        if laplace:
            loss = loss + self.spec["laplace"] * logit_laplace_nll(images, *laplace, self.spec["epsilon"])
        if self.lpips:
            loss = loss + self.spec["lpips"] * self.lpips(images, channels_last(fakes))
        return fakes, loss

    def step(self, batch: np.ndarray, r1: bool) -> tuple[Tensor, Tensor]:
        """One step on u8[B,H,W,3], with the R1 penalty or without. Returns (reconstructions, generator's loss)."""
        images = torch.from_numpy(batch).permute(0, 3, 1, 2).float().div_(255)
        fakes, loss = self._generate(images)
        if not self.spec["gan"]:
            loss.backward()
        else:
            felt, pixels = self._adversary(images, fakes, r1)
            torch.autograd.backward([loss, fakes], [None, pixels])
            loss = loss + felt
        for optim in self.optims.values():
            optim.step()
            optim.zero_grad(set_to_none=True)
        return fakes.detach(), loss.detach()

    def _adversary(self, images: Tensor, fakes: Tensor, r1: bool) -> tuple[Tensor, Tensor]:
        """Sets the discriminator's gradients; (weighted adversarial loss, its gradient at the fakes' pixels).

        One forward pass on the fakes serves both networks, one on the real pictures serves loss and R1.
        """
        gan, net = self.spec["gan"], self.nets["discriminator"]
        params = list(net.parameters())
        cut, real = channels_last(fakes.detach()).requires_grad_(), images.requires_grad_(r1)
        logits, real_logits = net(cut), net(real)
        felt = gan["weight"] * F.softplus(-logits).mean()
        (pixels,) = torch.autograd.grad(felt, cut, retain_graph=True)
        loss = F.softplus(logits).mean() + F.softplus(-real_logits).mean()
        if r1:
            loss = loss + self._r1(real, real_logits)
        # Not autograd.grad and an assignment: fused AdamW takes for granted that gradients have their parameters' layout.
        loss.backward(inputs=params)
        return felt.detach(), pixels

    def _r1(self, real: Tensor, logits: Tensor) -> Tensor:
        gan = self.spec["gan"]
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        return gan["r1"] / 2 * gan["r1_every"] * gradient.square().sum((1, 2, 3)).mean()

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the first step since `reset`, read from AdamW's first moments, under vimlab's names."""
        found = {}
        for name, net in self.nets.items():
            state = self.optims[name].state
            found |= {f"{name}/{k}": v for k, v in gather(net, lambda p, s=state: s[p]["exp_avg"] / (1 - BETAS[0])).items()}
        return found


def adamw(net: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Fused AdamW; biases, norms and codes do not decay."""
    kept = lambda name: name.endswith(".bias") or "norm" in name or name.endswith("codebook")
    groups = [
        {"params": [p for n, p in net.named_parameters() if not kept(n)], "weight_decay": 1e-4},
        {"params": [p for n, p in net.named_parameters() if kept(n)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS, eps=1e-8, fused=True)
