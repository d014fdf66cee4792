"""The reader of compiled programs, on small ones whose collectives and traffic are known, and on a TPU's way of writing."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vimlab.plan import hlo, volumes
from vimlab.plan.volumes import Collective

P = PartitionSpec
ROWS = ("data", "fsdp")


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ROWS, axis_types=(AxisType.Auto,) * 2)


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


def over(mesh, function, out):
    """The collectives of a function of a device's own f32[1, 1024], and the traffic by us and by XLA."""
    x = jax.ShapeDtypeStruct((8, 1024), jnp.float32, sharding=NamedSharding(mesh, P(ROWS)))
    program = compiled(jax.shard_map(function, mesh=mesh, in_specs=P(ROWS), out_specs=out, check_vma=False), x)
    module = hlo.parse(program.as_text())
    return volumes.collectives(module), volumes.traffic(module), program.cost_analysis()["bytes accessed"]


@pytest.mark.parametrize(
    "function, out, expected, wire",
    [
        (lambda x: jax.lax.psum(x, ROWS), P(), Collective("all-reduce", 8, 1, 4096), 2 * 4096 * 7 / 8),
        (lambda x: jax.lax.all_gather(x, "fsdp"), P("data"), Collective("all-gather", 4, 1, 4 * 4096), 3 * 4096),
        (lambda x: jax.lax.psum_scatter(x, "fsdp", scatter_dimension=1, tiled=True), P("data", "fsdp"), Collective("reduce-scatter", 4, 1, 4096), 3072),
        (lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), P(ROWS), Collective("collective-permute", 8, 1, 4096), 4096),
        (lambda x: jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True), P(ROWS), Collective("all-to-all", 4, 1, 4096), 3072),
    ],
    ids=lambda v: v.kind if isinstance(v, Collective) else "",
)
def test_each_collective_has_its_group_and_volume(mesh, function, out, expected, wire):
    found, traffic, by_xla = over(mesh, function, out)
    assert found == [expected] and found[0].wire == wire
    assert traffic == by_xla


def test_a_loop_counts_as_often_as_it_runs(mesh):
    step = lambda i, x: jax.lax.psum(x, "data") * 0.5
    (found,), *_ = over(mesh, lambda x: jax.lax.fori_loop(2, 9, step, x), P(ROWS))
    assert found == Collective("all-reduce", 2, 7, 7 * 4096)


def test_weights_that_are_sharded_are_gathered_in_both_passes(mesh):
    place = lambda shape, *axes: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))

    def loss(w, x):
        return (jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0] ** 2).mean()

    module = hlo.parse(compiled(jax.grad(loss), place((5, 64, 64), None, "fsdp"), place((16, 64), ROWS)).as_text())
    assert module.devices == 8 and hlo.unknown_loops(module) == 0
    gathers = [c for c in volumes.collectives(module) if c.kind == "all-gather" and c.group == 4]
    assert gathers[0].bytes >= 2 * 5 * 64 * 64 * 4, "forward and backward, five layers"


# As libtpu writes: no trip counts, mesh axes for groups, reduce-scatter as a fusion, arrays in vector memory, several results.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=64

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[64,128]) -> bf16[4,128] {
  %input = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %ar = bf16[64,128]{1,0:T(8,128)(2,1)} all-reduce(%input), replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=16], device_ids=([4,16]T(1,0)) {'axis_2'}, to_apply=%sum
  %zero = s32[]{:T(128)} constant(0)
  ROOT %ds = bf16[4,128]{1,0:T(8,128)(2,1)} dynamic-slice(%ar, %zero, %zero), dynamic_slice_sizes={4,128}
}

%body (p: (s32[], f32[12,256], bf16[64,128])) -> (s32[], f32[12,256], bf16[64,128]) {
  %p = (s32[]{:T(128)}, f32[12,256]{1,0:T(8,128)}, /*index=2*/bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[12,256]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %g = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=2
  %row = f32[1,256]{1,0:T(1,128)} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={1,256}
  %both = (f32[1,256]{1,0:T(1,128)}, f32[1,256]{1,0:T(1,128)}) all-reduce(%row, %row), replica_groups=[16,4]<=[64], to_apply=%sum
  %near = f32[1,256]{1,0:T(1,128)S(1)} copy(%row)
  %rs = bf16[4,128]{1,0:T(8,128)(2,1)} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], f32[12,256], bf16[64,128]) tuple(%i, %x, %g)
}

%condition (p: (s32[], f32[12,256], bf16[64,128])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[12,256]{1,0:T(8,128)}, bf16[64,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[12,256], g: bf16[64,128]) -> f32[12,256] {
  %x = f32[12,256]{1,0:T(8,128)} parameter(0)
  %g = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(1)
  %two = s32[]{:T(128)} constant(2)
  %start = s32[]{:T(128)} copy(%two)
  %t = (s32[], f32[12,256], bf16[64,128]) tuple(%start, %x, %g)
  %w = (s32[]{:T(128)}, f32[12,256]{1,0:T(8,128)}, bf16[64,128]{1,0}) while(%t), condition=%condition, body=%body
  ROOT %out = f32[12,256]{1,0:T(8,128)} get-tuple-element(%w), index=1
}
"""


def test_a_tpus_program_is_read():
    module = hlo.parse(TPU)
    assert volumes.collectives(module) == [
        Collective("reduce-scatter", 16, 10, 10 * 64 * 128 * 2.0),
        Collective("all-reduce", 4, 10, 10 * 2 * 1024.0),
    ]
    # Each of ten turns: the slice in and out, the sums' operands and results, the copy that leaves for vector memory, the scatter.
    turn = 2 * 1024 + 4 * 1024 + 1024 + (64 + 4) * 128 * 2
    assert volumes.traffic(module) == 10 * turn + 8, "and the counter's copy"


SLICED = """HloModule m
%inner (p: f32[36,128], i: s32[]) -> f32[1,128] {
  %p = f32[36,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %row = f32[1,128]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,128}
}
%outer (all: f32[36,128], i: s32[], into: f32[36,128]) -> f32[36,128] {
  %all = f32[36,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %into = f32[36,128]{1,0} parameter(2)
  %same = f32[36,128]{1,0} bitcast(%all)
  %row = f32[1,128]{1,0} fusion(%same, %i), kind=kLoop, calls=%inner
  ROOT %out = f32[36,128]{1,0} dynamic-update-slice(%into, %row, %i, %i)
}
ENTRY %main (all: f32[36,128], i: s32[], into: f32[36,128]) -> f32[36,128] {
  %all = f32[36,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %into = f32[36,128]{1,0} parameter(2)
  ROOT %out = f32[36,128]{1,0} fusion(%all, %i, %into), kind=kLoop, calls=%outer
}
"""


def test_of_a_stack_of_layers_only_one_is_moved():
    """As a scan reads and writes its stacked arrays: a row in, a row out, the index."""
    assert volumes.traffic(hlo.parse(SLICED)) == 2 * 128 * 4 + 4


FETCHED = """HloModule m
%fetch (p: bf16[16,128]) -> bf16[4,128] {
  %p = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %s = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} slice(%p), slice={[4:8], [0:128]}
}
ENTRY %main (p: bf16[16,128], x: bf16[8,128]) -> bf16[16,128] {
  %p = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(1)
  %i = s32[]{:T(128)S(6)} constant(4)
  %slice-start = ((bf16[16,128]{1,0:T(8,128)(2,1)}), bf16[4,128]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) async-start(%p), calls=%fetch
  %near = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} async-done(%slice-start)
  %copy-start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %copy = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %sum = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} custom-call(%near, %copy), custom_call_target="both"
  ROOT %out = bf16[16,128]{1,0:T(8,128)(2,1)} dynamic-update-slice(%p, %sum, %i, %i)
}
"""


def test_what_is_fetched_ahead_is_read_once():
    """Four rows and eight in, by transfers that go on beside the work; four rows out; the rest happens in vector memory."""
    assert volumes.traffic(hlo.parse(FETCHED)) == (4 + 8 + 4) * 128 * 2


BESIDE = """HloModule m, num_partitions=4
%begin (p: bf16[2,128]) -> bf16[8,128] {
  %p = bf16[2,128]{1,0} parameter(0)
  ROOT %g = bf16[8,128]{1,0} all-gather(%p), channel_id=20, replica_groups=[1,4]<=[4], dimensions={0}
}
%async_collective_fusion (p: bf16[2,128], into: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[2,128]{1,0} parameter(0)
  %into = bf16[8,128]{1,0} parameter(1)
  ROOT %g = bf16[8,128]{1,0} all-gather(%p), channel_id=20, replica_groups=[1,4]<=[4], dimensions={0}
}
%other (p: bf16[2,128]) -> bf16[8,128] {
  %p = bf16[2,128]{1,0} parameter(0)
  ROOT %g = bf16[8,128]{1,0} all-gather(%p), channel_id=21, replica_groups=[1,4]<=[4], dimensions={0}
}
ENTRY %main (p: bf16[2,128]) -> bf16[8,128] {
  %p = bf16[2,128]{1,0} parameter(0)
  %a = bf16[8,128]{1,0} fusion(%p), kind=kCustom, calls=%begin
  %b = bf16[8,128]{1,0} fusion(%p, %a), kind=kOutput, calls=%async_collective_fusion
  ROOT %c = bf16[8,128]{1,0} fusion(%p), kind=kCustom, calls=%other
}
"""


def test_a_collective_in_parts_beside_products_is_one():
    module = hlo.parse(BESIDE)
    assert volumes.collectives(module) == [Collective("all-gather", 4, 2, 2 * 8 * 128 * 2.0)]
    assert volumes.traffic(module) == 2 * (2 + 8) * 128 * 2


RARE = """HloModule m
%product (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
%much (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} fusion(%p), kind=kOutput, calls=%product
}
%little (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %z = f32[8,8]{1,0} broadcast(%p), dimensions={}
}
ENTRY %main (which: s32[], p: f32[8,8]) -> f32[8,8] {
  %which = s32[] parameter(0)
  %p = f32[8,8]{1,0} parameter(1)
  ROOT %out = f32[8,8]{1,0} conditional(%which, %p, %p), branch_computations={%much, %little}
}
"""


def test_a_branch_that_is_seldom_taken():
    """256 bytes in and out of the product, in one of 16 steps; a branch without products is no rarity, nor a choice of two products."""
    assert volumes.traffic(hlo.parse(RARE)) == 512
    assert volumes.traffic(hlo.parse(RARE), rare=1 / 16) == 512 / 16
    assert volumes.traffic(hlo.parse(RARE.replace("%much, %little", "%much, %much")), rare=1 / 16) == 512
    assert volumes.traffic(hlo.parse(RARE.replace("%much, %little", "%little, %little")), rare=1 / 16) == 512


def test_a_loop_without_a_stated_end_is_counted_once_and_reported():
    module = hlo.parse(TPU.replace("constant(12)", "custom-call(), custom_call_target=\"x\""))
    assert hlo.unknown_loops(module) == 1
    assert {c.count for c in volumes.collectives(module)} == {1}


@pytest.mark.parametrize(
    "text, size",
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=[4,16]<=[64]", 16),
        ("replica_groups=[8,8]<=[4,2,8]T(1,0,2), use_global_device_ids=true", 8),
        ("replica_groups=mesh['a'=4,'b'=16] {'b'}", 16),
        ("replica_groups=mesh['a'=4,'b'=16], device_ids=([4,16]T(1,0)) {'a','b'}", 64),
        ("replica_groups=mesh['a'=64] {'a':(4)8}", 8),
        ("replica_groups={}", 64),
    ],
)
def test_groups_in_all_their_spellings(text, size):
    assert volumes._group(text, 64) == size


def test_sizes_of_written_shapes():
    assert hlo.size("(f32[2,3]{1,0:T(8,128)}, /*index=1*/bf16[4]{0:T(256)(2,1)}, pred[5], s4[8], u32[])") == 24 + 8 + 5 + 4 + 4
    assert hlo.arrays("f32[2]{0:T(128)S(1)}") == [(8.0, False)]
