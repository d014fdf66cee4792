"""Adafactor against Optax and NumPy, a scanned stack against its layers, the int8 moment against what it rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from vimlab.adafactor import STEPS, int8_ema, quantize
from vimlab.checkpoint import Checkpointer
from vimlab.config import ConfigError, Duration
from vimlab.optim import Adafactor
from vimlab.parallel.rules import logical_axes
from vimlab.tokenizers.vit import Tower

MOMENTS = ("f32", "int8")


def normal(seed, *shape, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def run(tx, params, grads):
    """The updates of some gradients, the parameters after each, and the last state."""
    state, step, updates, after = tx.init(params), jax.jit(tx.update), [], []
    for grad in grads:
        update, state = step(grad, state, params)
        params = optax.apply_updates(params, update)
        updates.append(update)
        after.append(params)
    return updates, after, state


def spiked(shape, steps=5):
    """Gradients of very different rows and columns; one is large enough to be clipped."""
    rows = np.exp(normal(7, *shape[:1], *(1 for _ in shape[1:])))
    return [normal(i + 1, *shape, scale=1 + 9 * (i == 3)) * rows for i in range(steps)]


# ---- one tensor ----


SHAPES = [(256, 128), (130, 260), (128, 128), (64, 128), (200,), (), (128, 3, 2, 160), (2, 160, 128), (3, 3, 128, 256), (128, 128, 128)]


@pytest.mark.parametrize("shape", SHAPES)
def test_updates_are_optaxs(shape):
    corrected = lambda step, b2: b2 * (1 - b2**step) / (1 - b2 ** (step + 1))
    theirs = optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.96, decay_rate_fn=corrected, epsilon=1e-30, min_dim_size_to_factor=128),
        optax.clip_by_block_rms(1.0),
        optax.ema(0.9, debias=False),
    )
    params, grads = {"w": np.zeros(shape, np.float32)}, [{"w": g} for g in spiked(shape)]
    (found, _, state), (expected, _, reference) = (run(tx, params, grads) for tx in (Adafactor().scaling(), theirs))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a["w"], b["w"], rtol=2e-5, atol=1e-6)
    size = lambda state: sum(x.size for x in jax.tree.leaves(state) if x.size > 1)
    assert size(state) == size(reference)


def numpy_adafactor(p, grads, rates, int8, b1=0.9, b2=0.96, decay=0.045, eps=1e-30):
    """A matrix, factored; after Praxis's sharded_adafactor, but for the rate, which multiplies the moment when it is used."""
    p, m, scale, row, column = p.astype(np.float64), np.zeros(p.shape), np.ones(p.shape[1]), 0.0, 0.0
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True)):
        g = grad.astype(np.float64)
        b = b2 * (1 - b2**t) / (1 - b2 ** (t + 1))
        row = b * row + (1 - b) * (g * g + eps).mean(1)
        column = b * column + (1 - b) * (g * g + eps).mean(0)
        u = g / np.sqrt(np.outer(row, column) / row.mean())
        u = u / max(1.0, np.sqrt((u * u).mean()))
        m = b1 * m * scale + (1 - b1) * u
        p = p - rate * (m + decay * p)
        yield p
        scale = np.abs(m).max(0) / 127 if int8 else np.ones(p.shape[1])
        m = np.round(m / scale) if int8 else m


@pytest.mark.parametrize("moment", MOMENTS)
def test_partis_recipe_is_its_formula(moment):
    """Section 4.1: betas (0.9, 0.96), decay 4.5e-2, gradients clipped to a norm of 4, a schedule."""
    optim = Adafactor(
        learning_rate=0.05, warmup=Duration(3), schedule="exponential", final=0.1, weight_decay=0.045, clip=4.0, moment=moment, min_dim=16
    )
    rate = optim.rate(9, lambda duration: duration.steps(1, None, 9))
    p, grads = normal(0, 40, 16), spiked((40, 16), 9)
    _, found, _ = run(optim.make(rate), {"w": p}, [{"w": g} for g in grads])
    clipped = [g * min(1, 4 / np.linalg.norm(g)) for g in grads]
    for ours, expected in zip(found, numpy_adafactor(p, clipped, [float(rate(t)) for t in range(9)], moment == "int8"), strict=True):
        # Where a value lies on the middle between two int8 ones, f32 and f64 may round it either way.
        off = np.abs(ours["w"] - expected) > 2e-6 + 2e-5 * np.abs(expected)
        assert off.sum() <= (2 if moment == "int8" else 0)


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_becomes_nan_where_gradients_are_zero(moment):
    optim = Adafactor(moment=moment, weight_decay=0.5)
    params = {"w": normal(0, 128, 128), "b": normal(1, 8), "x": normal(2)}
    zero = jax.tree.map(np.zeros_like, params)
    large = jax.tree.map(lambda p: np.full_like(p, 1e12), params)
    large["w"][5] = 0  # A row that is 1e-54 of its mean.
    _, (first, second, third), _ = run(optim.make(lambda _: 0.1), params, [zero, large, zero])
    for name in ("w", "x"):
        np.testing.assert_allclose(first[name], 0.95 * params[name], rtol=1e-6)
    np.testing.assert_array_equal(first["b"], params["b"])
    assert all(np.isfinite(p).all() for p in jax.tree.leaves((second, third)))
    np.testing.assert_allclose(second["w"][5], 0.95**2 * params["w"][5], rtol=1e-5)


# ---- a stack of layers ----


LAYERS = 3
SHAPES_OF_A_LAYER = {
    "w": (24, 16), "square": (16, 16), "qkv": (16, 3, 2, 8), "qkv_bias": (3, 2, 8), "out": (2, 8, 16), "scale": (24,), "number": (),
}  # fmt: skip


def layered(seed, spike=None):
    """A tensor [LAYERS, ...] of each kind, the layers of very different sizes, the layer `spike` a hundred times as large."""
    sizes = np.where(np.arange(LAYERS) == spike, 100.0, 1.0) * 10.0 ** np.arange(LAYERS)
    draw = lambda i, shape: normal([seed, i], LAYERS, *shape) * sizes.reshape(-1, *(1 for _ in shape))
    return {name: draw(i, shape).astype(np.float32) for i, (name, shape) in enumerate(SHAPES_OF_A_LAYER.items())}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_scanned_stack_takes_the_steps_of_its_layers(moment):
    """Three layers, and factoring from three on: a vector of each layer must not be taken for a matrix of the stack."""
    tx = Adafactor(moment=moment, min_dim=3).scaling()
    grads = [layered(1), layered(2), layered(3, spike=1), layered(4)]
    apart = lambda tree: [jax.tree.map(lambda x: x[i], tree) for i in range(LAYERS)]  # noqa: B023
    together, _, state = run(tx, {"stack": {"blocks": layered(0)}}, [{"stack": {"blocks": g}} for g in grads])
    alone, _, _ = run(tx, {"layers": apart(layered(0))}, [{"layers": apart(g)} for g in grads])
    for step, (a, b) in enumerate(zip(together, alone, strict=True)):
        expected = jax.tree.map(lambda *x: jnp.stack(x), *b["layers"])
        for name, value in a["stack"]["blocks"].items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=f"{name} at step {step}")
    if moment == "int8":
        kept = {name: x.shape for name, x in state[1].scales["stack"]["blocks"].items()}
        assert (kept["w"], kept["qkv"], kept["scale"], kept["number"]) == ((3, 1, 16), (3, 1, 3, 2, 8), (3, 1), (3,))


def test_what_is_stacked_is_what_the_model_scans():
    boxed = jax.eval_shape(Tower((2, 2), 3, 8, 2, 16, 4).init, jax.random.key(0), jnp.zeros((1, 4, 12)))["params"]
    found, axes = Adafactor().stacked(nn.unbox(boxed)), logical_axes(boxed)
    scanned = jax.tree.map(lambda _, names: names[0] == "layers", found, axes)
    assert found == scanned and {True, False} == set(jax.tree.leaves(scanned))


def test_a_number_is_no_stack():
    with pytest.raises(ConfigError, match="matches quantizer/beta, a single number"):
        Adafactor(scanned="beta").scaling().init({"quantizer": {"beta": jnp.zeros(())}})


# ---- int8 ----


@pytest.mark.parametrize("shape", [(300, 7), (5,), (4, 3, 2), ()])
def test_rounding_is_to_the_nearest_of_127_steps_a_side(shape):
    x = normal(0, *shape) * np.exp(normal(1, *shape[-1:], scale=5.0))  # Columns of very different sizes.
    values, scales = quantize(jnp.asarray(x))
    assert values.dtype == jnp.int8 and scales.dtype == jnp.float32 and scales.shape == (1,) * bool(shape) + shape[1:]
    assert (np.abs(values * scales - x) <= 0.5001 * scales).all()
    np.testing.assert_array_equal(np.abs(np.asarray(values, int)).max(axis=0 if shape else None), STEPS)
    again, _ = quantize(values * scales)
    np.testing.assert_array_equal(again, values)


def test_columns_of_zeros_stay_zero():
    with jax.debug_nans(True):  # 0 / 0 would be lost in the cast to int8, but not to those who look for it.
        values, scales = quantize(jnp.array([[0.0, 1.0, 1e-44], [0.0, -2.0, 0.0]]))
    np.testing.assert_allclose(values * scales, [[0, 64 * 2 / 127, 0], [0, -2, 0]], rtol=1e-6)


def test_the_step_is_the_average_before_rounding_and_its_error_stays_bounded():
    """A kept value is off by half a scale, a step by what is left of all past ones: 0.9 / (1 - 0.9) halves at most."""
    tx, exact = int8_ema(0.9, lambda tree: jax.tree.map(lambda _: False, tree)), optax.ema(0.9, debias=False)
    grads = [normal(i, 50, 3) for i in range(200)]
    (found, _, _), (expected, _, _) = (run(t, np.zeros((50, 3), np.float32), grads) for t in (tx, exact))
    np.testing.assert_array_equal(found[0], expected[0])
    scale = max(np.abs(x).max() for x in expected) / STEPS
    errors = [np.abs(a - b).max() for a, b in zip(found, expected, strict=True)]
    assert 0 < errors[1] <= 0.4501 * scale and max(errors) < 4.5 * scale


def test_the_moment_takes_a_quarter_of_the_memory():
    bytes_of = lambda state: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    params = {"w": jax.ShapeDtypeStruct((1024, 4096), jnp.float32), "blocks": {"w": jax.ShapeDtypeStruct((6, 512, 512), jnp.float32)}}
    sizes = {m: bytes_of(jax.eval_shape(Adafactor(moment=m).scaling().init, params)) for m in MOMENTS}
    rest = bytes_of(jax.eval_shape(Adafactor(b1=0.0).scaling().init, params))
    assert rest < 0.01 * sizes["f32"]
    assert 0.25 <= (sizes["int8"] - rest) / (sizes["f32"] - rest) < 0.252


def test_training_with_int8_ends_where_f32_does():
    """Noisy regression: from 32 both come to the noise, 0.01, and within a thousandth of each other."""
    x = jnp.asarray(normal(0, 512, 32))
    y = x @ normal(1, 32, 8) + normal(2, 512, 8, scale=0.1)
    loss = lambda w, rows: jnp.square(x[rows] @ w - y[rows]).mean()
    ends = {}
    for moment in MOMENTS:
        optim = Adafactor(learning_rate=0.05, schedule="cosine", final=0.0, weight_decay=0.0, moment=moment, min_dim=8)
        tx = optim.make(optim.rate(300, lambda duration: duration.steps(1, None, 300)))

        def step(carry, key, tx=tx):
            w, state = carry
            update, state = tx.update(jax.grad(loss)(w, jax.random.choice(key, 512, (64,))), state, w)
            return (w + update, state), None

        w = jnp.zeros((32, 8))
        (w, _), _ = jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), jax.random.split(jax.random.key(0), 300)))(w)  # noqa: B023
        ends[moment] = float(loss(w, jnp.arange(512)))
    assert ends["f32"] < 0.02 and ends["int8"] == pytest.approx(ends["f32"], rel=1e-3)


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    tx = Adafactor(moment="int8", min_dim=4).make(lambda _: 0.1)
    tree = lambda seed: {"blocks": layered(seed), "w": normal(seed, 8, 8)}
    _, after, state = run(tx, tree(0), [tree(1), tree(2)])
    checkpoints = Checkpointer(tmp_path)
    checkpoints.save(2, state, {}, wait=True)
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)
    restored = checkpoints.load(2, abstract)
    assert np.dtype(np.int8) in {x.dtype for x in jax.tree.leaves(restored)}
    step = jax.jit(tx.update)
    jax.tree.map(np.testing.assert_array_equal, step(tree(3), restored, after[-1]), step(tree(3), state, after[-1]))
