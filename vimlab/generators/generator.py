"""The generator: conditioner, causal backbone and categorical head over a raster of tokens; VIM and Parti are settings of it."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike

from vimlab.config import ConfigError
from vimlab.generators.conditioners import (
    ClassCondition,
    ClassEmbedding,
    Condition,
    NoCondition,
    TextCondition,
    TextEncoder,
    Unconditional,
)
from vimlab.generators.layouts import Raster
from vimlab.losses.cross_entropy import cross_entropy, logits
from vimlab.nn.attend import choose_backend
from vimlab.nn.layers import LayerNorm, weight
from vimlab.nn.transformer import Activation, Stack, stack_flops, stack_params
from vimlab.parallel.rules import constrain
from vimlab.tokens import TokenSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """A transformer that predicts tokens one after the other.

    Attributes:
      depth, width, heads, mlp: of the decoder; a text encoder has its width, heads and mlp.
      condition: what it is told: 'none', 'class' or 'text'.
      conv_kernel: side of the convolution-shaped attention, an odd number; None makes every layer dense.
      dense_layers: layers, counted from 0, that stay dense although conv_kernel is set.
      activation, use_bias: of the blocks.
      dropout: rate in training, on embeddings and on the outputs of attention, activation and perceptron.
      attention: backend of self-attention: 'xla', 'cudnn', 'splash', or 'auto', the fastest that can do it on the platform.
      loss_chunk: positions whose logits are held at once.
      remat: what the backward pass keeps: 'none', 'dots' or 'full'.
      unroll: blocks per step of the scan over them.
    """

    depth: int
    width: int
    heads: int
    mlp: int
    condition: NoCondition | ClassCondition | TextCondition = NoCondition()
    conv_kernel: int | None = None
    dense_layers: tuple[int, ...] = ()
    activation: Activation = "gelu"
    use_bias: bool = True
    dropout: float = 0.1
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    loss_chunk: int = 256
    remat: Literal["none", "dots", "full"] = "dots"
    unroll: int = 1

    def __post_init__(self) -> None:
        for key in ("depth", "width", "heads", "mlp", "loss_chunk", "unroll"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}, but must be at least 1")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} does not divide into {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}, but must be at least 0 and below 1")
        if self.conv_kernel is not None and (self.conv_kernel < 1 or self.conv_kernel % 2 == 0):
            raise ConfigError(f"conv_kernel is {self.conv_kernel}, but a centred kernel has an odd side; choose one such as 11, or none")
        wrong = [n for n in self.dense_layers if not 0 <= n < self.depth]
        if wrong:
            raise ConfigError(f"dense_layers names layer {wrong[0]}, but there are layers 0 to {self.depth - 1}")

    def make(
        self, spec: TokenSpec, *, classes: int = 0, vocabulary: int = 0, text_length: int = 0, dtype: DTypeLike = jnp.float32,
        platform: str | None = None, microbatches: int | None = None, rounds: int = 1,
    ) -> "Generator":  # fmt: skip
        """The module for tokens of `spec`, computing its matrix products in `dtype`.

        Args:
          classes: for the condition 'class'.
          vocabulary, text_length: for the condition 'text': number of text ids, and of the longest text.
          platform: that attention's backend is chosen for; this process's by default.
          microbatches, rounds: of the pipelines on a mesh with stages; a text encoder passes them once.

        Raises:
          ConfigError: tokens of several sub-codes, or a backend that cannot compute what is asked.
        """
        if spec.groups != 1:
            raise ConfigError(f"this generator predicts one code a position, but the tokenizer has {spec.groups} sub-codes")
        layout = Raster(spec)
        masks, kinds = self._masks(layout)
        platform = platform or jax.default_backend()
        backends = {
            choose_backend(self.attention, platform=platform, mask=m, lengths=False, head_dim=self.width // self.heads, length=layout.length, dtype=dtype)
            for m in masks
        }  # fmt: skip
        common = dict(heads=self.heads, mlp=self.mlp, remat=self.remat, dtype=dtype, activation=self.activation, use_bias=self.use_bias, dropout=self.dropout, microbatches=microbatches)
        text = self.condition if isinstance(self.condition, TextCondition) else None
        backbone = Stack(
            self.depth, unroll=min(self.unroll, self.depth), cross=text is not None, masks=masks, kinds=kinds,
            backend=backends.pop() if len(backends) == 1 else "xla", rounds=rounds, **common,
        )  # fmt: skip
        if text:
            encoder = Stack(text.depth, unroll=min(self.unroll, text.depth), **common)
            conditioner = TextEncoder(vocabulary, text_length, self.width, encoder)
        elif isinstance(self.condition, ClassCondition):
            conditioner = ClassEmbedding(classes, self.width)
        else:
            conditioner = Unconditional(self.width)
        return Generator(layout=layout, conditioner=conditioner, backbone=backbone, width=self.width, loss_chunk=self.loss_chunk)

    def _masks(self, layout: Raster) -> tuple[tuple, tuple[int, ...]]:
        """The kinds of masks in use, and which each layer has where there are several."""
        if self.conv_kernel is None or len(set(self.dense_layers)) == self.depth:
            return (layout.dense(),), ()
        if not self.dense_layers:
            return (layout.conv(self.conv_kernel),), ()
        return (layout.conv(self.conv_kernel), layout.dense()), tuple(int(n in self.dense_layers) for n in range(self.depth))

    def stacks(self) -> dict[str, int]:
        """The depth of each stack of blocks, by its name."""
        return ({"text encoder": self.condition.depth} if isinstance(self.condition, TextCondition) else {}) | {"decoder": self.depth}

    def core_params(self) -> int:
        """Parameters of all blocks and last norms, embeddings and softmax left out: what the papers' names count."""
        text = self.condition.depth if isinstance(self.condition, TextCondition) else 0
        norm = self.width * (2 if self.use_bias else 1)
        decoder = stack_params(self.depth, self.width, self.mlp, self.use_bias, cross=bool(text)) + norm
        return decoder + (stack_params(text, self.width, self.mlp, self.use_bias) + norm if text else 0)

    def flops(self, spec: TokenSpec, text_length: int = 0) -> int:
        """Forward FLOPs on one image: matrix products only, each position attending to those before it."""
        n, d = spec.length, self.width
        decoder = stack_flops(self.depth, d, self.mlp, n) - self.depth * 2 * n * n * d + 2 * n * d * spec.codes
        if not isinstance(self.condition, TextCondition):
            return decoder
        cross = self.depth * (2 * n * 2 * d * d + 2 * text_length * 2 * d * d + 4 * n * text_length * d)
        return decoder + cross + stack_flops(self.condition.depth, d, self.mlp, text_length)


class Generator(nn.Module):
    """p(tokens | condition), a product over positions.

    Attributes:
      layout: the order of tokens.
      conditioner: an Unconditional, ClassEmbedding or TextEncoder.
      backbone: the decoder's blocks.
      width: of the model.
      loss_chunk: positions whose logits are held at once.
    """

    layout: Raster
    conditioner: nn.Module
    backbone: Stack
    width: int
    loss_chunk: int = 256

    def setup(self) -> None:
        (height, columns), codes = self.layout.spec.grid, self.layout.spec.codes
        init = initializers.normal(0.02)
        self.tokens = weight(self, "tokens", (codes, self.width), ("vocabulary", "embed"), init)
        # Positions are the sum of a row's and a column's embedding.
        self.rows = weight(self, "rows", (height, self.width), ("positions", "embed"), init)
        self.columns = weight(self, "columns", (columns, self.width), ("positions", "embed"), init)
        self.norm = LayerNorm(use_bias=self.backbone.use_bias)
        self.head = weight(self, "head", (self.width, codes), ("embed", "vocabulary"), init)
        self.drop = nn.Dropout(self.backbone.dropout)

    def __call__(
        self, ids: jax.Array, condition: jax.Array, drop: jax.Array | None = None, train: bool = False, read: jax.Array | None = None
    ) -> jax.Array:
        """-log p of each token given those before it and the condition.

        Args:
          ids: i32[B,N].
          condition: what the conditioner reads, i32[B] or i32[B,T].
          drop: bool[B], whose condition is replaced by the null one.
          train: whether dropout is on, from the stream "dropout".
          read: i32[B,N], what is read in place of the tokens that are predicted; `ids` themselves by default.

        Returns:
          f32[B,N], in nats.
        """
        hidden = self.hidden(ids if read is None else read, self.condition(condition, drop, train), train)
        return cross_entropy(hidden, self.head, ids, self.loss_chunk, self.backbone.dtype)

    def condition(self, inputs: jax.Array, drop: jax.Array | None = None, train: bool = False) -> Condition:
        """The Condition of labels i32[B] or text ids i32[B,T]; null where `drop`, bool[B]."""
        return self.conditioner(inputs, drop, train)

    def null(self, rows: int) -> Condition:
        """The null Condition, `rows` times."""
        return self.conditioner.null(rows)

    def hidden(self, ids: jax.Array, condition: Condition, train: bool = False) -> jax.Array:
        """f[B,N,width], what the head predicts token i from at position i, for tokens i32[B,N]; the last is not read."""
        x = self._sequence(ids, condition, train)
        # Whole again in its length: logits are split over the codes.
        return constrain(self.norm(self.backbone(x, condition.memory, condition.lengths, train)), "batch", "length", "act_embed")

    def features(self, ids: jax.Array) -> jax.Array:
        """What each block makes of tokens i32[B,N]: its output's mean over positions, f32[depth,B,width] (ViT-VQGAN's linear probe).

        The null condition stands where labels or texts do in training, so that none can leak into what is learned from these.
        """
        condition = self.null(len(ids))
        return self.backbone(self._sequence(ids, condition), condition.memory, condition.lengths, means=True)[1]

    def _sequence(self, ids: jax.Array, condition: Condition, train: bool = False) -> jax.Array:
        """What the first block reads, f[B,N,width]: the prefix and all tokens but the last."""
        tokens = self.embed(ids[:, :-1], jnp.arange(self.layout.length - 1))
        x = jnp.concatenate([condition.prefix.astype(self.backbone.dtype), tokens], 1)
        return self.drop(constrain(x, "batch", "length", "act_embed"), deterministic=not train)

    def embed(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
        """Embedded tokens f[B,L,width] from ids i32[B,L] at positions i32[L] of the raster."""
        rows, columns = (jnp.asarray(c)[positions] for c in self.layout.coordinates)
        return (self.tokens[ids] + self.rows[rows] + self.columns[columns]).astype(self.backbone.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """f[...,width] after the last norm → f32[...,codes]."""
        return logits(hidden, self.head, self.backbone.dtype)

    def predict(self, x: jax.Array) -> jax.Array:
        """f[...,width] as the last block leaves it → logits f32[...,codes]."""
        return self.logits(self.norm(x))
