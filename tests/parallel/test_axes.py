"""Every axis: what `tensor` splits by position, what must divide and what is proposed, slices of a pod, pictures on all devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from vimlab.nn.transformer import Stack
from vimlab.parallel import mesh as meshes
from vimlab.parallel import rules
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import ShardingError, nearest, open_spec


def test_activations_around_norms_are_split_by_position():
    """Parti's second dimension: of eight positions each of four devices normalises two; heads and hidden widths see all."""
    stack, x = Stack(2, 4, 48), jnp.ones((2, 8, 32))
    boxed = jax.eval_shape(stack.init, jax.random.key(0), x)["params"]
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    layout = rules.param_shardings(mesh, jax.eval_shape(nn.unbox, boxed), rules.logical_axes(boxed))
    params = jax.tree.map(lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s), jax.eval_shape(nn.unbox, boxed), layout)
    with jax.set_mesh(mesh):
        text = jax.jit(lambda p, x: stack.apply({"params": p}, x)).lower(params, x).compile().as_text()
    assert "f32[1,2,32]" in text  # Residuals and norms: one example, two positions.
    assert "f32[1,8,12]" in text  # The perceptron: all positions, a quarter of its hidden width.
    assert "f32[1,8,48]" not in text


def test_what_the_compiler_is_asked_for():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)).abstract_mesh
    assert open_spec((8, 6, 4), ("batch", "act_length", "act_embed"), mesh) == P(("data", "stage", "fsdp"), "tensor", None)
    assert open_spec((8, 1, 4), ("batch", "act_length", "act_embed"), mesh) == P(("data", "stage", "fsdp"), None, None)  # Decoding.
    assert open_spec((8, 4), ("pictures", None), mesh) == P(("data", "stage", "fsdp", "tensor"), None)
    assert open_spec((4, 4), ("pictures", None), mesh) == P(("data", "stage", "fsdp"), None)
    seen = []

    def inside(x):
        seen.append(open_spec((8, 6), ("batch", "act_heads"), jax.sharding.get_abstract_mesh()))
        return x

    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        jax.eval_shape(jax.shard_map(inside, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")), axis_names={"data", "fsdp", "stage"}), jnp.ones(8))
    assert seen == [P(None, "tensor")]


def heads_of(heads: int, width: int = 32):
    boxed = jax.eval_shape(Stack(2, heads, 4 * width).init, jax.random.key(0), jnp.zeros((1, 4, width)))["params"]
    return jax.eval_shape(nn.unbox, boxed), rules.logical_axes(boxed)


def test_heads_and_widths_must_divide():
    with pytest.raises(ShardingError, match="tensor=4, which does not divide the number of heads, 2, of blocks.attention.*; a mesh such as data=4, tensor=2 does"):
        rules.param_shardings(make_mesh(MeshConfig(tensor=4)), *heads_of(2))
    with pytest.raises(ShardingError, match="fsdp=8, which does not divide the width, 36, of .*; a mesh such as data=2, fsdp=4 does"):
        rules.param_shardings(make_mesh(MeshConfig(fsdp=8)), *heads_of(2, 36))
    with pytest.raises(ShardingError, match="fsdp=2 x stage=4, which does not divide the width, 36, of"):
        rules.param_shardings(make_mesh(MeshConfig(data=1, fsdp=2, stage=4)), *heads_of(2, 36))
    rules.param_shardings(make_mesh(MeshConfig(tensor=2)), *heads_of(2))


def test_the_nearest_mesh():
    sizes = dict(data=-1, stage=1, fsdp=3, tensor=2)
    assert nearest(sizes, 8) in (dict(data=1, stage=1, fsdp=4, tensor=2), dict(data=2, stage=1, fsdp=2, tensor=2))
    assert nearest(sizes, 8, lambda s: s["tensor"] == 8) == dict(data=1, stage=1, fsdp=1, tensor=8)
    assert nearest(sizes, 8, lambda s: False) is None
    with pytest.raises(ShardingError, match="which is 6 devices, but there are 8; .*, or choose sizes such as data=1, fsdp=4, tensor=2"):
        make_mesh(MeshConfig(data=1, fsdp=3, tensor=2))


def slices(count: int, each: int) -> list:
    """Stand-ins for the devices of several slices, as a runtime numbers them."""
    fake = lambda i: types.SimpleNamespace(id=i, slice_index=i // each, process_index=i // each, platform="cpu", device_kind="cpu")
    return [fake(i) for i in range(count * each)]


@pytest.mark.parametrize("sizes, outer", [((4, 1, 2, 1), 0), ((1, 4, 2, 1), 1), ((2, 2, 1, 2), 0)], ids=str)
def test_data_or_stages_cross_between_slices(sizes, outer):
    devices = meshes._lay_out(dict(zip(rules.MESH_AXES, sizes, strict=True)), slices(2, 4))
    assert devices.shape == sizes
    # Each half of the outer axis is one slice, whole.
    for half, part in enumerate(np.split(devices, 2, outer)):
        assert {d.slice_index for d in part.flat} == {half}


def test_slices_that_no_such_axis_divides():
    with pytest.raises(ShardingError, match="over 2 slices, which neither data nor stage can be divided among; choose sizes such as data=2, tensor=4"):
        meshes._lay_out(dict(data=1, stage=1, fsdp=1, tensor=8), slices(2, 4))
