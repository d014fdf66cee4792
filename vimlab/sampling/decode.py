"""Drawing tokens: one compiled loop on the device, its settings arrays, its randomness a function of each image's seed."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vimlab.generators.generator import Generator
from vimlab.generators.incremental import Incremental
from vimlab.random import stream
from vimlab.sampling import filters
from vimlab.sampling.guidance import Schedule, guide, scales
from vimlab.tokens import Tokens


@flax.struct.dataclass
class Knobs:
    """Settings of a draw; all arrays, so that turning one compiles nothing.

    Attributes:
      temperature: f32[]; 0 takes the likeliest token.
      top_k: i32[], how many of the likeliest tokens may be drawn; 0 is all.
      top_p: f32[], only the likeliest tokens that have this share of the probability together; 1 is all.
      guidance: f32[N], scale at each position.
    """

    temperature: Any
    top_k: Any
    top_p: Any
    guidance: Any


def knobs(
    length: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, guidance: float = 1.0, schedule: Schedule = "constant"
) -> Knobs:
    """Knobs from numbers, for sequences of `length` positions; top-p is of what top-k leaves, both at the temperature."""
    return Knobs(np.float32(temperature), np.int32(top_k), np.float32(top_p), scales(guidance, schedule, length))


@flax.struct.dataclass
class Samples:
    """What was drawn.

    Attributes:
      tokens: ids i32[B,N,1].
      log_probs: f32[B,N], of each token under the distribution that it was drawn from, 0 where it was given.
      calls: i32[], how often the model was run, prefill included.
    """

    tokens: Tokens
    log_probs: jax.Array
    calls: jax.Array


def decode(
    generator: Generator, params: Any, condition: jax.Array, seeds: jax.Array, settings: Knobs, *, guided: bool,
    given: jax.Array | None = None, keep: jax.Array | None = None, rolling: bool = True, stretches: int | None = None,
) -> Samples:  # fmt: skip
    """Draws B images. To be jitted; `guided`, `rolling` and `stretches` are static.

    Args:
      generator, params: the model.
      condition: labels i32[M] or text ids i32[M,T]; image b has condition b // (B // M), so that images of one prompt share
        its encoding.
      seeds: u32[B]; an image depends on its seed and condition, not on the images beside it. How many rows a device has decides
        the last bits of the logits; `Sampler` keeps that constant.
      settings: see Knobs.
      guided: whether the null condition runs along, which guidance needs; without it the scale counts as 1.
      given, keep: tokens i32[B,N] and bool[B,N], which of them are to come back as they are. Positions that every image
        keeps at the start cost one parallel pass together.
      rolling: whether caches are cut to what layers can see; changes nothing but memory.
      stretches: in how many loops, each with longer caches; `Incremental.stretches` chooses by default. Changes nothing but speed.
    """
    (images,), length = seeds.shape, generator.layout.length
    apply = lambda *args, method: generator.apply({"params": params}, *args, method=method)
    branches = [apply(condition, method="condition")] + ([apply(len(condition), method="null")] if guided else [])
    if guided and branches[1].memory is not None:
        # All null prompts are the same: one row of memory serves every image.
        branches[1] = branches[1].replace(memory=branches[1].memory[:1], lengths=branches[1].lengths[:1])
    model = Incremental(generator, params, branches, images, rolling)
    keys = jax.vmap(lambda seed: jax.random.fold_in(stream(jax.random.key(0), "sample"), seed))(seeds)

    def body(position, carry):
        caches, ids, log_probs = carry
        last = jax.lax.dynamic_index_in_dim(ids, jnp.maximum(position - 1, 0), 1, keepdims=False)
        scores, caches = model.step(caches, last, position)
        scores = guide(scores[:, 0], scores[:, 1], settings.guidance[position]) if guided else scores[:, 0]
        drawn, log_prob = draw(scores, jax.vmap(jax.random.fold_in, (0, None))(keys, position), settings)
        if keep is not None:
            kept = jax.lax.dynamic_index_in_dim(keep, position, 1, keepdims=False)
            old = jax.lax.dynamic_index_in_dim(given, position, 1, keepdims=False)
            drawn, log_prob = jnp.where(kept, old, drawn), jnp.where(kept, 0, log_prob)
        put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, position, 1)
        return caches, put(ids, drawn), put(log_probs, log_prob)

    start, ids = jnp.int32(0), jnp.zeros((images, length), jnp.int32)
    if keep is None:
        whole = model.caches()
    else:
        start = jnp.cumprod(keep.all(0).astype(jnp.int32)).sum()
        ids = jnp.where(keep, given, 0)
        whole = model.prefill(ids, start)
    caches, log_probs = None, jnp.zeros((images, length), jnp.float32)
    for begin, end in model.stretches(stretches):
        carry = model.lengthen(caches, whole, end), ids, log_probs
        caches, ids, log_probs = jax.lax.fori_loop(jnp.maximum(start, begin), end, body, carry)
    calls = length - start + (keep is not None)
    return Samples(Tokens(ids[..., None], generator.layout.spec), log_probs, calls)


def draw(scores: jax.Array, keys: jax.Array, settings: Knobs) -> tuple[jax.Array, jax.Array]:
    """One token for each row: ids i32[B] and their log-probabilities f32[B], from logits f32[B,K] and B keys."""
    cold = settings.temperature <= 0
    # Before the division, so that at the lowest temperatures the likeliest is 0 and not infinite.
    scores = (scores - scores.max(-1, keepdims=True)) / jnp.where(cold, 1, settings.temperature)

    def cut(scores):
        return filters.top_p(filters.top_k(scores, settings.top_k), settings.top_p)

    scores = jax.lax.cond((settings.top_k > 0) | (settings.top_p < 1), cut, lambda x: x, scores)
    # Not a `where`: that would draw the noise and throw it away.
    noise = jax.lax.cond(cold, lambda keys: jnp.zeros_like(scores), jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:])), keys)
    ids = _argmax(scores + noise)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(scores, axis=-1), ids[:, None], axis=-1)[:, 0]
    return ids, jnp.where(cold, 0, log_prob)


def _argmax(x: jax.Array) -> jax.Array:
    """The first index of each row's largest value, i32[B]; several times as fast as XLA's own argmax on CPUs."""
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)
    return jnp.where(x == x.max(-1, keepdims=True), places, x.shape[-1] - 1).min(-1)
