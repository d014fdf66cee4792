"""The discriminator: published size, closed-form counts, minibatch-std against NumPy, one device against a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vimlab.losses import adversarial
from vimlab.parallel import rules
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.tokenizers.discriminator import Discriminator, channels_at, discriminator_flops, minibatch_std

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def count(image_size, *widths):
    """Parameters in closed form, block by block."""
    at = lambda size: channels_at(size, *widths)
    total = 3 * at(image_size) + at(image_size)
    for size in (2**k for k in range(3, image_size.bit_length())):
        a, b = at(size), at(size // 2)
        total += (9 * a * a + a) + (9 * a * b + b) + a * b
    c = at(4)
    return total + (9 * (c + 1) * c + c) + (16 * c * c + c) + (c + 1)


def shapes(model, batch=4):
    abstract = jax.ShapeDtypeStruct((batch, model.image_size, model.image_size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), abstract)


def start(model, batch):
    """A jitted model as a function of (parameters, images), its parameters, and images."""
    images = jax.random.uniform(jax.random.key(0), (batch, model.image_size, model.image_size, 3))
    return jax.jit(model.apply), nn.unbox(jax.jit(model.init)(jax.random.key(1), images)), images


# StyleGAN2's 1024 px discriminator has 29.0 M parameters (its code's printed table), the 256 px one 28.9 M.
@pytest.mark.parametrize(
    "image_size, widths, published", [(256, (), 28_864_129), (1024, (), 29_012_513), (32, (), None), (64, (0.25,), None)]
)
def test_parameter_count(image_size, widths, published):
    got = sum(x.size for x in jax.tree.leaves(shapes(Discriminator(image_size, *widths))))
    assert got == count(image_size, *widths)
    assert published is None or got == published


def test_flops_are_those_of_the_convolutions():
    """XLA's own count of the compiled forward pass: it adds filters and pointwise work, and leaves out the taps on padding."""
    model = Discriminator(32, 0.25)
    params = nn.unbox(shapes(model))
    cost = jax.jit(model.apply).lower(params, jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)).compile().cost_analysis()
    ratio = cost["flops"] / (4 * discriminator_flops(32, 0.25))
    assert 0.9 < ratio < 1.1


def test_minibatch_std_matches_numpy():
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 5)).astype(np.float32)
    got = np.asarray(minibatch_std(jnp.asarray(x), 4))
    np.testing.assert_array_equal(got[..., :5], x)
    for g in range(2):
        value = np.sqrt(x[4 * g : 4 * g + 4].var(0) + 1e-8).mean()
        np.testing.assert_allclose(got[4 * g : 4 * g + 4, ..., 5], value, rtol=1e-5)


def test_minibatch_std_does_not_see_other_groups_and_refuses_part_groups():
    apply, params, images = start(Discriminator(8, 0.01), 8)
    apart = jnp.concatenate([apply(params, images[:4]), apply(params, images[4:])])
    np.testing.assert_allclose(apply(params, images), apart, rtol=1e-5)
    with pytest.raises(ValueError, match="6 pictures is not a multiple of the discriminator's minibatch_group of 4"):
        apply(params, images[:6])


@pytest.mark.parametrize("size", [4, 48, 0])
def test_image_size_must_be_a_power_of_two(size):
    with pytest.raises(ValueError, match=f"image_size is {size}"):
        shapes(Discriminator(size))


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(16, 16, 3\), not \(8, 8, 3\)"):
        Discriminator(16, 0.01).init(jax.random.key(0), jnp.zeros((4, 8, 8, 3)))


def test_bf16_is_near_f32_and_logits_are_f32():
    apply, params, images = start(Discriminator(8, 0.02), 4)
    exact, rough = apply(params, images), jax.jit(Discriminator(8, 0.02, dtype=jnp.bfloat16).apply)(params, images)
    assert exact.shape == (4,) and rough.dtype == exact.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.05)
    assert np.abs(np.asarray(rough - exact)).max() > 0


def test_variance_is_kept_through_the_blocks():
    """Equalised weights, gains and 1/sqrt(2) together keep random inputs' logits within one order of magnitude."""
    model = Discriminator(16, 0.05)
    images = jax.random.uniform(jax.random.key(0), (16, 16, 16, 3))
    draw = jax.jit(lambda key: model.apply(nn.unbox(model.init(key, images)), images))
    logits = [draw(jax.random.key(seed)) for seed in range(4)]
    assert 0.1 < float(jnp.sqrt(jnp.square(jnp.stack(logits)).mean())) < 3


def test_a_mesh_changes_nothing():
    model = Discriminator(8, 0.02)
    images = jax.random.uniform(jax.random.key(0), (8, 8, 8, 3))
    boxed = jax.jit(model.init)(jax.random.key(1), images)
    params = nn.unbox(boxed)

    def step(params, images):
        def loss(p):
            logits = model.apply(p, images)
            penalty = adversarial.r1_penalty(lambda x: model.apply(p, x), images)
            return adversarial.generator_loss(logits).mean() + penalty.mean(), logits

        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, gradient

    alone = jax.jit(step)(params, images)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        shardings = rules.param_shardings(mesh, params, rules.logical_axes(boxed))
        assert any(not s.is_fully_replicated for s in jax.tree.leaves(shardings))
        spread = jax.jit(step)(jax.device_put(params, shardings), jax.device_put(images, rules.batch_sharding(mesh)))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, rtol=2e-4)
