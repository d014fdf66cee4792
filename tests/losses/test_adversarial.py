"""Adversarial losses against their closed forms, and R1 against a loop of single gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vimlab.losses import adversarial
from vimlab.nn.conv import conv2d
from vimlab.tokenizers.discriminator import Discriminator

pytestmark = pytest.mark.usefixtures("compiled_quickly")

REAL, FAKE = jnp.array([0.3, -2.0, 5.0]), jnp.array([-0.7, 1.5, 0.0])


def test_softplus_is_the_logistic_loss():
    prob = lambda x: 1 / (1 + np.exp(-np.asarray(x, np.float64)))
    expected = -np.log(prob(REAL)) - np.log(1 - prob(FAKE))
    np.testing.assert_allclose(adversarial.discriminator_loss(REAL, FAKE), expected, rtol=1e-5)
    np.testing.assert_allclose(adversarial.generator_loss(FAKE), -np.log(prob(FAKE)), rtol=1e-5)


def test_hinge():
    expected = np.maximum(0, 1 - np.asarray(REAL)) + np.maximum(0, 1 + np.asarray(FAKE))
    np.testing.assert_allclose(adversarial.discriminator_loss(REAL, FAKE, "hinge"), expected, rtol=1e-6)
    np.testing.assert_allclose(adversarial.generator_loss(FAKE, "hinge"), -FAKE)


def test_softplus_is_stable_at_large_logits():
    big = jnp.array([1e4, -1e4])
    np.testing.assert_allclose(adversarial.generator_loss(big), [0.0, 1e4])
    np.testing.assert_allclose(adversarial.discriminator_loss(big, big), [1e4, 1e4])
    np.testing.assert_allclose(jax.grad(lambda x: adversarial.generator_loss(x).sum())(big), [0.0, -1.0])


@pytest.mark.parametrize("form", ["softplus", "hinge"])
def test_each_network_is_pushed_the_right_way(form):
    zero = jnp.zeros(1)
    assert jax.grad(lambda x: adversarial.generator_loss(x, form).sum())(zero)[0] < 0
    real, fake = jax.grad(lambda r, f: adversarial.discriminator_loss(r, f, form).sum(), (0, 1))(zero, zero)
    assert real[0] < 0 < fake[0]


def test_r1_of_a_quadratic_is_its_closed_form():
    images = jax.random.normal(jax.random.key(0), (3, 2, 2, 3))
    penalty = adversarial.r1_penalty(lambda x: 1.5 * jnp.square(x).sum((1, 2, 3)), images)
    np.testing.assert_allclose(penalty, 9 * np.square(images).sum((1, 2, 3)), rtol=1e-5)


def small_discriminator(batch, group):
    """A jitted 8 px discriminator of 8 channels as a function of (parameters, images), its parameters, and images."""
    model = Discriminator(8, 0.004, minibatch_group=group)
    images = jax.random.uniform(jax.random.key(0), (batch, 8, 8, 3))
    return jax.jit(model.apply), nn.unbox(jax.jit(model.init)(jax.random.key(1), images)), images


def test_r1_is_per_example_and_equals_a_loop_of_gradients():
    apply, params, images = small_discriminator(3, group=1)
    single = jax.jit(jax.grad(lambda x: apply(params, x[None])[0]))
    loop = [np.square(single(image)).sum() for image in images]
    penalty = jax.jit(lambda p, images: adversarial.r1_penalty(lambda x: apply(p, x), images))
    np.testing.assert_allclose(penalty(params, images), loop, rtol=1e-5)
    # The size of the batch does not enter.
    np.testing.assert_allclose(penalty(params, images[:1]), loop[:1], rtol=1e-5)


def test_r1_with_coupled_examples_is_the_gradient_of_the_sum():
    apply, params, images = small_discriminator(4, group=2)
    penalty = jax.jit(lambda p: adversarial.r1_penalty(lambda x: apply(p, x), images))(params)
    jacobian = jax.jit(jax.jacrev(lambda x: apply(params, x)))(images)  # [logit, picture, H, W, C]
    np.testing.assert_allclose(penalty, np.square(jacobian.sum(0)).sum((1, 2, 3)), rtol=1e-5)
    own = np.stack([np.square(jacobian[i, i]).sum() for i in range(4)])
    assert np.abs(penalty / own - 1).max() > 1e-4, "minibatch-std must couple the pictures of a group"


def test_r1_has_the_right_gradient_to_the_parameters():
    """Against finite differences, on smooth logits: with leaky ReLU R1 jumps where a unit changes sides."""
    images = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
    w, direction = jax.random.normal(jax.random.key(1), (2, 3, 3, 3, 4)) / 5
    logits = lambda w, x: jnp.tanh(conv2d(jnp.tanh(conv2d(x, w, 2, ((1, 1), (1, 1)))), w.swapaxes(2, 3), 1)).sum((1, 2, 3))
    loss = jax.jit(lambda w: adversarial.r1_penalty(lambda x: logits(w, x), images).sum())
    slope = jnp.vdot(jax.jit(jax.grad(loss))(w), direction)
    np.testing.assert_allclose(slope, (loss(w + 1e-2 * direction) - loss(w - 1e-2 * direction)) / 2e-2, rtol=0.01)
