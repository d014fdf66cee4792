"""Conditioners: labels, texts of any length, and the null form of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from quick import quick

from vimlab.data.text import END, NULL, PAD, Bytes
from vimlab.generators.conditioners import ClassEmbedding, TextEncoder, Unconditional
from vimlab.nn.transformer import Stack

WIDTH, LENGTH, VOCABULARY = 16, 8, 20


def with_params(module, inputs):
    """module.apply with random parameters, and these."""
    abstract = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), inputs)["params"]))
    leaves, treedef = jax.tree.flatten(abstract)
    rng = np.random.default_rng(0)
    params = treedef.unflatten([jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])
    return lambda *args, **kwargs: module.apply({"params": params}, *args, **kwargs), params


@pytest.fixture(scope="module")
def encoder():
    module = TextEncoder(VOCABULARY, LENGTH, WIDTH, Stack(2, 2, 32, use_bias=False, activation="relu"))
    apply, params = with_params(module, jnp.zeros((1, LENGTH), jnp.int32))
    return quick(lambda text, drop=None: apply(text, drop)), quick(lambda: apply(3, method="null")), params


def texts(*rows):
    return jnp.asarray([[*row, *[PAD] * (LENGTH - len(row))] for row in rows], jnp.int32)


def test_nothing_to_be_told():
    apply, params = with_params(Unconditional(WIDTH), jnp.zeros(1, jnp.int32))
    condition = apply(jnp.arange(3))
    assert condition.memory is None and condition.lengths is None
    np.testing.assert_array_equal(condition.prefix, jnp.broadcast_to(params["start"], (3, 1, WIDTH)))


def test_a_class_is_its_row_and_none_is_the_last():
    apply, params = with_params(ClassEmbedding(4, WIDTH), jnp.zeros(1, jnp.int32))
    table = params["table"]
    assert table.shape == (5, WIDTH)
    labels = jnp.asarray([3, 0, -1, 2], jnp.int32)
    np.testing.assert_array_equal(apply(labels).prefix[:, 0], table[jnp.asarray([3, 0, 4, 2])])
    dropped = apply(labels, jnp.asarray([False, True, False, True]))
    np.testing.assert_array_equal(dropped.prefix[:, 0], table[jnp.asarray([3, 4, 4, 4])])
    np.testing.assert_array_equal(apply(2, method="null").prefix[:, 0], table[jnp.asarray([4, 4])])
    assert apply(labels).memory is None


def test_texts_become_a_memory_of_their_length(encoder):
    encode, _, params = encoder
    condition = encode(texts([5, 6, 7, END], [5, END], [9, 8, 7, 6, 5, 4, 3, END]))
    assert condition.memory.shape == (3, LENGTH, WIDTH) and condition.lengths.tolist() == [4, 2, 8]
    np.testing.assert_array_equal(condition.prefix, jnp.broadcast_to(params["start"], (3, 1, WIDTH)))
    assert params["table"].shape == (VOCABULARY, WIDTH) and params["positions"].shape == (LENGTH, WIDTH)


def test_every_word_sees_the_whole_text_and_its_order(encoder):
    encode = encoder[0]
    memory = encode(texts([5, 6, 7, END], [5, 6, 8, END], [6, 5, 7, END])).memory
    for other in memory[1:]:  # Another third word is felt by the first; other orders by all.
        assert (np.abs(memory[0, :4] - other[:4]).max(-1) > 1e-4).all()


def test_padding_is_not_seen(encoder):
    encode = encoder[0]
    whole, short = encode(texts([5, 6, END])), encode(texts([5, 6, END])[:, :4])
    np.testing.assert_allclose(whole.memory[:, :3], short.memory[:, :3], atol=1e-5)
    # Text beyond the padding, which no tokenizer writes, would move the length; within it nothing else can.
    assert whole.lengths.tolist() == short.lengths.tolist() == [3]


def test_the_null_text(encoder):
    encode, null, _ = encoder
    text = texts([5, 6, 7, END], [9, END])
    dropped, written = encode(text, jnp.asarray([True, False])), encode(texts([NULL], [9, END]))
    for a, b in zip(jax.tree.leaves(dropped), jax.tree.leaves(written), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = null()
    assert alone.memory.shape == (3, 1, WIDTH) and alone.lengths.tolist() == [1, 1, 1]
    np.testing.assert_allclose(alone.memory[:, 0], jnp.broadcast_to(dropped.memory[0, 0], (3, WIDTH)), atol=1e-5)


def test_the_null_text_is_the_tokenizers():
    tokenizer = Bytes(length=LENGTH).open()
    np.testing.assert_array_equal(tokenizer.null(), texts([NULL])[0])


def test_no_text_at_all_is_finite(encoder):
    """Only padding, which no tokenizer writes: read as one position."""
    condition = encoder[0](texts([], [5, END]))
    assert condition.lengths.tolist() == [1, 2] and bool(jnp.isfinite(condition.memory).all())
