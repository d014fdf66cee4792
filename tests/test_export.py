"""Export and import: the format against the safetensors package, weights that come back bitwise from every kind of source."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from vimlab import safetensors_io
from vimlab.checkpoint import Checkpointer, CheckpointError
from vimlab.export import export, init_from, open_weights
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.safetensors_io import SafetensorsError
from vimlab.state import TrainState

META = {"config": {"seed": 3}, "class_table": ["cat", "dog"], "versions": {"jax": jax.__version__}}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {name: rng.integers(0, 2, (3, 5)).astype(dtype) for name, dtype in safetensors_io.DTYPES.items()}
    odd = {"scalar": np.float32(2.5)[...], "none": np.zeros((0, 4), np.float32), "turned": rng.random((4, 6)).T, "é/x": np.ones(1)}
    return made | odd


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
        assert found[name].tobytes() == x.tobytes(), name


def test_what_we_write_the_package_reads_and_the_other_way_round(tmp_path, arrays):
    safetensors_io.write(tmp_path / "ours", arrays, {"kind": "full"})
    assert_equal(safetensors.numpy.load_file(tmp_path / "ours"), arrays)
    assert int.from_bytes((tmp_path / "ours").read_bytes()[:8], "little") % 8 == 0  # Arrays begin at multiples of 8 bytes.
    with safetensors.safe_open(tmp_path / "ours", "np") as file:
        assert file.metadata() == {"kind": "full"}
    contiguous = {name: np.ascontiguousarray(x).reshape(x.shape) for name, x in arrays.items()}
    safetensors.numpy.save_file(contiguous, tmp_path / "theirs", {"made": "elsewhere"})
    found, metadata = safetensors_io.read(tmp_path / "theirs")
    assert_equal(found, arrays)
    assert metadata == {"made": "elsewhere"}
    assert found["BF16"].dtype == ml_dtypes.bfloat16 and not found["F32"].flags.writeable


def test_a_broken_file_and_an_unknown_dtype_are_refused(tmp_path, arrays):
    file = tmp_path / "model.safetensors"
    safetensors_io.write(file, arrays)
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    shifted = whole[: 8 + header].replace(b'"data_offsets":[0,', b'"data_offsets":[8,')
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    overlap = json.dumps({"a": entry, "b": entry}).encode()
    overlap = len(overlap).to_bytes(8, "little") + overlap + bytes(4)
    for broken in (whole[:-1], whole + b"x", whole[: header // 2], b"", b"\x08" + bytes(15), shifted + whole[8 + header :], overlap):
        file.write_bytes(broken)
        with pytest.raises(SafetensorsError, match="not a whole safetensors file"):
            safetensors_io.read(file)
    with pytest.raises(SafetensorsError, match="'x' is complex64"):
        safetensors_io.write(file, {"x": np.zeros(2, np.complex64)})


def state_of(seed: int) -> TrainState:
    keys = jax.random.split(jax.random.key(seed), 4)
    tokenizer = {"blocks": [{"w": jax.random.normal(keys[i], (8, 4))} for i in range(2)], "blocks-2": jnp.arange(3.0)}
    discriminator = {"w": jax.random.normal(keys[2], (4,))}
    return TrainState(
        step=jnp.int32(seed),
        params={"tokenizer": tokenizer, "discriminator": discriminator},
        opt_state={"tokenizer": jax.tree.map(jnp.sin, tokenizer)},
        ema={"tokenizer": jax.tree.map(lambda x: x + 1, tokenizer)},
        extra={"usage": jnp.arange(4)},
    )


@pytest.fixture
def run(tmp_path):
    """A run's folder with checkpoints of steps 1 and 2; the average is kept of the tokenizer only."""
    with Checkpointer(tmp_path / "run/checkpoints") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state_of(step), META)
    return tmp_path / "run"


def wanted(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def best(step: int):
    return {name: state_of(step).best(name) for name in ("tokenizer", "discriminator")}


def test_an_inference_export_holds_the_weights_to_use_and_travels_with_its_config(run, tmp_path):
    file = export(run, tmp_path / "out")
    found = safetensors.numpy.load_file(file)
    expected = best(2)
    assert_equal(
        found,
        {
            "params/discriminator/w": np.asarray(expected["discriminator"]["w"]),
            "params/tokenizer/blocks-2": np.asarray(expected["tokenizer"]["blocks-2"]),
            "params/tokenizer/blocks/0/w": np.asarray(expected["tokenizer"]["blocks"][0]["w"]),
            "params/tokenizer/blocks/1/w": np.asarray(expected["tokenizer"]["blocks"][1]["w"]),
        },
    )
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["arrays"]["params/tokenizer/blocks/1/w"] == {"shape": [8, 4], "dtype": "float32"}
    assert {key: config[key] for key in META} == META and (config["kind"], config["step"]) == ("inference", 2)
    with pytest.raises(CheckpointError, match="already exists"):
        export(run, tmp_path / "out")


def test_a_full_export_holds_every_array(run, tmp_path):
    found = safetensors.numpy.load_file(export(run, tmp_path / "out", "full", step=1))
    with Checkpointer(run / "checkpoints") as checkpointer:
        assert set(found) == set(checkpointer.arrays(1))
    assert found["step"] == 1 and found["extra/usage"].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(found["opt_state/tokenizer/blocks/1/w"], state_of(1).opt_state["tokenizer"]["blocks"][1]["w"])


SOURCES = ["run", "run/checkpoints", "run/checkpoints/1", "inference", "full", "full/model.safetensors"]


@pytest.mark.parametrize("source", SOURCES)
def test_init_from_every_source_gives_the_weights_to_use(run, tmp_path, source):
    for kind in ("inference", "full"):
        export(run, tmp_path / kind, kind)
    expected = best(1 if source.endswith("1") else 2)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for sharding in (NamedSharding(mesh, PartitionSpec()), SingleDeviceSharding(jax.devices()[1])):
        params, missing = init_from(tmp_path / source, wanted(expected, sharding))
        assert missing == [] and jax.tree.structure(params) == jax.tree.structure(expected)
        for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(x, y)
            assert x.sharding.is_equivalent_to(sharding, x.ndim)
    like = jax.tree.map(jnp.zeros_like, expected)  # Arrays may stand for their own shapes.
    assert jax.tree.all(jax.tree.map(np.array_equal, init_from(tmp_path / source, like)[0], expected))
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    tokenizer = expected["tokenizer"]
    mixed = {"blocks": wanted(tokenizer["blocks"], split), "blocks-2": wanted(tokenizer["blocks-2"])}
    found = init_from(tmp_path / source, {"tokenizer": mixed})[0]["tokenizer"]
    assert found["blocks"][1]["w"].sharding == split and isinstance(found["blocks-2"], np.ndarray)
    np.testing.assert_array_equal(found["blocks"][1]["w"], tokenizer["blocks"][1]["w"])
    assert open_weights(tmp_path / source)[0]["class_table"] == ["cat", "dog"]


def test_a_network_that_an_export_leaves_out_is_told_and_wrong_ones_are_refused(tmp_path):
    with Checkpointer(tmp_path / "run/checkpoints") as checkpointer:
        checkpointer.save(1, state_of(1), META | {"inference_networks": ["tokenizer"]})
    file = export(tmp_path / "run", tmp_path / "out")
    assert not any("discriminator" in name for name in safetensors.numpy.load_file(file))
    expected = best(1)
    params, missing = init_from(tmp_path / "out", wanted(expected))
    assert missing == ["discriminator"] and set(params) == {"tokenizer"}
    wrong = wanted(expected["tokenizer"]) | {"blocks-2": jax.ShapeDtypeStruct((4,), jnp.float32)}
    with pytest.raises(CheckpointError, match=r"'tokenizer' in .*blocks-2 is float32\[3\] in it but float32\[4\] here"):
        init_from(tmp_path / "out", {"tokenizer": wrong})
    with pytest.raises(CheckpointError, match=r"none of the networks \['generator'\]"):
        init_from(tmp_path / "out", {"generator": wrong})
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "absent"):
        with pytest.raises(CheckpointError, match="holds neither checkpoints nor model.safetensors"):
            init_from(tmp_path / nothing, wanted(expected))


def test_a_damaged_checkpoint_is_not_exported(run, tmp_path):
    (run / "checkpoints/2/meta.json").write_text("{}")
    with pytest.raises(CheckpointError, match="2 is damaged"):
        export(run, tmp_path / "out", step=2)
    export(run, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["step"] == 1
