"""Schedules and optimizers against a few lines of NumPy each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vimlab.config import ConfigError, Duration
from vimlab.optim import Adafactor, AdamW, update_average

STEPS = lambda duration: duration.steps(1, None, 1000)


def rates(optim, steps, total=1000):
    rate = optim.rate(total, STEPS)
    return np.array([float(rate(s)) for s in steps])


def run(optim, params, grads, rate=0.1):
    """The parameters after each of some gradients."""
    tx = optim.make(lambda _: rate)
    state, out = tx.init(params), []
    step = jax.jit(tx.update)
    for grad in grads:
        updates, state = step(grad, state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out


def normal(seed, *shape, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


# ---- schedules ----


def test_cosine_from_the_warm_up_to_the_end():
    """The ViT-VQGAN paper's: linear to 1e-4 in a tenth of the run, then a cosine to half of it."""
    optim = AdamW(learning_rate=1e-4, warmup=Duration(100), final=0.5)
    steps = np.array([0, 49, 99, 100, 325, 550, 775, 1000, 2000])
    progress = np.clip((steps - 100) / 900, 0, 1)
    expected = 1e-4 * np.minimum(1, (steps + 1) / 100) * (0.75 + 0.25 * np.cos(np.pi * progress))
    np.testing.assert_allclose(rates(optim, steps), expected, rtol=1e-5)
    np.testing.assert_allclose(rates(optim, [99, 550, 1000]), [1e-4, 0.75e-4, 0.5e-4], rtol=1e-5)


def test_exponential_from_its_own_start():
    """The transformers': constant to step 200, then by equal factors to 1/40 of the peak."""
    optim = AdamW(learning_rate=2.0, warmup=Duration(10, "percent"), schedule="exponential", final=0.025, decay_start=Duration(200))
    np.testing.assert_allclose(rates(optim, [99, 150, 200]), 2.0, rtol=1e-5)
    values = rates(optim, [200, 400, 600, 800, 1000])
    np.testing.assert_allclose(values[1:] / values[:-1], 0.025**0.25, rtol=1e-4)
    np.testing.assert_allclose(values[-1], 0.05, rtol=1e-4)


def test_constant_and_no_warm_up():
    np.testing.assert_allclose(rates(AdamW(learning_rate=3e-4, schedule="constant"), [0, 10, 1000]), 3e-4, rtol=1e-6)
    assert rates(AdamW(learning_rate=3e-4, schedule="constant", warmup=Duration(4)), [0]) == pytest.approx(0.75e-4)


@pytest.mark.parametrize("bad", [dict(learning_rate=0.0), dict(final=1.5), dict(final=-0.1), dict(schedule="exponential", final=0.0)])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        AdamW(**bad)


# ---- AdamW ----


def test_adamw_is_the_papers_formula():
    b1, b2, eps, decay, rate = 0.9, 0.99, 1e-8, 0.01, 0.1
    params = {"w": normal(0, 4, 3), "b": normal(1, 3)}
    grads = [{"w": normal(10 + i, 4, 3), "b": normal(20 + i, 3)} for i in range(3)]
    optim = AdamW(b1=b1, b2=b2, epsilon=eps, weight_decay=decay)
    found = run(optim, params, grads, rate)
    for name, wd in (("w", decay), ("b", 0.0)):
        p, m, v = params[name].astype(np.float64), 0.0, 0.0
        for t, grad in enumerate(grads, 1):
            g = grad[name].astype(np.float64)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            p = p - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + wd * p)
            np.testing.assert_allclose(found[t - 1][name], p, rtol=1e-5, atol=1e-6)


def test_decay_is_decoupled_and_only_for_weights():
    """With zero gradients, what decays shrinks by rate times decay, and nothing else moves."""
    tree = {
        "encoder": {"embed": {"w": jnp.ones(2), "b": jnp.ones(2)}, "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}},
        "attention": {"qkv": jnp.ones(2), "qkv_bias": jnp.ones(2), "out": jnp.ones(2), "out_bias": jnp.ones(2)},
        "quantizer": {"codebook": jnp.ones(2), "map": jnp.ones(2)},
        "positions": jnp.ones(2),
    }
    (after,) = run(AdamW(weight_decay=0.5), tree, [jax.tree.map(jnp.zeros_like, tree)], rate=0.1)
    decayed = {jax.tree_util.keystr(path) for path, x in jax.tree_util.tree_leaves_with_path(after) if x[0] != 1}
    assert decayed == {"['encoder']['embed']['w']", "['attention']['qkv']", "['attention']['out']", "['quantizer']['map']", "['positions']"}
    np.testing.assert_allclose(after["attention"]["qkv"], 0.95, rtol=1e-6)


# ---- Adafactor ----


def numpy_adafactor(p, grads, rate, b1, b2, decay, clip=1.0, eps=1e-30):
    """Factored second moments (rows and columns), decay b2 with Adam's correction, RMS clipping, then a first moment."""
    p, m, row, column, full = p.astype(np.float64), 0.0, 0.0, 0.0, 0.0
    for t, grad in enumerate(grads):
        g = grad.astype(np.float64)
        b = b2 * (1 - b2**t) / (1 - b2 ** (t + 1))
        square = g * g + eps
        if min(p.shape) >= 128 and p.ndim == 2:
            row, column = b * row + (1 - b) * square.mean(1), b * column + (1 - b) * square.mean(0)
            v = np.outer(row, column) / row.mean()
        else:
            full = b * full + (1 - b) * square
            v = full
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt((u * u).mean()) / clip)
        m = b1 * m + (1 - b1) * u
        p = p - rate * (m + decay * p)
        yield p


@pytest.mark.parametrize("shape, scale", [((256, 128), 1.0), ((130, 260), 1e-4), ((64, 128), 1.0), ((200,), 10.0)])
def test_adafactor_factored_and_not(shape, scale):
    optim = Adafactor(b1=0.9, b2=0.96, weight_decay=0.045)
    p, grads = normal(0, *shape), [normal(i + 1, *shape, scale=scale * (1 + 3 * (i == 2))) for i in range(4)]
    found = run(optim, {"w": p}, [{"w": g} for g in grads], rate=0.01)
    for ours, expected in zip(found, numpy_adafactor(p, grads, 0.01, 0.9, 0.96, 0.045), strict=True):
        np.testing.assert_allclose(ours["w"], expected, rtol=2e-5, atol=2e-6)


def test_adafactor_keeps_a_row_and_a_column_in_place_of_the_matrix():
    state = jax.eval_shape(Adafactor(b1=0.0).make(lambda _: 0.1).init, {"w": jnp.zeros((256, 128)), "small": jnp.zeros((64, 128))})
    sizes = sorted(x.size for x in jax.tree.leaves(state) if x.size > 1)
    assert sizes == [128, 256, 64 * 128]


def test_adafactors_update_is_clipped_per_parameter():
    """A gradient a hundred times the past ones would give an update of RMS near 5; it gives one of RMS 1."""
    grads = [normal(1, 40, 40, scale=0.01)] * 20 + [normal(2, 40, 40)]
    optim = Adafactor(b1=0.0, weight_decay=0.0)
    *_, before, after = run(optim, {"w": np.zeros((40, 40), np.float32)}, [{"w": g} for g in grads], rate=1.0)
    assert np.sqrt(np.square(after["w"] - before["w"]).mean()) == pytest.approx(1.0, rel=1e-4)
    *_, before, after = run(
        Adafactor(b1=0.0, weight_decay=0.0, clip_update=100.0), {"w": np.zeros((40, 40), np.float32)}, [{"w": g} for g in grads], rate=1.0
    )
    assert np.sqrt(np.square(after["w"] - before["w"]).mean()) > 3


# ---- what both have ----


def test_gradients_are_clipped_by_their_global_norm():
    """Adafactor without decay and momentum is blind to the scale, Adam's epsilon is not: the first step is g / (|g| + eps)."""
    optim = AdamW(clip=1.0, epsilon=1.0, weight_decay=0.0)
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    grad = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}  # Norm 5.
    (big,) = run(optim, params, [grad], rate=1.0)
    np.testing.assert_allclose(np.concatenate([big["a"], big["b"]]), [-0.6 / 1.6, 0, -0.8 / 1.8], rtol=1e-5)
    (small,) = run(optim, params, [jax.tree.map(lambda g: g / 10, grad)], rate=1.0)
    np.testing.assert_allclose(np.concatenate([small["a"], small["b"]]), [-0.3 / 1.3, 0, -0.4 / 1.4], rtol=1e-5)


def test_average_of_weights():
    average = {"w": jnp.array([1.0, 2.0])}
    for value in (3.0, 5.0):
        average = update_average(average, {"w": jnp.full(2, value)}, 0.75)
    np.testing.assert_allclose(average["w"], [0.75 * (0.75 + 0.75) + 1.25, 0.75 * (1.5 + 0.75) + 1.25])
