"""A stack of pre-norm transformer blocks, scanned and rematerialised; the counts of its parameters and FLOPs."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from vimlab.nn.attention import CrossAttention, KeyValues, Memory, SelfAttention, Slot
from vimlab.nn.layers import LayerNorm, Linear
from vimlab.nn.masks import Mask
from vimlab.parallel.pipeline_stages import run_pipeline, stages_here
from vimlab.parallel.rules import constrain, logical_axes
from vimlab.parallel.schedule import Pipeline

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    # Keep the outputs of weight products, recompute what is cheap: norms, activations and the attention matrix.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
Activation = Literal["gelu", "relu"]


class Block(nn.Module):
    """Self-attention, attention to a memory where there is one, and a perceptron, each behind a LayerNorm and a residual.

    Attributes:
      width, heads, mlp: of the sequence, of the attention, and hidden width.
      activation: of the perceptron.
      use_bias: whether products and norms have biases.
      cross: whether there is attention to a memory.
      masks, backend: of the self-attention; see there.
      dropout: rate, on the outputs of each attention, of the activation and of the perceptron; 0 outside training.
    """

    width: int
    heads: int
    mlp: int
    dtype: DTypeLike = jnp.float32
    activation: Activation = "gelu"
    use_bias: bool = True
    cross: bool = False
    masks: tuple[Mask, ...] = ()
    backend: str = "xla"
    dropout: float = 0.0

    def setup(self) -> None:
        norm = lambda: LayerNorm(use_bias=self.use_bias)
        linear = lambda features, axes: Linear(features, axes, self.use_bias, self.dtype)
        self.norm1, self.norm2 = norm(), norm()
        self.attention = SelfAttention(self.width, self.heads, self.dtype, self.use_bias, self.masks, self.backend)
        if self.cross:
            self.cross_norm = norm()
            self.cross_attention = CrossAttention(self.width, self.heads, self.dtype, self.use_bias)
        self.mlp_in, self.mlp_out = linear(self.mlp, ("embed", "mlp")), linear(self.width, ("mlp", "embed"))
        self.drop = nn.Dropout(self.dropout, deterministic=not self.dropout)

    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | Sequence[Memory] | None = None,
        lengths: jax.Array | None = None,
        kind: jax.Array | None = None,
        cache: KeyValues | None = None,
        slot: Slot | None = None,
    ) -> tuple[jax.Array, KeyValues]:
        """One block over f[B,L,width], or, with a cache, over its one position.

        Args:
          x: f[B,L,width].
          memory: what the cross-attention reads; see there.
          lengths: i32[B], real positions of the memory, or of x in a block without one; all by default.
          kind, cache, slot: see SelfAttention.

        Returns:
          f[B,L,width], and the self-attention's keys and values.
        """
        # Where a `tensor` axis splits heads and hidden widths, residuals and norms are split by position: what each product
        # takes is gathered, and its parts are summed and scattered, in place of a sum that every device holds (Parti, section 3.2).
        whole = lambda x: constrain(x, "batch", "length", "act_embed")
        split = lambda x: constrain(x, "batch", "act_length", "act_embed")
        x = split(x)
        y, kv = self.attention(whole(self.norm1(x)), None if self.cross else lengths, kind, cache, slot)
        x = x + self.drop(split(y))
        if self.cross:
            x = x + self.drop(split(self.cross_attention(whole(self.cross_norm(x)), memory, lengths)))
        y = self.mlp_in(whole(self.norm2(x)))
        y = jax.nn.gelu(y) if self.activation == "gelu" else jax.nn.relu(y)
        y = self.mlp_out(self.drop(constrain(y, "batch", "length", "act_mlp")))
        return x + self.drop(split(y)), kv

    def read(self, memory: jax.Array) -> KeyValues:
        """Keys and values of a memory f[M,S,width] for the cross-attention."""
        return self.cross_attention.read(memory)

    @nn.nowrap
    def axes(self) -> dict:
        """The logical axes of its parameters."""
        one = jax.ShapeDtypeStruct((1, 1, self.width), self.dtype)
        plain = self.clone(masks=(), backend="xla", dropout=0.0, parent=None)
        return logical_axes(jax.eval_shape(lambda x: plain.init(jax.random.key(0), x, x if self.cross else None), one)["params"])


class Stack(nn.Module):
    """`depth` blocks under one scan, their parameters stacked on a leading 'layers' dimension.

    Attributes:
      depth, heads, mlp: blocks, heads and hidden width of each block.
      remat: what the backward pass keeps, a key of REMAT_POLICIES.
      unroll: blocks per step of the scan; `depth` is the unscanned program over the same parameters.
      kinds: which of `masks` each layer has, where there are several.
      activation, use_bias, cross, masks, backend: see Block.
      dropout: rate in training.
      microbatches, rounds: of the pipeline that training is on a mesh with stages; as many microbatches as stages by default.
    """

    depth: int
    heads: int
    mlp: int
    remat: str = "dots"
    unroll: int = 1
    dtype: DTypeLike = jnp.float32
    activation: Activation = "gelu"
    use_bias: bool = True
    cross: bool = False
    masks: tuple[Mask, ...] = ()
    kinds: tuple[int, ...] = ()
    backend: str = "xla"
    dropout: float = 0.0
    microbatches: int | None = None
    rounds: int = 1

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None, lengths: jax.Array | None = None, train: bool = False, means: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """f[B,L,width] → f[B,L,width]; with `means` also the mean over positions of each block's output, f32[depth,B,width].

        Args:
          x: f[B,L,width].
          memory: f[B,M,width] for blocks that read one.
          lengths: i32[B], real positions of the memory, or of x where there is none; all by default.
          train: whether dropout is on; it draws from the stream "dropout". On a mesh with stages, training goes through the
            pipeline: the same numbers, with other dropout masks.
          means: whether the means are asked for; they cost nothing where they are not.
        """
        if train and stages_here() > 1 and not self.is_initializing():
            return self._staged(x, memory, lengths)
        kinds = jnp.asarray(self.kinds, jnp.int32) if self.kinds else None

        def step(block, x, kind):
            x, _ = block(x, memory, lengths, kind)
            return x, x.astype(jnp.float32).mean(1) if means else None

        scanned = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
            unroll=self.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        rate = self.dropout if train else 0.0
        last = scanned(block(x.shape[-1], **self._common(), masks=self.masks, backend=self.backend, dropout=rate, name="blocks"), x, kinds)
        return last if means else last[0]

    @nn.nowrap
    def pipeline(self, stages: int) -> Pipeline:
        """Its layers' places in a pipeline. Raises ShardingError where they do not divide."""
        return Pipeline(self.depth, stages, self.microbatches or stages, self.rounds)

    def _staged(self, x: jax.Array, memory: jax.Array | None, lengths: jax.Array | None) -> jax.Array:
        """The layers as a pipeline; within a visit `remat` says what its backward pass keeps."""
        block = Block(x.shape[-1], **self._common(), masks=self.masks, backend=self.backend, dropout=self.dropout, parent=None)

        def visit(weights, layers, x, lengths, key):
            def step(changed, layer):
                weights, number = layer
                kind = jnp.asarray(self.kinds, jnp.int32)[number] if self.kinds else None
                rngs = {"dropout": jax.random.fold_in(key, number)} if key is not None else {}
                return block.apply({"params": weights}, changed, x[1], lengths, kind, rngs=rngs)[0], None

            step = step if self.remat == "none" else jax.checkpoint(step, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
            return jax.lax.scan(step, x[0], (weights, layers))[0]

        weights, key = self.variables["params"]["blocks"], self.make_rng("dropout") if self.dropout else None
        axes = jax.tree.map(lambda names: ("layers", *names), block.axes(), is_leaf=lambda names: isinstance(names, tuple))
        return run_pipeline(self.pipeline(stages_here()), visit, weights, axes, (x, memory), lengths, key, self.dtype)

    @nn.nowrap
    def alone(self, width: int, layer: int) -> Block:
        """The block of one layer outside the scan, to be applied to that layer's parameters, one position at a time or all."""
        masks = self.masks[self.kinds[layer] if self.kinds else 0 :][:1]
        return Block(width, **self._common(), masks=masks, parent=None)

    @nn.nowrap
    def _common(self) -> dict:
        return {k: getattr(self, k) for k in ("heads", "mlp", "dtype", "activation", "use_bias", "cross")}


def stack_params(depth: int, width: int, mlp: int, use_bias: bool = True, cross: bool = False) -> int:
    """Parameters of a Stack: per block the attention's matrices (four, eight with a memory), two of the perceptron, norms."""
    attentions = 2 if cross else 1
    matrices, norms = attentions * 4 * width * width + 2 * width * mlp, (attentions + 1) * width
    biases = attentions * 4 * width + mlp + width + norms if use_bias else 0
    return depth * (matrices + norms + biases)


def stack_flops(depth: int, width: int, mlp: int, length: int) -> int:
    """Forward FLOPs of a Stack on one sequence; matrix products only, 2 FLOPs a multiply-add, full attention."""
    return depth * (2 * length * (4 * width * width + 2 * width * mlp) + 4 * length * length * width)
