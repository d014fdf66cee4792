"""One position at a time is the parallel pass, for every shipped kind: from empty caches, after a prefill, rolling or not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick
from small_generators import SPEC, TEXT, conditions, kinds, make, nulls, parallel, random_params, some_ids

from vimlab.generators.incremental import Incremental, Place
from vimlab.generators.layouts import Raster
from vimlab.nn.attention import KeyValues
from vimlab.nn.masks import Mask, conv_offsets
from vimlab.sampling.guidance import guide
from vimlab.tokens import TokenSpec

KINDS = kinds()
IMAGES, LENGTH = 4, SPEC.length
CONVOLUTIONAL = [k for k, c in KINDS.items() if c.conv_kernel and k != "conv"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def guided(config):
    return config.condition.NAME != "none"


@functools.cache
def opened(kind):
    config = KINDS[kind]
    model = make(config)
    params = random_params(model, config)
    return config, model, params


@functools.cache
def expected(kind):
    """Logits [B,G,N,K] of the parallel pass, of the condition and of the null one."""
    config, model, params = opened(kind)
    run, ids, condition = quick(functools.partial(parallel, model)), some_ids(IMAGES), conditions(config, IMAGES)
    branches = [condition, nulls(config, IMAGES)] if guided(config) else [condition]
    return np.stack([run(params, ids, c) for c in branches], 1)


def by_position(model, rolling, both):
    """(params, ids, condition, start, filled) → logits [B,G,N,K] of positions from `start` on, after a prefill or from nothing."""

    def run(params, ids, condition, start, filled):
        apply = lambda *args, method: model.apply({"params": params}, *args, method=method)
        branches = [apply(condition, method="condition")] + ([apply(len(condition), method="null")] if both else [])
        incremental = Incremental(model, params, branches, len(ids), rolling)

        def body(position, carry):
            caches, logits = carry
            last = ids[:, jnp.maximum(position - 1, 0)]
            scores, caches = incremental.step(caches, last, position)
            return caches, logits.at[position].set(scores)

        # What is not known yet when caches are filled must not matter.
        known = jnp.where(jnp.arange(LENGTH) < start, ids, 7)
        caches = jax.lax.cond(filled, lambda: incremental.prefill(known, start), incremental.caches)
        logits = jnp.zeros((LENGTH, len(ids), len(branches), SPEC.codes))
        return jax.lax.fori_loop(start, LENGTH, body, (caches, logits))[1].transpose(1, 2, 0, 3)

    return quick(run)


@functools.cache
def runner(kind, rolling=True):
    config, model, params = opened(kind)
    run, ids, condition = by_position(model, rolling, guided(config)), some_ids(IMAGES), conditions(config, IMAGES)
    return lambda start, filled: np.asarray(run(params, ids, condition, jnp.int32(start), jnp.bool_(filled)))


@each_kind
def test_cached_logits_are_the_parallel_ones(kind):
    assert expected(kind).std() > 0.5
    np.testing.assert_allclose(runner(kind)(0, False), expected(kind), atol=1e-4)


@each_kind
def test_a_prefill_is_the_positions_one_by_one(kind):
    """From nothing known to all but the last, below the window of a rolling cache (18 back and the prefix), at it and beyond it."""
    for start in (0, 1, 2, 18, 19, 20, 21, 40, 63):
        found = runner(kind)(start, True)
        np.testing.assert_allclose(found[:, :, start:], expected(kind)[:, :, start:], atol=1e-4, err_msg=f"after {start}")
        assert not found[:, :, :start].any()


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_a_rolling_cache_is_the_whole_one(kind):
    config, model, params = opened(kind)
    rolling, whole = runner(kind), runner(kind, False)
    for start, filled in ((0, False), (5, True), (33, True)):
        np.testing.assert_allclose(rolling(start, filled), whole(start, filled), atol=1e-5)
    condition = model.apply({"params": params}, conditions(config, 1), method="condition")
    sizes = lambda rolling: [c.k.shape[2] for c in Incremental(model, params, [condition], 1, rolling).caches()]
    small = 1 + 2 * 8 + 2 + 1  # The prefix; two rows and two columns back, and itself.
    assert sizes(False) == [LENGTH] * 3
    assert sizes(True) == [LENGTH if n in config.dense_layers else small for n in range(3)]


@pytest.mark.parametrize("kind", [k for k, c in KINDS.items() if guided(c)])
def test_guidance_by_1_is_the_conditional_pass_and_by_0_the_null_one(kind):
    conditional, null = jnp.asarray(runner(kind)(0, False)).swapaxes(0, 1)
    np.testing.assert_array_equal(guide(conditional, null, jnp.float32(1)), conditional)
    np.testing.assert_allclose(guide(conditional, null, jnp.float32(0)), expected(kind)[:, 1], atol=1e-4)
    np.testing.assert_allclose(guide(conditional, null, jnp.float32(0)), null, atol=1e-5)
    assert np.abs(conditional - null).max() > 0.1


def test_branches_do_not_mix():
    """Without the null branch beside it, the conditional one gives the same."""
    config, model, params = opened("mixed")
    alone = by_position(model, True, False)(params, some_ids(IMAGES), conditions(config, IMAGES), jnp.int32(0), jnp.bool_(False))
    np.testing.assert_allclose(alone[:, 0], runner("mixed")(0, False)[:, 0], atol=1e-5)


def test_images_share_the_memory_of_their_prompt():
    """Two conditions for four images, in order."""
    config, model, params = opened("mixed")
    run, ids, condition = by_position(model, True, True), some_ids(IMAGES), conditions(config, 2)
    arguments = jnp.int32(0), jnp.bool_(False)
    shared, repeated = run(params, ids, condition, *arguments), run(params, ids, condition.repeat(2, 0), *arguments)
    np.testing.assert_allclose(shared, repeated, atol=1e-5)


def test_in_bf16_too():
    """As on accelerators: weights are cast once, norms and logits stay f32; near the parallel pass in bf16, as that is to f32."""
    config, _, params = opened("mixed")
    model = config.make(SPEC, vocabulary=50, text_length=TEXT, dtype=jnp.bfloat16)
    ids, condition = some_ids(IMAGES), conditions(config, IMAGES)
    found = by_position(model, True, False)(params, ids, condition, jnp.int32(0), jnp.bool_(False))[:, 0]
    whole = quick(functools.partial(parallel, model))(params, ids, condition)
    exact = expected("mixed")[:, 0]
    error = lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).mean() / np.abs(exact).mean())
    assert found.dtype == jnp.float32 and error(found, whole) < 0.03 and error(found, exact) < 0.03


# ---- places ----

WINDOWS = {
    "conv": Raster(TokenSpec((6, 5), 4)).conv(3),
    "narrow": Raster(TokenSpec((9, 2), 4)).conv(5),
    "itself": Raster(TokenSpec((5, 5), 4)).conv(1),
    "no prefix": Mask(tuple(range(24)), (False,) * 24, conv_offsets(4, 3)),
    "long prefix": Mask(tuple(range(27)), (False,) * 27, conv_offsets(4, 3), prefix=5),
    "holes": Mask(tuple(range(20)), (False,) * 20, (0, 3, 7), prefix=1),
    "just rolling": Mask(tuple(range(10)), (False,) * 10, (0, 7), prefix=1),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_a_place_holds_what_the_mask_still_reaches(name):
    """Position by position and after every prefill: what a slot sees are the mask's positions, each at its place."""
    mask = WINDOWS[name]
    place, length = Place.of(mask), mask.length
    assert place.rolling and place.size < length and not Place.of(mask, rolling=False).rolling
    positions = jnp.arange(length)
    slots = jax.jit(jax.vmap(lambda position: place.slot(position, place.size)))(positions)
    kv = jnp.broadcast_to(jnp.arange(length, dtype=jnp.float32)[:, None], (1, 1, length, 1))
    kept = jax.jit(jax.vmap(lambda count: place.keep(KeyValues(kv, kv), count).k[0, 0, :, 0]))(positions)
    assert kept.shape == (length, place.size) == slots.visible.shape
    held = np.full(place.size, -1)
    for i in range(length):
        filled = np.array(kept[i])
        for there in (held, filled):
            there[int(slots.index[i])] = i
            assert sorted(there[np.asarray(slots.visible[i])].tolist()) == np.flatnonzero(mask.allowed()[i]).tolist(), i


def test_no_cache_rolls_that_would_not_be_smaller():
    whole = Raster(TokenSpec((4, 4), 4))
    assert not Place.of(whole.dense()).rolling and Place.of(whole.dense()).size == 16
    assert not Place.of(Mask(tuple(range(9)), (False,) * 9, (0, 7), prefix=1)).rolling
    assert Place.of(whole.conv(3)).size == 1 + 6
