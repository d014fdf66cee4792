"""Sharding rules: mistakes raise, optimizer states follow their parameters, replicated bytes are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vimlab.nn.layers import weight
from vimlab.optim import Adafactor, AdamW
from vimlab.parallel import rules
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import RULES, ShardingError, check_sharded, constrain, fit, opt_shardings, spec

WIDE = ("fsdp", "stage")  # What widths are split over.


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def test_specs_follow_the_table():
    assert spec(("embed", "mlp")) == P(WIDE, "tensor")
    assert spec(("batch", "length", None)) == P(("data", "stage", "fsdp"), None, None)
    assert spec(("layers", "embed", None, "heads", "head_dim")) == P(None, WIDE, None, "tensor", None)
    assert spec(()) == P()


def test_the_table_names_mesh_axes_only():
    assert {m for entry in RULES.values() for m in entry} <= set(rules.MESH_AXES)


def test_unknown_axes_raise():
    with pytest.raises(ShardingError, match=r"unknown logical axes \['embd'\]"):
        spec(("embd", "mlp"))
    with pytest.raises(ShardingError, match="unknown logical axes"):
        constrain(jnp.zeros((2, 2)), "batch", "colour")  # Outside any mesh too.


def test_one_mesh_axis_cannot_split_two_dimensions():
    with pytest.raises(ShardingError, match="twice"):
        spec(("embed", "embed"))
    with pytest.raises(ShardingError, match="twice"):
        spec(("batch", "conv_in"))  # Both are over fsdp.


def test_constrain_wants_an_axis_for_each_dimension():
    with pytest.raises(ShardingError, match="given 1 axes"):
        constrain(jnp.zeros((2, 2)), "batch")


def test_constrain_lays_out_inside_a_mesh_and_changes_no_value(mesh):
    x = np.arange(48.0).reshape(8, 6)
    assert constrain(jnp.asarray(x), "batch", "act_mlp").sharding.is_fully_replicated
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(x, "batch", "act_mlp"))(x)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "fsdp"), "tensor")), 2)
    assert {s.data.shape for s in y.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(y, x)


def test_odd_sizes_stay_whole(mesh):
    assert fit(P("fsdp", "tensor"), (6, 4), mesh) == P("fsdp", "tensor")
    assert fit(P("fsdp", "tensor"), (5, 4), mesh) == P(None, "tensor")
    assert fit(P(("data", "fsdp")), (6, 3), mesh) == P(None, None)
    assert fit(P(("data", "fsdp")), (8, 3), mesh) == P(("data", "fsdp"), None)


class Toy(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(1.0)
        w = weight(self, "w", (256, 384), ("embed", "mlp"), init)
        stacked = weight(self, "stacked", (3, 128, 256), ("layers", "embed", "mlp"), init)
        square = weight(self, "square", (128, 128), ("embed", "mlp"), init)
        bias = weight(self, "b", (384,), ("mlp",), init)
        return x.sum() + sum(a.sum() for a in (w, stacked, square, bias))


def toy(mesh):
    boxed = jax.eval_shape(Toy().init, jax.random.key(0), jnp.zeros(1))["params"]
    params = jax.eval_shape(nn.unbox, boxed)
    return params, rules.param_shardings(mesh, params, rules.logical_axes(boxed))


def specs_by_path(tree):
    return {jax.tree_util.keystr(path): s.spec for path, s in jax.tree_util.tree_leaves_with_path(tree)}


def test_parameters_are_laid_out_by_their_axes(mesh):
    assert specs_by_path(toy(mesh)[1]) == {
        "['w']": P(WIDE, "tensor"), "['stacked']": P(None, WIDE, "tensor"), "['square']": P(WIDE, "tensor"), "['b']": P("tensor"),
    }  # fmt: skip


def find(specs, part, name):
    (found,) = [s for path, s in specs.items() if path.endswith(f".{part}['{name}']")]
    return found


def test_adam_moments_lie_like_their_parameters(mesh):
    params, shardings = toy(mesh)
    tx = AdamW(clip=1.0).make(lambda _: 0.1)
    state = opt_shardings(mesh, tx, params, shardings)
    assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(tx.init, params))
    specs = specs_by_path(state)
    for name, sharding in shardings.items():
        assert find(specs, "mu", name) == find(specs, "nu", name) == sharding.spec
    assert all(not any(s) for path, s in specs.items() if path.endswith("count"))


def test_adafactors_moments_are_whole_only_where_they_are_reduced(mesh):
    params, shardings = toy(mesh)
    tx = Adafactor(moment="int8", scanned="stacked").make(lambda _: 0.1)
    shapes, specs = jax.eval_shape(tx.init, params), specs_by_path(opt_shardings(mesh, tx, params, shardings))
    shapes = {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)}
    lies = lambda part, name: (find(shapes, part, name), find(specs, part, name))
    assert lies("rows", "w") == ((256, 1), P(WIDE, None)) and lies("columns", "w") == ((1, 384), P(None, "tensor"))
    assert lies("rows", "stacked") == ((3, 128, 1), P(None, WIDE, None))
    assert lies("columns", "stacked") == ((3, 1, 256), P(None, None, "tensor"))
    # Two equal dimensions are no riddle.
    assert lies("rows", "square") == ((128, 1), P(WIDE, None)) and lies("columns", "square") == ((1, 128), P(None, "tensor"))
    assert lies("rows", "b") == ((384,), P("tensor")) and lies("columns", "b") == ((1,), P(None))
    for name, sharding in shardings.items():
        assert find(specs, "values", name) == sharding.spec
    assert lies("scales", "w") == ((1, 384), P(None, "tensor")) and lies("scales", "b") == ((1,), P(None))
    assert lies("scales", "stacked") == ((3, 1, 256), P(None, None, "tensor"))


@pytest.mark.parametrize(
    "optim", [AdamW(), Adafactor(scanned="stacked"), Adafactor(scanned="stacked", moment="int8")], ids=["adamw", "adafactor", "int8"]
)
def test_a_sharded_optimizer_steps_as_on_one_device(mesh, optim):
    params, shardings = toy(mesh)
    tx = optim.make(lambda _: 0.1)
    draw = lambda seed: {k: np.random.default_rng(seed).normal(size=v.shape).astype(np.float32) for k, v in params.items()}
    values, grads = draw(0), draw(1)
    expected = tx.update(grads, tx.init(values), values)
    states = opt_shardings(mesh, tx, params, shardings)
    with jax.set_mesh(mesh):
        placed = jax.device_put(values, shardings)
        state = jax.jit(tx.init, out_shardings=states)(placed)
        updates, state = jax.jit(tx.update, out_shardings=(shardings, states))(jax.device_put(grads, shardings), state, placed)
    # A value on the middle between two int8 ones may be rounded either way.
    near = lambda a, b: np.testing.assert_allclose(a.astype(float), b, rtol=1e-5, atol=1 if a.dtype == np.int8 else 1e-7)
    jax.tree.map(near, (updates, state), expected)
    assert updates["w"].addressable_shards[0].data.shape == (128, 192)


def test_replicated_bytes_are_counted(mesh):
    replicated = NamedSharding(mesh, P())
    split = NamedSharding(mesh, P("fsdp", None))
    params = {"big": jax.ShapeDtypeStruct((100, 98), jnp.float32), "small": jax.ShapeDtypeStruct((200,), jnp.float32)}
    check_sharded(mesh, params, {"big": split, "small": replicated}, floor=0)  # 200 of 10,000: 2% is allowed.
    with pytest.raises(ShardingError, match="2% of the parameter bytes .* small"):
        check_sharded(mesh, params, {"big": split, "small": replicated}, tolerance=0.019, floor=0)
    with pytest.raises(ShardingError, match=r"98% .* the largest are big \(0\.0 MB\)"):
        check_sharded(mesh, params, {"big": replicated, "small": NamedSharding(mesh, P("tensor"))}, floor=0)
    # Only data parallel: everything is whole, as it should be.
    check_sharded(mesh, params, {"big": replicated, "small": replicated})  # What is small may be whole.
    check_sharded(make_mesh(MeshConfig(data=8)), params, {"big": replicated, "small": replicated})


def test_the_batch_is_split_over_all_axes_but_tensor(mesh):
    assert rules.batch_sharding(mesh).spec == P(("data", "stage", "fsdp"))
