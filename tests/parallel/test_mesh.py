"""Meshes: sizes that fit, one size left open, and one sentence for those that do not."""

import jax
import pytest
from jax.sharding import AxisType

from vimlab.parallel.mesh import MeshConfig, check_batch, make_mesh
from vimlab.parallel.rules import ShardingError


@pytest.mark.parametrize(
    "config, sizes",
    [
        (MeshConfig(), (8, 1, 1, 1)),
        (MeshConfig(fsdp=2, tensor=2), (2, 2, 2, 1)),
        (MeshConfig(data=1, fsdp=-1, tensor=2), (1, 4, 2, 1)),
        (MeshConfig(data=2, fsdp=1, tensor=-1), (2, 1, 4, 1)),
        (MeshConfig(data=1, fsdp=8), (1, 8, 1, 1)),
    ],
)
def test_sizes(config, sizes):
    mesh = make_mesh(config)
    assert dict(mesh.shape) == dict(zip(("data", "fsdp", "tensor", "stage"), sizes, strict=True))
    assert sorted(d.id for d in mesh.devices.flat) == sorted(d.id for d in jax.devices())
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_on_some_of_the_devices():
    assert dict(make_mesh(MeshConfig(), jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1, "stage": 1}


@pytest.mark.parametrize(
    "config, words",
    [
        (MeshConfig(data=3), "which is 3 devices, but there are 8"),
        (MeshConfig(fsdp=3), "which is 6 devices, but there are 8"),
        (MeshConfig(tensor=16), "which is 16 devices, but there are 8"),
        (MeshConfig(fsdp=-1), "at most one may be -1"),
        (MeshConfig(fsdp=0), "sizes are positive"),
        (MeshConfig(data=-2), "sizes are positive"),
    ],
)
def test_sizes_that_do_not_fit(config, words):
    with pytest.raises(ShardingError, match=words) as caught:
        make_mesh(config)
    assert "config.mesh" in str(caught.value) and "\n" not in str(caught.value)


def test_the_batch_divides_over_data_and_fsdp_but_not_tensor():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_batch(mesh, 12)
    with pytest.raises(ShardingError, match="config.batch_size is 10, .* use a multiple of 4"):
        check_batch(mesh, 10)
