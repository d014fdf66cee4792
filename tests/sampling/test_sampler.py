"""The sampler around functions whose answer is known: padding, no second compilation, kept tokens, pictures whatever the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_generators as small
from quick import quick

from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import batch_sharding
from vimlab.sampling.decode import Samples, decode, knobs
from vimlab.sampling.sampler import GROUP, Sampler, in_groups
from vimlab.tokens import Tokens, TokenSpec

SPEC = TokenSpec((2, 3), 50)
KNOBS = knobs(SPEC.length)


def ids_of(conditions, seeds):
    """Tokens that tell of condition, seed and position, i32[B,6]."""
    return ((conditions[:, None] * 7 + seeds[:, None].astype(jnp.int32) * 11 + jnp.arange(SPEC.length)) % SPEC.codes).astype(jnp.int32)


class Parts:
    """What a Sampler is made of, jitted anew, with the shapes that each part was called with."""

    def __init__(self):
        self.shapes = []
        self.sample, self.complete = jax.jit(self._sample), jax.jit(self._sample)
        self.decode = jax.jit(self._decode)

    def _sample(self, conditions, seeds, knobs, given=None, keep=None):
        self.shapes.append(("sample", len(seeds)))  # Once for each compilation.
        ids = ids_of(conditions, seeds)
        log_probs = -ids * knobs.temperature
        if keep is not None:
            ids, log_probs = jnp.where(keep, given, ids), jnp.where(keep, 0, log_probs)
        # As many calls as positions that not every row keeps; rows that fill the batch up must not count.
        calls = SPEC.length if keep is None else SPEC.length - jnp.cumprod(keep.all(0)).sum()
        return Samples(Tokens(ids[..., None], SPEC), log_probs, jnp.int32(calls))

    def _decode(self, ids):
        self.shapes.append(("decode", len(ids)))
        return jnp.broadcast_to((ids[:, :3] / 255)[:, None, None], (len(ids), 4, 4, 3))

    def sampler(self, rows, ways=1):
        return Sampler(self.sample, self.decode, self.complete, rows=rows, ways=ways)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_each_image_is_that_of_its_condition_and_seed(count):
    conditions, seeds, done = np.arange(count, dtype=np.int32), 100 + np.arange(count), []
    drawn = Parts().sampler(4).draw(conditions, seeds, KNOBS, progress=done.append)
    np.testing.assert_array_equal(drawn.ids, ids_of(conditions, seeds))
    np.testing.assert_array_equal(drawn.log_probs, -drawn.ids.astype(np.float32))
    np.testing.assert_array_equal(drawn.images, np.broadcast_to(drawn.ids[:, None, None, :3], (count, 4, 4, 3)))
    assert (drawn.ids.dtype, drawn.log_probs.dtype, drawn.images.dtype) == (np.int32, np.float32, np.uint8)
    batches = -(-count // 4)
    assert drawn.calls == batches * SPEC.length and len(done) == batches and sum(done) == count


def test_any_count_and_any_setting_compile_nothing_more():
    parts = Parts()
    sampler = parts.sampler(4)
    for count in (2, 1, 4, 7, 13):
        settings = knobs(SPEC.length, temperature=count / 2, top_k=count, top_p=1 / count, guidance=count, schedule="cosine")
        sampler.draw(np.zeros(count, np.int32), np.arange(count), settings)
    assert parts.shapes == [("sample", 4), ("decode", GROUP)]
    assert parts.sample._cache_size() == parts.decode._cache_size() == 1 and parts.complete._cache_size() == 0


def test_each_device_always_has_as_many_rows_and_the_devices_change_no_image():
    rng = np.random.default_rng(0)
    conditions, seeds = rng.integers(0, 9, 21).astype(np.int32), rng.integers(0, 1 << 32, 21)
    all_drawn = []
    for ways in (1, 2, 8):
        parts = Parts()
        all_drawn.append(parts.sampler(3, ways).draw(conditions, seeds, KNOBS))
        parts.sampler(3, ways).draw(conditions[:1], seeds[:1], KNOBS)
        assert parts.shapes == [("sample", 3 * ways), ("decode", GROUP * ways)], "however many are drawn"
    for drawn in all_drawn[1:]:
        for name in ("ids", "log_probs", "images"):
            np.testing.assert_array_equal(getattr(drawn, name), getattr(all_drawn[0], name))


def test_kept_tokens_come_back_and_the_filled_up_rows_save_what_all_keep():
    parts, count = Parts(), 6
    given = np.random.default_rng(1).integers(0, SPEC.codes, (count, SPEC.length)).astype(np.int32)
    keep = np.broadcast_to(np.arange(SPEC.length) < 2, given.shape)
    drawn = parts.sampler(4).draw(np.zeros(count, np.int32), np.arange(count), KNOBS, given, keep)
    np.testing.assert_array_equal(drawn.ids[:, :2], given[:, :2])
    np.testing.assert_array_equal(drawn.ids[:, 2:], ids_of(np.zeros(count, np.int32), np.arange(count))[:, 2:])
    assert (drawn.log_probs[:, :2] == 0).all() and drawn.calls == 2 * (SPEC.length - 2)
    assert parts.complete._cache_size() == 1 and parts.sample._cache_size() == 0


def test_texts_go_along_row_by_row_over_the_devices_of_a_mesh():
    sharding = batch_sharding(make_mesh(MeshConfig()))

    @jax.jit
    def sample(texts, seeds, knobs):
        ids = jax.lax.with_sharding_constraint(ids_of(texts.sum(1), seeds), sharding)
        return Samples(Tokens(ids[..., None], SPEC), ids.astype(jnp.float32), jnp.int32(1))

    texts = np.random.default_rng(2).integers(0, 5, (11, 4)).astype(np.int32)
    drawn = Sampler(sample, Parts().decode, rows=1, ways=8).draw(texts, np.arange(11), KNOBS)
    np.testing.assert_array_equal(drawn.ids, ids_of(texts.sum(1), np.arange(11)))


def test_groups_are_equal_and_only_what_is_real_counts():
    seen = []

    def add(a, b):
        seen.append(a.shape)
        return a + b

    a, b = np.arange(19 * 2).reshape(19, 2), np.ones((19, 2), int)
    np.testing.assert_array_equal(in_groups(add, a, b), a + b)
    assert seen == [(GROUP, 2)] * 3


@pytest.mark.parametrize("name", ["vim_cifar10", "parti_shapes"])
def test_one_device_and_eight_draw_the_same_bits(name):
    """Shipped generators, shrunk, but wide enough that XLA sums otherwise where a device has other rows; with guidance."""
    config = dataclasses.replace(small.shrink(small.shipped()[name]), depth=1, width=256, mlp=256)
    spec = TokenSpec((4, 4), 32)
    model = small.make(config, spec)
    # Logits as near to each other as a trained model's: the numbers are not lost beside one of them.
    params = jax.tree.map(lambda x: x / 4, small.random_params(model, config))
    conditions, seeds = np.asarray(small.conditions(config, 11)), np.arange(11)
    program = lambda condition, seeds, knobs: decode(model, params, condition, seeds, knobs, guided=True)

    def drawn(devices):
        with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:devices])):
            black = lambda ids: np.zeros((len(ids), 2, 2, 3), np.float32)
            return Sampler(quick(program), black, rows=4, ways=devices).draw(conditions, seeds, knobs(spec.length, guidance=2.0))

    one, eight = drawn(1), drawn(8)
    np.testing.assert_array_equal(eight.ids, one.ids)
    np.testing.assert_array_equal(eight.log_probs, one.log_probs)
    assert len(np.unique(one.ids, axis=0)) == 11 and one.calls == 3 * eight.calls
