"""The generator benchmark's peer: vimlab's generator, its decoding and its training step in plain torch. Imports no vimlab.

Written as one writes them in torch: fused query-key-value, scaled_dot_product_attention, fused AdamW; in decoding a static
cache of which each step reads what is filled. Parameters have vimlab's names, so that the two sides can be compared.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_names import gather, load, part
from torch_reference import BETAS, adamw

NULL, PAD = 1, 0
Cache = tuple[Tensor, Tensor]  # Keys and values [B,H,N,D].


class Attention(nn.Module):
    """Self-attention; causal, or within what `seen`, bool[B,1,1,L], lets through."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        return self.out(y.transpose(1, 2).reshape(b, n, width))

    def step(self, x: Tensor, cache: Cache, position: int) -> Tensor:
        """One position [B,width] against those before it."""
        q, k, v = self.qkv(x).view(len(x), 3, self.heads, 1, -1).unbind(1)
        keys, values = cache
        keys[:, :, position : position + 1], values[:, :, position : position + 1] = k, v
        y = F.scaled_dot_product_attention(q, keys[:, :, : position + 1], values[:, :, : position + 1])
        return self.out(y.flatten(1))


class CrossAttention(nn.Module):
    """Attention to a memory [B,M,width]."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, width, bias), nn.Linear(width, 2 * width, bias), nn.Linear(width, width, bias)

    def forward(self, x: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
        b, n, width = x.shape
        q = self.q(x).view(b, n, self.heads, -1).transpose(1, 2)
        k, v = self.kv(memory).view(b, memory.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(y.transpose(1, 2).reshape(b, n, width))


class Block(nn.Module):
    """Pre-norm attention, attention to a memory if `cross`, and a perceptron: [B,L,width] → [B,L,width]."""

    def __init__(self, width: int, heads: int, mlp: int, activation: str, bias: bool, cross: bool) -> None:
        super().__init__()
        norm = lambda: nn.LayerNorm(width, eps=1e-6, bias=bias)
        self.norm1, self.attention = norm(), Attention(width, heads, bias)
        self.cross_norm, self.cross_attention = (norm(), CrossAttention(width, heads, bias)) if cross else (None, None)
        self.norm2, self.mlp_in, self.mlp_out = norm(), nn.Linear(width, mlp, bias), nn.Linear(mlp, width, bias)
        self.relu = activation == "relu"

    def forward(self, x: Tensor, seen: Tensor | None, memory: Tensor | None = None, memory_seen: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), seen)
        if memory is not None:
            x = x + self.cross_attention(self.cross_norm(x), memory, memory_seen)
        return x + self._perceptron(x)

    def step(self, x: Tensor, cache: Cache, position: int) -> Tensor:
        x = x + self.attention.step(self.norm1(x), cache, position)
        return x + self._perceptron(x)

    def _perceptron(self, x: Tensor) -> Tensor:
        y = self.mlp_in(self.norm2(x))
        return self.mlp_out(F.relu(y) if self.relu else F.gelu(y, approximate="tanh"))


class Stack(nn.Module):
    """`depth` blocks."""

    def __init__(self, spec: dict, depth: int, cross: bool) -> None:
        super().__init__()
        width, heads, mlp = (spec["model"][k] for k in ("width", "heads", "mlp"))
        self.blocks = nn.ModuleList(Block(width, heads, mlp, spec["activation"], spec["use_bias"], cross) for _ in range(depth))


class Classes(nn.Module):
    """Labels [B] → (prefix [B,1,width], no memory, None); a label of -1 is the null class."""

    def __init__(self, spec: dict) -> None:
        super().__init__()
        self.classes, self.table = spec["classes"], nn.Parameter(torch.empty(spec["classes"] + 1, spec["model"]["width"]))

    def forward(self, label: Tensor) -> tuple[Tensor, None, None]:
        return F.embedding(torch.where(label < 0, self.classes, label), self.table)[:, None], None, None


class Texts(nn.Module):
    """Text ids [B,T] → (prefix [B,1,width], memory [B,T,width], bool[B,1,1,T])."""

    def __init__(self, spec: dict, vocabulary: int) -> None:
        super().__init__()
        width, text = spec["model"]["width"], spec["text"]
        self.table, self.start = nn.Parameter(torch.empty(vocabulary, width)), nn.Parameter(torch.empty(1, 1, width))
        self.positions, self.stack = nn.Parameter(torch.empty(text["length"], width)), Stack(spec, text["depth"], False)
        self.norm = nn.LayerNorm(width, eps=1e-6, bias=spec["use_bias"])

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = (text != PAD)[:, None, None]
        x = F.embedding(text, self.table) + self.positions
        for block in self.stack.blocks:
            x = block(x, seen)
        return self.start.expand(len(text), -1, -1), self.norm(x), seen


class Generator(nn.Module):
    """The model of a cell.

    Args:
      spec: the cell, as in generator_cells.py.
      vocabulary: number of text ids, where there is text.
    """

    def __init__(self, spec: dict, vocabulary: int = 0) -> None:
        super().__init__()
        width, self.side = spec["model"]["width"], spec["side"]
        table = lambda rows: nn.Parameter(torch.empty(rows, width))
        self.tokens, self.rows, self.columns = table(spec["codes"]), table(self.side), table(self.side)
        self.conditioner = Texts(spec, vocabulary) if spec["text"] else Classes(spec)
        self.backbone = Stack(spec, spec["model"]["depth"], bool(spec["text"]))
        self.norm = nn.LayerNorm(width, eps=1e-6, bias=spec["use_bias"])
        self.head = nn.Linear(width, spec["codes"], bias=False)

    def forward(self, ids: Tensor, condition: Tensor) -> Tensor:
        """Mean negative log-likelihood of ids [B,N], in nats."""
        prefix, memory, seen = self.conditioner(condition)
        x = torch.cat([prefix, self._embed(ids)[:, :-1]], 1)
        for block in self.backbone.blocks:
            x = block(x, None, memory, seen)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), ids.flatten())

    def _embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.tokens) + self._positions()

    def _positions(self) -> Tensor:
        return (self.rows[:, None] + self.columns).flatten(0, 1)

    @torch.inference_mode()
    def decode(self, label: Tensor, scale: float | None) -> Tensor:
        """The likeliest tokens one after the other, [B,N]; with a scale, the null class runs along in every second row."""
        n, blocks = self.side**2, self.backbone.blocks
        x = self.conditioner(label if scale is None else torch.stack([label, torch.full_like(label, -1)], 1).flatten())[0][:, 0]
        heads, positions = blocks[0].attention.heads, self._positions()
        empty = lambda: torch.empty(len(x), heads, n, x.shape[1] // heads)
        caches = [(empty(), empty()) for _ in blocks]
        ids = torch.empty(len(label), n, dtype=torch.long)
        for position in range(n):
            for block, cache in zip(blocks, caches, strict=True):
                x = block.step(x, cache, position)
            logits = self.head(self.norm(x))
            if scale is not None:
                told, untold = logits[::2], logits[1::2]
                logits = told + (scale - 1) * (told - untold)
            ids[:, position] = last = logits.argmax(-1)
            x = F.embedding(last, self.tokens) + positions[position]
            x = x if scale is None else x.repeat_interleave(2, 0)
        return ids


class Trainer:
    """One training step on AdamW.

    Args:
      spec: the cell.
      weights: {vimlab name: array} of "generator/…".
      compiled: through torch.compile, block by block, else eager.
    """

    def __init__(self, spec: dict, weights: dict[str, np.ndarray], compiled: bool) -> None:
        self.net, self.weights = generator(spec, weights), part(weights, "generator")
        self.optim = adamw(self.net, spec["learning_rate"])
        for module in self.net.modules() if compiled else ():
            if isinstance(module, Block):
                module.compile()

    def reset(self) -> None:
        """Back to the given weights and a fresh optimizer."""
        load(self.net, self.weights)
        self.optim.state.clear()

    def step(self, ids: Tensor, condition: Tensor) -> Tensor:
        loss = self.net(ids, condition)
        loss.backward()
        self.optim.step()
        self.optim.zero_grad(set_to_none=True)
        return loss.detach()

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients of the first step since `reset`, from AdamW's first moments, under vimlab's names."""
        state = self.optim.state
        found = gather(self.net, lambda p: state[p]["exp_avg"] / (1 - BETAS[0]))
        return {f"generator/{k}": v for k, v in found.items()}


def generator(spec: dict, weights: dict[str, np.ndarray]) -> Generator:
    """The model with vimlab's weights."""
    weights = part(weights, "generator")
    net = Generator(spec, len(weights["conditioner/table"]) if spec["text"] else 0)
    load(net, weights)
    return net
