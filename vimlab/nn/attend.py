"""Attention behind one function with three backends; softmax and its logits are f32 whatever the inputs are.

`xla` is the formula, for every device and mask; `cudnn` is NVIDIA's fused kernel, `splash` the TPU's. A backend that cannot
compute what it is asked for raises: none stands in for another, except where `choose_backend` is told 'auto'.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vimlab.config import ConfigError
from vimlab.nn.masks import Mask
from vimlab.parallel.rules import open_spec

BACKENDS = ("xla", "cudnn", "splash")
HOMES = {"cudnn": ("gpu", "cuda"), "splash": ("tpu",)}  # The platforms of those that do not run on all.
LANES = 128  # Splash attention's smallest block of positions.


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, mask: Mask | None = None, lengths: jax.Array | None = None,
              backend: str = "xla", interpret: bool = False) -> jax.Array:
    """Softmax attention of T queries to S keys: f[B,H,T,D], f[B,H,S,D], f[B,H,S,D] → f[B,H,T,D], of v's dtype.

    Args:
      mask: what each position may see, in self-attention (T == S); None is everything.
      lengths: i32[B], each at least 1; keys at or beyond a row's length are not seen. Where nothing is left for a query to
        see, as a mask may have it for queries in the padding, its output is finite and means nothing.
      backend: one of BACKENDS, as `choose_backend` returns it.
      interpret: runs the splash kernel in Pallas' interpreter, on any device: for tests.

    Raises:
      ConfigError: an unknown backend, or one that cannot compute this; `choose_backend` says so before anything is traced.
      ValueError: a mask over another number of positions.
    """
    (_, _, queries, head_dim), keys = q.shape, k.shape[2]
    if backend not in BACKENDS:
        raise ConfigError(f"attention backend {backend!r} is not one of {BACKENDS}")
    if mask is not None and not queries == keys == mask.length:
        raise ValueError(f"a mask over {mask.length} positions was given {queries} queries and {keys} keys")
    _check(backend, _obstacle(backend, mask, lengths is not None, head_dim, queries, keys, q.dtype))
    if backend == "splash":
        return _splash(q, k, v, mask, interpret)
    if backend == "cudnn":
        return _cudnn(q, k, v, mask, lengths)
    return _xla(q, k, v, mask, lengths)


def choose_backend(requested: str, *, platform: str, mask: Mask | None, lengths: bool, head_dim: int, length: int,
                   dtype: DTypeLike, keys: int | None = None) -> str:
    """The backend for an attention of these properties, from a config's 'auto' or one of BACKENDS.

    Args:
      platform: 'tpu', 'gpu' or 'cuda', 'cpu', as `jax.default_backend()` names the device; 'gpu' is taken for NVIDIA's.
      mask, lengths: the mask, and whether lengths are given, as to `attention`.
      head_dim, length: D and the number of queries, T.
      dtype: of queries, keys and values.
      keys: number of keys, S; as many as queries unless given.

    Raises:
      ConfigError: an explicit request that is unknown or cannot be honoured; the message says why.
    """

    def obstacle(backend):
        if platform not in HOMES.get(backend, (platform,)):
            return f"it runs on {HOMES[backend][0]}, not on {platform}"
        return _obstacle(backend, mask, lengths, head_dim, length, length if keys is None else keys, dtype)

    if requested == "auto":
        return next(b for b in ("splash", "cudnn", "xla") if obstacle(b) is None)
    if requested not in BACKENDS:
        raise ConfigError(f"unknown attention backend {requested!r}; choose 'auto' or one of {BACKENDS}")
    _check(requested, obstacle(requested))
    return requested


def _check(backend: str, obstacle: str | None) -> None:
    if obstacle:
        raise ConfigError(f"attention backend {backend!r} cannot be used here, because {obstacle}; choose 'auto' or 'xla'")


def _obstacle(backend: str, mask: Mask | None, lengths: bool, head_dim: int, queries: int, keys: int, dtype: DTypeLike) -> str | None:
    """Why a backend cannot compute an attention, on whatever device; None where it can."""
    dtype = jnp.dtype(dtype).name
    if backend == "cudnn":
        if mask is not None and not (mask.is_causal or mask.is_full):
            return "of masks it knows only the causal one"
        if dtype not in ("bfloat16", "float16"):
            return f"it computes in bfloat16 or float16, not in {dtype}"
        if head_dim % 8 or head_dim > 128:
            return f"it needs heads of a multiple of 8 and at most 128 dimensions, not {head_dim}"
    if backend == "splash":
        if lengths:
            return "it takes no lengths"
        if queries != keys:
            return f"it is for self-attention, not for {queries} queries and {keys} keys"
        if queries % LANES:
            return f"it needs a multiple of {LANES} positions, not {queries}"
        if dtype not in ("bfloat16", "float32"):
            return f"it computes in bfloat16 or float32, not in {dtype}"
    return None


def _scaled(q: jax.Array) -> jax.Array:
    return q * q.shape[-1] ** -0.5


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask | None, lengths: jax.Array | None) -> jax.Array:
    logits = jnp.einsum("bhtd,bhsd->bhts", _scaled(q), k, preferred_element_type=jnp.float32)
    # Finite, so that a query that sees nothing has no 0 / 0: not even a gradient of padding may be NaN.
    unseen = jnp.finfo(jnp.float32).min
    if mask is not None and not mask.is_full:
        logits = jnp.where(mask.allowed(), logits, unseen)
    if lengths is not None:
        logits = jnp.where(jnp.arange(k.shape[2]) < lengths[:, None, None, None], logits, unseen)
    return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask | None, lengths: jax.Array | None) -> jax.Array:
    # JAX hands cuDNN a full length for each row's queries itself. A causal mask and lengths, not a mask array: that becomes a
    # bias as large as the logits.
    y = jax.nn.dot_product_attention(
        *(x.swapaxes(1, 2) for x in (q, k, v)), is_causal=mask is not None and mask.is_causal, key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return y.swapaxes(1, 2)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask | None, interpret: bool) -> jax.Array:
    # A kernel is opaque to the partitioner, which would gather whole batches for it: each device runs it on its own part.
    run = lambda q, k, v: jax.vmap(_splash_kernel(q.shape, mask, interpret))(_scaled(q), k, v)
    mesh = jax.sharding.get_abstract_mesh()
    names = set(mesh.axis_names) - set(mesh.manual_axes)
    if not names:
        return run(q, k, v)
    part = open_spec(q.shape, ("batch", "act_heads", None, None), mesh)
    # The kernel's outputs do not say over which axes they vary, so that check cannot be made.
    return jax.shard_map(run, in_specs=(part, part, part), out_specs=part, axis_names=names, check_vma=False)(q, k, v)


def _splash_kernel(shape: tuple[int, ...], mask: Mask | None, interpret: bool):
    """The kernel, f[H,T,D] x 3 → f[H,T,D], for one example of q of this (local) shape."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, heads, length, _ = shape
    if mask is None or mask.is_full:
        rule = splash.FullMask((length, length))
    elif mask.is_causal:
        rule = splash.CausalMask((length, length))  # Computed in the kernel; other masks are read, block by block.
    else:
        rule = splash.NumpyMask(mask.allowed())
    block = next(n for n in range(4 * LANES, 0, -LANES) if length % n == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    return splash.make_splash_mha_single_device(splash.MultiHeadMask([rule] * heads), block_sizes=sizes, interpret=interpret)
