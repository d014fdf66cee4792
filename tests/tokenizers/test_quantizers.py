"""Vector quantization against NumPy: the codes chosen, both gradient estimators, the losses, both kinds of bank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vimlab.tokenizers.quantizers import VectorQuantizer, l2_normalize, quantizer_params, rotate_through, straight_through

pytestmark = pytest.mark.usefixtures("compiled_quickly")

B, N, K, C = 2, 9, 24, 6


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def standardised(z):
    return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6)


LATENTS, BOOK = normal(0, B, N, C), 3 * normal(1, K, C)


def quantize(latents=LATENTS, book=BOOK, **options):
    module = VectorQuantizer(K, C, **options)
    return jax.jit(module.apply)({"params": {"codebook": jnp.asarray(book)}}, jnp.asarray(latents))


def pull(options, by, latents=LATENTS, book=BOOK):
    """Gradients to latents and codebook of `by(Quantized)`."""
    module = VectorQuantizer(K, C, **options)
    total = lambda z, book: by(module.apply({"params": {"codebook": book}}, z))
    return jax.jit(jax.grad(total, (0, 1)))(jnp.asarray(latents), jnp.asarray(book))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_the_nearest_code_is_returned(normalize, layer_norm):
    z = standardised(np.float64(LATENTS)) if layer_norm else np.float64(LATENTS)
    z, book = (unit(z), unit(np.float64(BOOK))) if normalize else (z, np.float64(BOOK))
    ids = ((z[:, :, None] - book) ** 2).sum(-1).argmin(-1)
    found = quantize(normalize=normalize, layer_norm=layer_norm)
    np.testing.assert_array_equal(found.ids, ids[..., None])
    np.testing.assert_allclose(found.latents, z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.vectors, book[ids], rtol=1e-5, atol=1e-6)
    if normalize:
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=-1), 1, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found.latents, axis=-1), 1, rtol=1e-5)


def test_lookup_gives_what_was_returned():
    module, params = VectorQuantizer(K, C), {"params": {"codebook": jnp.asarray(BOOK)}}
    found = quantize()
    np.testing.assert_allclose(module.apply(params, found.ids, method="lookup"), found.vectors, atol=1e-6)


def test_quantizing_a_code_gives_the_code():
    found = quantize(unit(BOOK)[None], layer_norm=False)
    np.testing.assert_array_equal(found.ids[0, :, 0], np.arange(K))


def test_normalisation_is_finite_at_zero():
    value, grad = jax.value_and_grad(lambda x: l2_normalize(x).sum())(jnp.zeros(4))
    assert value == 0 and np.isfinite(grad).all()
    found = quantize(np.zeros((B, N, C), np.float32))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


# ---- estimators ----


def test_straight_through_is_the_identity_backward():
    z, q, g = normal(2, 5, C), normal(3, 5, C), normal(4, 5, C)
    out, back = jax.vjp(straight_through, jnp.asarray(z), jnp.asarray(q))
    np.testing.assert_allclose(out, q, rtol=1e-5, atol=1e-6)
    to_z, to_q = back(jnp.asarray(g))
    np.testing.assert_array_equal(to_z, g)
    assert not to_q.any()


def rotation(z, q):
    """The matrix of the paper's section 4.2: scaled, and turning z into q within their plane."""
    z_unit, q_unit = unit(z), unit(q)
    mid = unit(z_unit + q_unit)
    turn = np.eye(len(z)) - 2 * np.outer(mid, mid) + 2 * np.outer(q_unit, z_unit)
    np.testing.assert_allclose(turn @ turn.T, np.eye(len(z)), atol=1e-9)
    return np.linalg.norm(q) / np.linalg.norm(z) * turn


def test_rotation_turns_the_gradient_as_it_turns_the_latent():
    z, q, g = normal(2, 5, C), normal(3, 5, C), normal(4, 5, C)
    out, back = jax.vjp(rotate_through, jnp.asarray(z), jnp.asarray(q))
    np.testing.assert_allclose(out, q, rtol=1e-4, atol=1e-5)
    to_z, to_q = back(jnp.asarray(g))
    for i in range(5):
        matrix = rotation(np.float64(z[i]), np.float64(q[i]))
        np.testing.assert_allclose(matrix @ z[i], q[i], atol=1e-6)
        np.testing.assert_allclose(to_z[i], matrix.T @ g[i], rtol=1e-4, atol=1e-5)
    assert not to_q.any()


@pytest.mark.parametrize("q", [[2.0, 0, 0], [-2.0, 0, 0], [-2.0, 1e-6, 0]], ids=["equal", "opposite", "nearly opposite"])
def test_rotation_is_finite_in_its_corners(q):
    z, q = jnp.array([2.0, 0.0, 0.0]), jnp.array(q)
    out, back = jax.vjp(rotate_through, z, q)
    np.testing.assert_allclose(out, q, atol=1e-4)
    assert np.isfinite(back(jnp.ones(3))[0]).all() and np.abs(back(jnp.ones(3))[0]).max() < 10


@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
def test_the_quantizer_hands_gradients_to_unnormalised_latents(estimator):
    """Without norms, the quantizer's vector-Jacobian product is the estimator's own; the codebook gets nothing this way."""
    g = normal(5, B, N, C)
    to_z, to_book = pull(dict(normalize=False, layer_norm=False, estimator=estimator), lambda out: (out.vectors * g).sum())
    codes = BOOK[np.asarray(quantize(normalize=False, layer_norm=False).ids)[..., 0]]
    for b, n in np.ndindex(B, N):
        matrix = rotation(np.float64(LATENTS[b, n]), np.float64(codes[b, n])) if estimator == "rotation" else np.eye(C)
        np.testing.assert_allclose(to_z[b, n], matrix.T @ g[b, n], rtol=1e-3, atol=1e-4)
    assert not to_book.any()


# ---- losses ----


@pytest.mark.parametrize("reduction, divisor", [("mean", C), ("sum", 1)])
def test_codebook_loss_and_its_gradients(reduction, divisor):
    options = dict(normalize=False, layer_norm=False, beta=0.3, reduction=reduction)
    found = quantize(**options)
    assert set(found.losses) == {"codebook"} and found.losses["codebook"].shape == (B,)
    ids = np.asarray(found.ids)[..., 0]
    squares = ((LATENTS - BOOK[ids]) ** 2).sum(-1) / divisor
    np.testing.assert_allclose(found.losses["codebook"], 1.3 * squares.mean(1), rtol=1e-5)
    to_z, to_book = pull(options, lambda out: out.losses["codebook"].sum())
    difference = 2 * (LATENTS - BOOK[ids]) / divisor / N
    np.testing.assert_allclose(to_z, 0.3 * difference, rtol=1e-4, atol=1e-6)
    expected = np.zeros_like(BOOK)
    np.add.at(expected, ids, -difference)
    np.testing.assert_allclose(to_book, expected, rtol=1e-4, atol=1e-6)
    assert (expected == 0).all(1).sum() > 3  # Codes that nobody chose feel nothing.


def test_codebook_loss_of_unit_codes_is_of_unit_codes():
    """The gradient of a code is tangential, and falls with its length: the loss knows only directions."""
    found = quantize()
    squares = ((np.asarray(found.latents) - unit(BOOK)[np.asarray(found.ids)[..., 0]]) ** 2).mean(-1)
    np.testing.assert_allclose(found.losses["codebook"], 1.25 * squares.mean(1), rtol=1e-4)
    _, to_book = pull({}, lambda out: out.losses["codebook"].sum())
    np.testing.assert_allclose((to_book * BOOK).sum(-1), 0, atol=1e-6)
    _, to_longer = pull({}, lambda out: out.losses["codebook"].sum(), book=2 * BOOK)
    np.testing.assert_allclose(2 * to_longer, to_book, rtol=1e-3, atol=1e-7)


def test_layer_norm_makes_the_scale_of_latents_irrelevant():
    a, b = quantize(), quantize(latents=100 * LATENTS + 7)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_allclose(a.latents, b.latents, atol=1e-3)


def test_entropy_loss_is_there_on_request_alone_and_weighted():
    one, two = (quantize(entropy=w, entropy_temperature=0.5).losses["entropy"] for w in (0.1, 0.2))
    assert one.shape == (B,) and one[0] == one[1]
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)
    p = np.exp(-((np.asarray(quantize().latents, np.float64)[:, :, None] - unit(np.float64(BOOK))) ** 2).sum(-1) / 0.5)
    p = (p / p.sum(-1, keepdims=True)).reshape(-1, K)
    expected = -(p * np.log(p)).sum(1).mean() + (p.mean(0) * np.log(p.mean(0))).sum()
    np.testing.assert_allclose(one[0], 0.1 * expected, rtol=1e-3)


# ---- the linear bank ----


def test_codes_of_a_linear_bank_are_one_map_of_fixed_codes():
    module = VectorQuantizer(K, C, bank="linear", normalize=False)
    params = nn.unbox(jax.jit(module.init)(jax.random.key(3), jnp.asarray(LATENTS)))["params"]
    assert {k: v.shape for k, v in params.items()} == {"map": (C, C)}
    np.testing.assert_allclose(params["map"] @ params["map"].T, np.eye(C), atol=1e-5)
    book = lambda matrix: module.apply({"params": {"map": jnp.asarray(matrix)}}, method="codebook")
    fixed, matrix = np.asarray(book(np.eye(C, dtype=np.float32))), normal(9, C, C)
    assert abs(fixed.mean()) < 0.3 and abs(fixed.std() - 1) < 0.2
    np.testing.assert_allclose(book(matrix), fixed @ matrix, rtol=1e-4, atol=1e-5)


def test_every_code_of_a_linear_bank_moves_with_a_step():
    module = VectorQuantizer(K, C, bank="linear")
    params = nn.unbox(jax.jit(module.init)(jax.random.key(3), jnp.asarray(LATENTS)))["params"]
    loss = lambda params: module.apply({"params": params}, jnp.asarray(LATENTS[:1, :1])).losses["codebook"].sum()
    after = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.jit(jax.grad(loss))(params))
    before, after = (module.apply({"params": p}, method="codebook") for p in (params, after))
    assert (np.abs(after - before).max(1) > 1e-6).all()


@pytest.mark.parametrize("bank", ["free", "linear"])
def test_parameter_count(bank):
    shapes = jax.eval_shape(VectorQuantizer(K, C, bank=bank).init, jax.random.key(0), jnp.asarray(LATENTS))
    assert quantizer_params(K, C, bank) == sum(x.size for x in jax.tree.leaves(shapes))


def test_bf16_latents_are_quantized_in_f32():
    found = quantize(latents=jnp.asarray(LATENTS, jnp.bfloat16))
    assert {x.dtype.name for x in (found.vectors, found.latents, found.losses["codebook"])} == {"float32"}
