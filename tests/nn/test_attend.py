"""Attention: each backend against five lines of NumPy, values and gradients; what each refuses, and how 'auto' chooses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimlab.config import ConfigError
from vimlab.nn.attend import BACKENDS, attention, choose_backend
from vimlab.nn.masks import Mask, causal, conv_offsets, full
from vimlab.parallel.mesh import MeshConfig, make_mesh


def conv(length, width, kernel):
    return Mask((0,) * length, (False,) * length, conv_offsets(width, kernel))


def reference(q, k, v, allowed=True):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.where(allowed, q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def qkv(*shape, dtype=jnp.float32):
    return tuple(normal(i, *shape, dtype=dtype) for i in range(3))


def plain(q, k, v, allowed):
    """The formula again, for JAX to differentiate."""
    logits = jnp.where(allowed, jnp.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5, -jnp.inf)
    return jax.nn.softmax(logits) @ v


def with_gradients(function, *inputs):
    def both(*inputs):
        values, pull = jax.vjp(function, *inputs)
        return values, *pull(jnp.sin(jnp.arange(values.size, dtype=values.dtype).reshape(values.shape)))

    return jax.jit(both)(*inputs)


def assert_close(found, expected, tolerance=2e-5):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(np.abs(b).max()))


MASKS = {"none": None, "causal": causal(12), "full": full(12), "conv": conv(12, 4, 3),
         "blocks": Mask((0,) * 4 + (1,) * 8, (True,) * 4 + (False,) * 8)}


@pytest.mark.parametrize("lengths", [None, (12, 1, 7)])
@pytest.mark.parametrize("name", MASKS)
def test_xla_is_the_formula(name, lengths):
    inputs, mask = qkv(3, 2, 12, 8), MASKS[name]
    allowed = np.ones((3, 1, 12, 12), bool) & (True if mask is None else mask.allowed())
    if lengths:
        allowed &= np.arange(12) < np.reshape(lengths, (3, 1, 1, 1))
    lengths = lengths and jnp.array(lengths)
    found = with_gradients(lambda *x: attention(*x, mask=mask, lengths=lengths), *inputs)
    assert all(bool(jnp.isfinite(x).all()) for x in found)
    sees = allowed.any(-1, keepdims=True)  # Of a query that sees nothing only finiteness is promised.
    np.testing.assert_allclose(np.where(sees, found[0], 0), np.where(sees, reference(*inputs, allowed | ~sees), 0), rtol=1e-4, atol=1e-5)
    if sees.all():
        assert_close(found, with_gradients(lambda *x: plain(*x, allowed), *inputs))


def test_xla_cross_attention_ignores_padding():
    q, k, v = normal(0, 2, 3, 5, 8), normal(1, 2, 3, 7, 8), normal(2, 2, 3, 7, 4)
    found = attention(q, k, v, lengths=jnp.array([4, 7]))
    for row, n in enumerate((4, 7)):
        np.testing.assert_allclose(found[row], reference(q[row], k[row, :, :n], v[row, :, :n]), rtol=1e-4, atol=1e-5)
    poisoned = attention(q, k.at[0, :, 4:].set(1e4), v.at[0, :, 4:].set(1e4), lengths=jnp.array([4, 7]))
    np.testing.assert_array_equal(found, poisoned)


def test_xla_keeps_its_softmax_in_f32():
    """Logits of 256 and 257 are one number in bf16."""
    q = jnp.full((1, 1, 2, 4), 2.0, jnp.bfloat16)
    k = jnp.array([[256.0, 0, 0, 0], [256.0, 1.0, 0, 0]], jnp.bfloat16)[None, None]
    v = jnp.array([[0.0] * 4, [1.0] * 4], jnp.bfloat16)[None, None]
    found = attention(q, k, v, mask=full(2))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), 1 / (1 + np.exp(-1.0)), rtol=0.01)


SPLASH_MASKS = {"none": None, "full": full(256), "causal": causal(256), "conv": conv(256, 16, 5),
                "blocks": Mask((0,) * 128 + (1,) * 128, (True,) * 128 + (False,) * 128)}


@pytest.mark.parametrize("name", SPLASH_MASKS)
def test_splash_is_the_formula(name):
    """In Pallas' interpreter; heads of 24 dimensions, which no tile of a TPU divides."""
    inputs, mask = qkv(2, 2, 256, 24), SPLASH_MASKS[name]
    allowed = True if mask is None else mask.allowed()
    found = with_gradients(lambda *x: attention(*x, mask=mask, backend="splash", interpret=True), *inputs)
    np.testing.assert_allclose(found[0], reference(*inputs, allowed), rtol=1e-4, atol=1e-5)
    assert_close(found, with_gradients(lambda *x: plain(*x, allowed), *inputs))


@pytest.mark.parametrize("length", [128, 640, 1024])
def test_splash_blocks_of_every_size(length):
    inputs, mask = qkv(1, 1, length, 8), conv(length, 32, 11)
    found = attention(*inputs, mask=mask, backend="splash", interpret=True)
    np.testing.assert_allclose(found, reference(*inputs, mask.allowed()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["causal", "conv"])
def test_splash_on_a_mesh_runs_on_each_devices_part(name):
    """Rematerialised and scanned, as the stack has it."""
    inputs, mask = qkv(4, 2, 256, 16), SPLASH_MASKS[name]

    def layers(attend):
        layer = jax.checkpoint(lambda x, k, v: x + attend(x, k, v))
        return lambda q, k, v: jax.lax.scan(lambda x, _: (layer(x, k, v), None), q, None, length=2)[0]

    expected = with_gradients(layers(lambda *x: plain(*x, mask.allowed())), *inputs)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        found = with_gradients(layers(lambda *x: attention(*x, mask=mask, backend="splash", interpret=True)), *inputs)
    assert_close(found, expected, 1e-4)
    for x in found:
        assert x.sharding.shard_shape(x.shape) == (1, 1, 256, 16)


def test_splash_bf16_is_near():
    inputs = qkv(1, 2, 256, 16, dtype=jnp.bfloat16)
    found = attention(*inputs, mask=causal(256), backend="splash", interpret=True)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), reference(*inputs, causal(256).allowed()), atol=0.03)


CUDNN_MASKS = {(False, False): "NO_MASK", (True, False): "CAUSAL", (False, True): "PADDING", (True, True): "PADDING_CAUSAL"}


@pytest.mark.parametrize("mask", [None, causal(64), full(64)])
@pytest.mark.parametrize("lengths", [False, True])
def test_cudnn_is_lowered_to_its_kernel(monkeypatch, mask, lengths):
    """For the forward and the backward pass, with the mask in words rather than in an array."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    x, n = jax.ShapeDtypeStruct((2, 4, 64, 32), jnp.bfloat16), jax.ShapeDtypeStruct((2,), jnp.int32)

    def step(q, k, v, n):
        values, pull = jax.vjp(lambda *x: attention(*x, mask=mask, lengths=n if lengths else None, backend="cudnn"), q, k, v)
        return values, pull(q)

    lowered = jax.jit(step).trace(x, x, x, n).lower(lowering_platforms=("cuda",))
    text = lowered.as_text().replace("\\22", '"')
    assert re.findall(r"custom_call @(__cudnn\S+?)\(", text) == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert set(re.findall(r'"mask_type": "(\w+)"', text)) == {CUDNN_MASKS[mask is not None and mask.is_causal, lengths]}
    assert lowered.out_info[0].shape == x.shape and "dot_general" not in text


def test_kernels_do_not_fall_back():
    inputs = qkv(1, 1, 128, 8, dtype=jnp.bfloat16)
    with pytest.raises(RuntimeError, match="cuDNN is not detected|not found for platform cpu"):
        attention(*inputs, backend="cudnn")
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU"):
        attention(*inputs, backend="splash")


def test_attention_refuses_what_its_backend_cannot():
    q, k, v = qkv(1, 1, 128, 8)
    with pytest.raises(ConfigError, match="attention backend 'flash' is not one of"):
        attention(q, k, v, backend="flash")
    with pytest.raises(ConfigError, match="'cudnn' cannot be used here, because it computes in bfloat16 or float16, not in float32"):
        attention(q, k, v, backend="cudnn")
    with pytest.raises(ConfigError, match="'splash' cannot be used here, because it takes no lengths"):
        attention(q, k, v, lengths=jnp.ones(1, jnp.int32), backend="splash")
    with pytest.raises(ValueError, match="a mask over 128 positions was given 1 queries and 128 keys"):
        attention(q[:, :, :1], k, v, mask=causal(128))


CASE = {"mask": None, "lengths": False, "head_dim": 64, "length": 1024, "dtype": "bfloat16"}


@pytest.mark.parametrize("platform, change, expected", [
    ("tpu", {}, "splash"),
    ("tpu", {"mask": conv(1024, 32, 11), "dtype": "float32", "head_dim": 80}, "splash"),
    ("tpu", {"lengths": True}, "xla"),
    ("tpu", {"length": 1025}, "xla"),
    ("tpu", {"keys": 128}, "xla"),
    ("tpu", {"dtype": "float16"}, "xla"),
    ("gpu", {"mask": causal(1024)}, "cudnn"),
    ("cuda", {"mask": full(1024), "lengths": True, "keys": 77, "dtype": jnp.float16}, "cudnn"),
    ("gpu", {"mask": conv(1024, 32, 11)}, "xla"),
    ("gpu", {"dtype": jnp.float32}, "xla"),
    ("gpu", {"head_dim": 136}, "xla"),
    ("gpu", {"head_dim": 60}, "xla"),
    ("rocm", {}, "xla"),
    ("cpu", {}, "xla"),
])
def test_auto_takes_the_platforms_kernel_where_it_can(platform, change, expected):
    case = CASE | change
    assert choose_backend("auto", platform=platform, **case) == expected
    # What 'auto' takes can be asked for, and what it does not take of the platform's own cannot; the formula always can.
    assert choose_backend(expected, platform=platform, **case) == expected
    assert choose_backend("xla", platform=platform, **case) == "xla"
    for other in set(BACKENDS) - {"xla", expected}:
        with pytest.raises(ConfigError, match=f"^attention backend '{other}' cannot be used here, because "):
            choose_backend(other, platform=platform, **case)


@pytest.mark.parametrize("requested, platform, change, reason", [
    ("cudnn", "cpu", {}, "it runs on gpu, not on cpu"),
    ("splash", "gpu", {}, "it runs on tpu, not on gpu"),
    ("cudnn", "gpu", {"mask": conv(1024, 32, 11)}, "of masks it knows only the causal one"),
    ("cudnn", "gpu", {"head_dim": 60}, "it needs heads of a multiple of 8 and at most 128 dimensions, not 60"),
    ("splash", "tpu", {"length": 1025}, "it needs a multiple of 128 positions, not 1025"),
    ("splash", "tpu", {"keys": 128}, "it is for self-attention, not for 1024 queries and 128 keys"),
    ("splash", "tpu", {"dtype": jnp.float16}, "it computes in bfloat16 or float32, not in float16"),
])
def test_a_refusal_says_why(requested, platform, change, reason):
    with pytest.raises(ConfigError, match=f"because {reason}; choose 'auto' or 'xla'$"):
        choose_backend(requested, platform=platform, **CASE | change)


def test_unknown_backends_are_named():
    with pytest.raises(ConfigError, match=r"unknown attention backend 'flash'; choose 'auto' or one of \('xla', 'cudnn', 'splash'\)"):
        choose_backend("flash", platform="cpu", **CASE)
