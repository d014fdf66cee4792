"""The decode loop: what it draws and with what probability, what it leaves alone, on what it does not depend, what it compiles to."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from quick import quick
from scipy import stats
from small_generators import SPEC, conditions, kinds, make, nulls, parallel, random_params, some_ids

from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import batch_sharding
from vimlab.sampling.decode import decode, draw, knobs
from vimlab.sampling.guidance import guide

KINDS = kinds()
IMAGES, LENGTH = 8, SPEC.length
SEEDS = np.arange(IMAGES, dtype=np.uint32) + 7
CONDITIONAL = [k for k, c in KINDS.items() if c.condition.NAME != "none"]
CAUSAL = next(k for k in CONDITIONAL if not KINDS[k].conv_kernel)
settings_of = functools.partial(knobs, LENGTH)


@functools.cache
def opened(kind):
    config = KINDS[kind]
    model = make(config)
    return config, model, random_params(model, config)


@functools.cache
def program(kind, guided=False, rolling=True, stretches=None):
    """(params, condition, seeds, knobs, given, keep) → Samples, jitted; without the last two where they are None."""
    model = opened(kind)[1]
    return quick(
        lambda params, condition, seeds, settings, given=None, keep=None: decode(
            model, params, condition, seeds, settings, guided=guided, given=given, keep=keep, rolling=rolling, stretches=stretches
        )
    )


def sample(kind, guided=False, rolling=True, condition=None, seeds=SEEDS, given=None, keep=None, stretches=None, **settings):
    """ids i32[B,N], log_probs and the number of calls."""
    config, _, params = opened(kind)
    condition = conditions(config, len(seeds)) if condition is None else condition
    out = program(kind, guided, rolling, stretches)(params, condition, seeds, settings_of(**settings), given, keep)
    assert out.tokens.spec == SPEC and out.tokens.ids.shape == (len(seeds), LENGTH, 1) and out.tokens.ids.dtype == jnp.int32
    return np.asarray(out.tokens.ids[..., 0]), np.asarray(out.log_probs), int(out.calls)


@functools.cache
def pass_over_all(kind):
    return quick(functools.partial(parallel, opened(kind)[1]))


def teacher_forced(kind, ids, condition):
    """Logits of the parallel pass."""
    return np.asarray(pass_over_all(kind)(opened(kind)[2], jnp.asarray(ids), condition))


# ---- one token ----


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def distribution(logits, temperature=1.0, top_k=0, top_p=1.0):
    """In float64, by sorting."""
    x = np.float64(logits) / temperature
    if top_k:
        x = np.where(x >= np.sort(x, -1)[..., -top_k, None], x, -np.inf)
    if top_p < 1:
        order = np.sort(softmax(x), -1)[..., ::-1]
        least = np.take_along_axis(order, (order.cumsum(-1) < top_p).sum(-1, keepdims=True), -1)
        x = np.where(softmax(x) >= least, x, -np.inf)
    return softmax(x)


def fits(ids, shares) -> bool:
    """Whether draws may be of a distribution: none where it has nothing, and Pearson's chi-square at one in ten thousand."""
    counts, expected = np.bincount(ids, minlength=len(shares)), len(ids) * shares
    there = shares > 0
    if counts[~there].any():
        return False
    return there.sum() == 1 or stats.chisquare(counts[there], expected[there]).pvalue > 1e-4


DRAWS = 20_000
SCORES = np.float32(1.5 * np.random.default_rng(0).normal(size=24))
TURNS = [
    {}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 8, "top_p": 0.8},
    {"temperature": 1.7, "top_k": 10, "top_p": 0.9}, {"top_k": 1}, {"temperature": 0.3, "top_p": 0.2},
]  # fmt: skip
draw_many = jax.jit(lambda scores, seed, settings: draw(jnp.tile(scores, (DRAWS, 1)), jax.random.split(jax.random.key(seed), DRAWS), settings))


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_tokens_are_drawn_with_their_probability_and_say_it(turn):
    shares = distribution(SCORES, **turn)
    ids, log_probs = draw_many(SCORES, 1, settings_of(**turn))
    assert fits(np.asarray(ids), shares)
    np.testing.assert_allclose(log_probs, np.log(shares[np.asarray(ids)]), atol=1e-5)
    # The test can tell: not from the distribution that a turn forgets.
    assert not turn or turn.get("top_k") == 1 or not fits(np.asarray(ids), distribution(SCORES))


def test_cold_is_the_likeliest_and_the_first_of_equals():
    scores = SCORES.copy()
    scores[[3, 9]] = scores.max() + 1
    for turn in ({"temperature": 0.0}, {"temperature": 0.0, "top_p": 0.5}, {"temperature": 0.0, "top_k": 7}):
        ids, log_probs = draw_many(scores, 1, settings_of(**turn))
        assert (np.asarray(ids) == 3).all() and not np.asarray(log_probs).any()


def test_very_low_temperatures_and_shares_are_still_distributions():
    for turn in ({"temperature": 1e-6}, {"temperature": 1e-37}, {"top_p": 0.0}, {"temperature": 1e-3, "top_k": 1, "top_p": 1e-3}):
        ids, log_probs = draw_many(SCORES, 2, settings_of(**turn))
        assert (np.asarray(ids) == SCORES.argmax()).all() and np.abs(log_probs).max() < 1e-5


# ---- one image ----


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_the_uncached_loop(kind):
    """Every token is the likeliest that the parallel pass finds after those before it: what a loop without caches draws."""
    ids, _, calls = sample(kind, temperature=0.0)
    scores = teacher_forced(kind, ids, conditions(KINDS[kind], IMAGES))
    np.testing.assert_array_equal(ids, scores.argmax(-1))
    best = np.sort(scores, -1)
    assert (best[..., -1] - best[..., -2]).min() > 1e-4 or kind == "none", "a near tie could hide, or feign, a mistake"
    assert calls == LENGTH and len(np.unique(ids)) > 2


GUIDED = dict(temperature=0.9, top_k=20, top_p=0.95, guidance=2.5, schedule="cosine")


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_log_probs_are_those_of_the_guided_filtered_distribution(kind):
    """Again from the parallel pass, the scale rising from position to position."""
    ids, log_probs, _ = sample(kind, guided=True, **GUIDED)
    condition = conditions(KINDS[kind], IMAGES)
    c, u = teacher_forced(kind, ids, condition), teacher_forced(kind, ids, nulls(KINDS[kind], IMAGES))
    scores = guide(jnp.asarray(c), jnp.asarray(u), jnp.asarray(settings_of(**GUIDED).guidance)[:, None])
    shares = distribution(scores, temperature=0.9, top_k=20, top_p=0.95)
    expected = np.log(np.maximum(np.take_along_axis(shares, ids[..., None], -1)[..., 0], 1e-30))
    # A code at the edge of what is kept may fall on either side.
    assert (np.abs(log_probs - expected) < 1e-3).mean() > 0.99 and (log_probs < 0).mean() > 0.8


def test_positions_and_images_are_drawn_independently():
    """A model that knows nothing draws noise: every code as often, every pair of neighbours, in its row and over images."""
    config, _, params = opened("conv")
    blank = jax.tree.map(jnp.zeros_like, params)
    out = program("conv", True)(blank, conditions(config, IMAGES), SEEDS, settings_of())
    ids = np.asarray(out.tokens.ids[..., 0])
    flat = lambda n: np.full(n, 1 / n)
    assert fits(ids.ravel(), flat(32))
    coarse = ids // 8
    for first, second in ((coarse[:, :-1], coarse[:, 1:]), (coarse[:-1], coarse[1:])):
        assert fits((4 * first + second).ravel(), flat(16))
    np.testing.assert_allclose(out.log_probs, -np.log(32), rtol=1e-5)


@pytest.mark.parametrize("kind", ["mixed", "conv"])
def test_guidance_by_1_draws_what_no_guidance_draws(kind):
    settings = dict(temperature=0.8, top_k=12)
    plain, guided = sample(kind, **settings), sample(kind, guided=True, guidance=1.0, **settings)
    np.testing.assert_array_equal(plain[0], guided[0])
    np.testing.assert_allclose(plain[1], guided[1], atol=1e-4)
    assert (sample(kind, guided=True, guidance=4.0, **settings)[0] != guided[0]).any(1).all()


def test_guidance_by_0_draws_for_nobody():
    """Whatever the prompt, with the null one's memory."""
    condition = conditions(KINDS["mixed"], IMAGES)
    ids = sample("mixed", guided=True, guidance=0.0)[0]
    np.testing.assert_array_equal(ids, sample("mixed", guided=True, guidance=0.0, condition=condition[::-1])[0])
    np.testing.assert_array_equal(ids, sample("mixed", condition=nulls(KINDS["mixed"], IMAGES))[0])


# ---- what is given ----


def given_and_kept(share=0.4, rows=0, leave=()):
    """Some tokens, which of them are kept: at random, and the first rows of all images but those that keep nothing."""
    keep = np.random.default_rng(1).uniform(size=(IMAGES, LENGTH)) < share
    keep |= np.arange(LENGTH) < rows * SPEC.grid[1]
    keep[list(leave)] = False
    return some_ids(IMAGES, seed=9), jnp.asarray(keep)


@pytest.mark.parametrize("share, rows", [(0.4, 0), (0.4, 3), (0.0, 5), (0.0, 0), (1.0, 0)])
def test_given_tokens_come_back(share, rows):
    given, keep = given_and_kept(share, rows)
    ids, log_probs, calls = sample("mixed", guided=True, given=given, keep=keep, guidance=2.0)
    np.testing.assert_array_equal(ids[keep], np.asarray(given)[keep])
    assert not log_probs[keep].any() and (log_probs[~np.asarray(keep)] < 0).all()
    together = int(np.cumprod(np.asarray(keep).all(0)).sum())
    assert together >= rows * 8 and calls == LENGTH - together + 1


def test_what_is_not_kept_is_not_read():
    given, keep = given_and_kept(0.4, 2)
    other = jnp.where(keep, given, (given + 11) % SPEC.codes)
    ids = sample("mixed", guided=True, given=given, keep=keep)[0]
    np.testing.assert_array_equal(ids, sample("mixed", guided=True, given=other, keep=keep)[0])


@pytest.mark.parametrize("rows", [1, 2, 3, 6])
def test_leading_rows_at_once_are_leading_rows_one_by_one(rows):
    """One image that keeps nothing makes the others go step by step; their tokens are the same, by rolling caches and by whole ones."""
    given, keep = given_and_kept(0.1, rows)
    at_once, _, calls = sample("mixed", guided=True, given=given, keep=keep, guidance=1.5)
    one_by_one, _, all_calls = sample("mixed", guided=True, given=given, keep=keep.at[-1].set(False), guidance=1.5)
    np.testing.assert_array_equal(at_once[:-1], one_by_one[:-1])
    assert calls <= LENGTH - 8 * rows + 1 and all_calls == LENGTH + 1
    whole = sample("mixed", guided=True, rolling=False, given=given, keep=keep, guidance=1.5)
    np.testing.assert_array_equal(at_once, whole[0])


@pytest.mark.parametrize("kind", ["mixed", CAUSAL])
def test_stretches_change_nothing(kind):
    """Caches that grow, beside rolling ones and alone, from nothing and from a prefill that ends in each stretch or between two."""
    for rows in (0, 2, 3, 6):
        given, keep = given_and_kept(0.0, rows) if rows else (None, None)
        one = sample(kind, guided=True, given=given, keep=keep, guidance=1.5, stretches=1)
        three = sample(kind, guided=True, given=given, keep=keep, guidance=1.5, stretches=3)
        np.testing.assert_array_equal(one[0], three[0])
        np.testing.assert_allclose(one[1], three[1], atol=1e-5)
        assert one[2] == three[2]


def test_a_completion_goes_on_from_what_is_given():
    """Keeping the first half of a drawn image and drawing the rest with the same seed gives that image again."""
    ids = sample("mixed", guided=True, guidance=2.0)[0]
    keep = jnp.broadcast_to(jnp.arange(LENGTH) < 32, ids.shape)
    again, _, calls = sample("mixed", guided=True, given=jnp.asarray(ids), keep=keep, guidance=2.0)
    np.testing.assert_array_equal(again, ids)
    assert calls == 33


# ---- on what an image does not depend ----


def test_an_image_is_its_seeds_and_its_conditions():
    condition = conditions(KINDS["mixed"], IMAGES)
    ids = sample("mixed", guided=True, guidance=2.0)[0]
    assert len({row.tobytes() for row in ids}) == IMAGES
    order = np.random.default_rng(0).permutation(IMAGES)
    np.testing.assert_array_equal(sample("mixed", guided=True, guidance=2.0, condition=condition[order], seeds=SEEDS[order])[0], ids[order])
    few = sample("mixed", guided=True, guidance=2.0, condition=condition[2:5], seeds=SEEDS[2:5])[0]
    np.testing.assert_array_equal(few, ids[2:5])
    same = sample("mixed", guided=True, guidance=2.0, condition=condition[:1].repeat(IMAGES, 0), seeds=np.full(IMAGES, 3, np.uint32))[0]
    assert (same == same[0]).all()
    assert (sample("mixed", guided=True, guidance=2.0, seeds=SEEDS + 100)[0] != ids).any(1).all()


def test_images_of_a_prompt_share_its_memory():
    """Two conditions for eight images, four each, as the conditions repeated."""
    condition = conditions(KINDS["mixed"], 2)
    shared = sample("mixed", guided=True, condition=condition, guidance=2.0)[0]
    np.testing.assert_array_equal(shared, sample("mixed", guided=True, condition=condition.repeat(4, 0), guidance=2.0)[0])


def test_an_image_does_not_depend_on_the_devices():
    """Images over four devices, heads over two; also where two prompts do not divide over four devices."""
    config, model, params = opened("mixed")
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    for rows in (IMAGES, 2):
        condition = conditions(config, rows)
        ids = sample("mixed", guided=True, condition=condition, guidance=2.0)[0]
        with jax.set_mesh(mesh):
            whole = NamedSharding(mesh, PartitionSpec())
            place = lambda x: jax.device_put(x, batch_sharding(mesh) if len(x) == IMAGES else whole)  # noqa: B023
            run = quick(lambda *args: decode(model, *args, guided=True))
            out = run(jax.device_put(params, whole), place(condition), place(SEEDS), settings_of(guidance=2.0))
        np.testing.assert_array_equal(out.tokens.ids[..., 0], ids)


def test_a_cache_is_laid_out_as_the_model_is():
    """On the mesh nothing of a cache is whole anywhere: each device holds its images' and its heads' part."""
    config, model, params = opened("conv")
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, PartitionSpec())
        inputs = jax.device_put((params, conditions(config, IMAGES), SEEDS, settings_of()), whole)
        text = quick(lambda *args: decode(model, *args, guided=False)).lower(*inputs).compile().as_text()
    window = 1 + 2 * 8 + 2 + 1
    held = set(re.findall(rf"f32\[(\d+),(\d+),{window},8\]", text))
    assert ("2", "2") in held and ("8", "4") not in held, held


# ---- the program ----


def test_turning_a_knob_compiles_nothing():
    config, model, params = opened("conv")
    traces, condition = [], conditions(config, 2)

    @quick
    def run(params, condition, seeds, settings, given, keep):
        traces.append(1)
        return decode(model, params, condition, seeds, settings, guided=True, given=given, keep=keep)

    seeds, found = np.arange(2, dtype=np.uint32), []
    turns = [*TURNS, {"temperature": 0.0}, {"guidance": 3.0}, {"guidance": 0.0, "schedule": "linear"}, {"guidance": 9.0, "schedule": "cosine"}]
    for n, turn in enumerate(turns):
        keep = jnp.broadcast_to(jnp.arange(LENGTH) < 56 - 2 * n, (2, LENGTH))
        found.append(run(params, condition, seeds + n, settings_of(**turn), some_ids(2, seed=n), keep))
    assert len(traces) == run._cache_size() == 1
    assert [int(f.calls) for f in found] == [LENGTH - 56 + 2 * n + 1 for n in range(len(turns))]


def test_one_program_on_the_device_and_no_way_back_to_the_host():
    config, _, params = opened("mixed")
    given, keep = given_and_kept(0.3, 2)
    inputs = jax.device_put((params, conditions(config, IMAGES), SEEDS, settings_of(top_k=5, guidance=2.0), given, keep))
    lowered = program("mixed", True).lower(*inputs)
    assert "callback" not in lowered.as_text()
    compiled = lowered.compile()
    assert not re.findall(r"callback|infeed|outfeed|\bsend\b|\brecv\b|host_", compiled.as_text(), re.IGNORECASE)
    with jax.transfer_guard("disallow"):
        out = compiled(*inputs)
    np.testing.assert_array_equal(out.tokens.ids, program("mixed", True)(*inputs).tokens.ids)
