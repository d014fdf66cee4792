"""The life of a codebook: counting, and moving codes that nobody uses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vimlab.optim import Adafactor, AdamW
from vimlab.tokenizers.codebook import NEVER_USED, count_codes, forget_moments, idle_steps, perplexity, reseed


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_counts():
    ids = np.random.default_rng(0).integers(0, 7, size=(3, 50, 1)).astype(np.int32)
    np.testing.assert_array_equal(count_codes(jnp.asarray(ids), 9), np.bincount(ids.ravel(), minlength=9))


def test_idle_counts_steps_since_the_last_use():
    idle = jnp.array([NEVER_USED, 0, 3, NEVER_USED], jnp.int32)
    idle = idle_steps(idle, jnp.array([0, 0, 2, 1]))
    np.testing.assert_array_equal(idle, [NEVER_USED + 1, 1, 0, 0])
    for _ in range(3):
        idle = idle_steps(idle, jnp.array([0, 0, 0, 5]))
    np.testing.assert_array_equal(idle, [NEVER_USED + 1, 4, 3, 0])  # Never grows into an overflow.


@pytest.mark.parametrize("counts", [[3, 0, 1, 4], [5, 5, 5, 5], [0, 0, 9, 0], [100_000, 1, 0, 0]])
def test_perplexity_is_exp_of_the_entropy(counts):
    p = np.array(counts) / sum(counts)
    expected = np.exp(-sum(x * np.log(x) for x in p if x))
    assert float(perplexity(jnp.array(counts))) == pytest.approx(expected, rel=1e-5)


def test_perplexity_of_nothing_is_finite():
    assert float(perplexity(jnp.zeros(4, jnp.int32))) == 1.0


@pytest.mark.parametrize("positions", [40, 5], ids=["more latents than codes", "fewer"])
def test_reseeding_moves_dead_codes_alone_onto_latents_of_the_batch(positions):
    latents, codebook = normal(0, 2, positions, 3), normal(1, 20, 3)
    dead = jnp.arange(20) % 3 == 0
    moved = reseed(jax.random.key(0), dead, latents, codebook)
    np.testing.assert_array_equal(moved[~dead], codebook[~dead])
    flat = {tuple(z) for z in np.asarray(latents).reshape(-1, 3)}
    places = [tuple(z) for z in np.asarray(moved[dead])]
    assert set(places) <= flat


def test_reseeding_puts_no_two_codes_on_one_latent():
    """As many latents as codes, all of them dead: a permutation."""
    latents = normal(0, 2, 10, 3)
    moved = reseed(jax.random.key(0), jnp.ones(20, bool), latents, normal(1, 20, 3))
    assert sorted(map(tuple, np.asarray(moved))) == sorted(map(tuple, np.asarray(latents).reshape(-1, 3)))


def test_reseeding_is_a_function_of_its_key():
    latents, codebook, dead = normal(0, 2, 40, 3), normal(1, 20, 3), jnp.ones(20, bool)
    first, again, other = (jax.jit(reseed)(jax.random.key(k), dead, latents, codebook) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_reseeding_draws_from_all_examples():
    """Every latent is as likely as any other: 4 dead codes of 8, 400 rounds, 40 latents: 40 hits each, give or take."""
    latents = jnp.arange(40.0).reshape(4, 10, 1)
    dead = jnp.arange(8) < 4
    draw = jax.jit(jax.vmap(lambda key: reseed(key, dead, latents, jnp.full((8, 1), -1.0))))
    hits = np.bincount(np.asarray(draw(jax.random.split(jax.random.key(0), 400)))[:, :4].ravel().astype(int), minlength=40)
    assert hits.sum() == 1600 and hits.min() > 15 and hits.max() < 70


@pytest.mark.parametrize("optim", [AdamW(clip=1.0), Adafactor(), Adafactor(min_dim=4)], ids=["adamw", "adafactor", "factored"])
def test_moments_of_dead_codes_are_forgotten_and_no_others(optim):
    params = {"quantizer": {"codebook": normal(0, 12, 5)}, "other": {"w": normal(1, 12, 5), "codebook_w": normal(2, 12, 5)}}
    tx = optim.make(lambda _: 0.1)
    state = tx.init(params)
    for seed in (3, 4):
        _, state = tx.update(jax.tree.map(lambda p: normal(seed, *p.shape), params), state, params)  # noqa: B023
    dead = jnp.arange(12) % 4 == 1
    after = forget_moments(state, dead, "codebook")
    assert jax.tree.structure(after) == jax.tree.structure(state)
    forgotten = 0
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True):
        expected = np.array(old)
        if jax.tree_util.keystr(path).endswith("['codebook']") and old.shape[:1] == (12,):
            expected[np.asarray(dead)] = 0
            forgotten += 1
        np.testing.assert_array_equal(new, expected, err_msg=jax.tree_util.keystr(path))
    assert forgotten == 2  # A first and a second moment; factored, the second's rows.
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), after, params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(optax.apply_updates(params, updates)))
