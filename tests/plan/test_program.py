"""FLOPs, traffic and live arrays of small programs, counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vimlab.plan.program import Split, Work, peak, work

F32 = jnp.float32
A, B = jax.ShapeDtypeStruct((8, 16), F32), jax.ShapeDtypeStruct((16, 32), F32)


def jaxpr(function, *args):
    return jax.make_jaxpr(function)(*args).jaxpr


def test_a_product():
    assert work(jaxpr(jnp.matmul, A, B)) == Work(2 * 8 * 16 * 32, 4 * (8 * 16 + 16 * 32 + 8 * 32))


def test_loops_gradients_and_recomputation_are_counted():
    w = jax.ShapeDtypeStruct((5, 16, 16), F32)
    one = 2 * 8 * 16 * 16

    def loss(w, x, remat):
        block = lambda x, w: (jnp.tanh(x @ w), None)
        return jax.lax.scan(jax.checkpoint(block) if remat else block, x, w)[0].sum()

    assert work(jaxpr(lambda w, x: loss(w, x, False), w, A)).flops == 5 * one
    assert work(jaxpr(jax.grad(lambda w, x: loss(w, x, False)), w, A)).flops == (5 * 2 + 5) * one, "to the input, which the first needs too"
    assert work(jaxpr(jax.grad(lambda w, x: loss(w, x, True)), w, A)).flops == (5 * 3 + 5) * one


def test_a_convolution():
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    image, kernel = jax.ShapeDtypeStruct((1, 8, 8, 4), F32), jax.ShapeDtypeStruct((3, 3, 4, 6), F32)
    assert work(jaxpr(conv, image, kernel)).flops == 2 * (4 * 4 * 6) * (3 * 3 * 4)


def test_branches():
    product, nothing = lambda a, b: (a @ b).sum(), lambda a, b: F32(0)
    often = jaxpr(lambda p, a, b: jax.lax.cond(p, product, nothing, a, b), jax.ShapeDtypeStruct((), bool), A, B)
    assert work(often).flops == 2 * 8 * 16 * 32
    assert work(often, rare=1 / 16).flops == 8 * 16 * 32 / 8
    either = jaxpr(lambda p, a, b: jax.lax.cond(p, product, lambda a, b: (a[:4] @ b).sum(), a, b), jax.ShapeDtypeStruct((), bool), A, B)
    assert work(either, rare=1 / 16).flops == 2 * 8 * 16 * 32, "a choice of two ways is no rarity"


def test_loops_of_unknown_length_are_told():
    assert work(jaxpr(lambda a: jax.lax.while_loop(lambda a: a.sum() > 0, lambda a: a - 1, a), A)).unknown == 1


def test_the_worst_moment_of_a_chain():
    """x @ x of f32[64,64] in a chain: at any time the result and what it is made from, 16 KiB each."""
    x = jax.ShapeDtypeStruct((64, 64), F32)
    whole = lambda shape: 1
    alive = peak(jaxpr(lambda x: ((x @ x) @ x) @ x, x), whole)
    assert sum(a.bytes for a in alive) == 2 * 64 * 64 * 4
    kept = peak(jaxpr(lambda x: (y := x @ x, z := y @ x, y @ z), x), whole)
    assert sum(a.bytes for a in kept) == 3 * 64 * 64 * 4
    assert kept[0].shape == (64, 64) and kept[0].name.endswith("dot_general")


def test_what_devices_compute_on_their_own():
    """Under shard_map shapes are a device's: its FLOPs count once a device, its outputs by their specs."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    local = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False)
    program = jaxpr(lambda a, b: local(a, b) * 2, A, B)
    assert work(program).flops == 8 * 2 * 4 * 16 * 32, "fsdp repeats what data has split"
    (split,) = (a for a in peak(program, lambda shape: 1) if a.name.endswith("shard_map"))
    assert split.bytes == 8 * 32 * 4 / 2


@pytest.mark.parametrize(
    "shape, parts", [((64, 10), 8), ((5, 128, 32), 16), ((64, 7, 32), 16), ((32, 48), 4), ((7,), 1)], ids=["rows", "flat rows", "heads", "weight", "vector"]
)
def test_shares_by_shape(shape, parts):
    assert Split(rows=64, batch=8, inner=frozenset({32}), tensor=2, weights=4)(shape) == parts
