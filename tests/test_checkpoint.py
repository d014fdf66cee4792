"""Checkpoints: bitwise on any mesh, damage named and skipped, nothing lost to a kill at any moment."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from vimlab import checkpoint
from vimlab.checkpoint import CheckpointConfig, Checkpointer, CheckpointError, named
from vimlab.config import ConfigError, Duration
from vimlab.parallel.mesh import MeshConfig, make_mesh
from vimlab.parallel.rules import opt_shardings, param_shardings
from vimlab.state import TrainState

ROOT = pathlib.Path(__file__).resolve().parents[1]
META = {"config": {"seed": 3}, "class_table": ["cat", "dog"], "data_position": 7}
AXES = {"tokenizer": {"w": ("embed", "mlp"), "b": ("vector",)}, "discriminator": {"w": ("conv_in", "conv_out")}}


def mesh_of(*sizes: int):
    return make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1], tensor=sizes[2]))


def train_state(mesh, seed: int = 0) -> TrainState:
    """A state with a masked AdamW chain and a factored Adafactor, sharded over the mesh, after one update of each."""
    decayed = {"w": True, "b": False}
    momentum = optax.masked(optax.trace(0.9), decayed)
    tx = {
        "tokenizer": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0, 1e-3, 9), mask=decayed)),
        "discriminator": optax.adafactor(1e-2, multiply_by_parameter_scale=True, min_dim_size_to_factor=8),
    }
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "tokenizer": {"w": jax.random.normal(keys[0], (64, 32)), "b": jnp.arange(32.0)},
        "discriminator": {"w": jax.random.normal(keys[1], (16, 24))},
    }
    placed, states = {}, {}
    for name, tree in params.items():
        shardings = param_shardings(mesh, tree, AXES[name])
        placed[name] = jax.device_put(tree, shardings)
        layout = opt_shardings(mesh, tx[name], tree, shardings)
        gradient = jax.tree.map(lambda x: jnp.sin(7 * x), tree)
        _, states[name] = tx[name].update(gradient, tx[name].init(tree), tree)
        states[name] = jax.device_put(states[name], layout)
    whole = NamedSharding(mesh, PartitionSpec())
    states["tokenizer"] = (states["tokenizer"], jax.device_put(momentum.init(params["tokenizer"]), whole))
    extra = {"usage": jnp.arange(5, dtype=jnp.int32), "half": jnp.ones(3, jnp.bfloat16) / 3, "seen": jnp.array([True, False])}
    return TrainState(
        step=jax.device_put(jnp.int32(seed), whole),
        params=placed,
        opt_state=states,
        ema={"tokenizer": jax.tree.map(lambda x: x * 0.5, placed["tokenizer"])},
        extra=jax.device_put(extra, whole),
    )


def abstract(tree, shardings=None):
    """ShapeDtypeStructs with the tree's own shardings, or with one sharding, or those of another tree."""
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings), tree)
    return jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y.sharding), tree, shardings or tree)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, path
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def simple(step: int, size: int = 100_000) -> dict:
    """A small state whose bytes follow from the step."""
    w = np.random.default_rng(step).standard_normal(size, np.float32)
    return {"params": {"net": {"w": jnp.asarray(w)}}, "step": jnp.int32(step)}


def saved(directory, *steps: int, **options) -> pathlib.Path:
    with Checkpointer(directory, **options) as checkpointer:
        for step in steps:
            checkpointer.save(step, simple(step), META)
    return pathlib.Path(directory)


def restored(directory, step=None):
    return Checkpointer(directory).restore(abstract(simple(0)), step)


def data_file(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in (folder / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(file: pathlib.Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    said = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
    return said


def test_train_state_is_bitwise_on_the_same_mesh_another_and_one_device(tmp_path):
    state = train_state(mesh_of(2, 2, 2), seed=5)
    empty = lambda x: isinstance(x, optax.MaskedNode | optax.EmptyState)
    kinds = {type(x).__name__ for x in jax.tree.leaves(state.opt_state, is_leaf=empty)}
    assert {"MaskedNode", "EmptyState"} <= kinds  # The hard cases are in the state.
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(5, state, META)
    other = train_state(mesh_of(8, 1, 1), seed=6)
    for target in (abstract(state), abstract(state, other), abstract(state, SingleDeviceSharding(jax.devices()[3]))):
        step, found, meta = Checkpointer(tmp_path).restore(target)
        assert (step, meta) == (5, META)
        assert_same(found, state)
        for x, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(target), strict=True):
            assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)


def test_a_subset_is_read_alone_and_without_a_sharding_as_numpy(tmp_path):
    state = train_state(mesh_of(2, 2, 2))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, META)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params["tokenizer"])
        wanted = {"params": {"tokenizer": like}}
        found = checkpointer.restore(wanted, subset=True)[1]
        assert_same(found, {"params": {"tokenizer": state.params["tokenizer"]}})
        assert isinstance(found["params"]["tokenizer"]["w"], np.ndarray)
        with pytest.raises(CheckpointError, match="in it but not here"):
            checkpointer.restore(wanted)


def test_a_state_donated_right_after_save_is_saved_as_it_was(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x * 3 + 1, tree), donate_argnums=0)
    start = {f"w{i}": jnp.full((500_000,), float(i)) for i in range(8)}
    expected = jax.tree.map(np.array, start)
    with Checkpointer(tmp_path, keep=9) as checkpointer:
        for step in range(4):
            checkpointer.save(step, start, META)
            for _ in range(3):
                start = advance(start)
    for step in range(4):
        found = Checkpointer(tmp_path).restore(abstract(start), step)[1]
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
        for _ in range(3):
            expected = {name: x * np.float32(3) + np.float32(1) for name, x in expected.items()}


def test_the_arrays_given_to_the_writer_share_no_memory_with_the_state(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    given, state = [], train_state(mesh_of(2, 2, 2))
    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", lambda self, path, args: given.extend(jax.tree.leaves(args.item)))
    monkeypatch.setattr(Checkpointer, "_commit", lambda self, step: None)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state, META)
    pointers = lambda arrays: {s.data.unsafe_buffer_pointer() for x in arrays for s in x.addressable_shards}
    assert len(given) == len(jax.tree.leaves(state)) and not pointers(given) & pointers(jax.tree.leaves(state))


def test_nothing_saved_is_none_and_a_missing_step_is_named(tmp_path):
    assert restored(tmp_path / "absent") is None and Checkpointer(tmp_path).latest() is None
    saved(tmp_path, 10, 20)
    (tmp_path / "notes").mkdir()
    assert Checkpointer(tmp_path).steps() == [10, 20] and Checkpointer(tmp_path).latest() == 20
    assert Checkpointer(tmp_path).read_meta(10) == META
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 15; it has \[10, 20\]"):
        restored(tmp_path, 15)


def test_another_model_is_refused_with_the_first_differences(tmp_path):
    saved(tmp_path, 1)
    other = {"params": {"net": {"w": jax.ShapeDtypeStruct((7, 3), jnp.float32), "v": jax.ShapeDtypeStruct((2,), jnp.float32)}}}
    with pytest.raises(CheckpointError) as error:
        Checkpointer(tmp_path).restore(other | {"step": jax.ShapeDtypeStruct((), jnp.float32)})
    for part in ("net/v is not in it", "params/net/w is float32[100000] in it but float32[7, 3] here", "step is int32[] in it"):
        assert part in str(error.value)


DAMAGES = {
    "truncated": lambda folder: os.truncate(data_file(folder), data_file(folder).stat().st_size // 2),
    "first byte": lambda folder: flip(data_file(folder), 0),
    "a byte in the middle": lambda folder: flip(data_file(folder), data_file(folder).stat().st_size // 2),
    "last byte": lambda folder: flip(data_file(folder), -1),
    "a byte of the meta": lambda folder: flip(folder / "meta.json", 20),
    "a byte of the seal": lambda folder: flip(folder / "checksums.json", 30),
    "missing file": lambda folder: data_file(folder).unlink(),
    "missing manifest": lambda folder: (folder / "state/manifest.ocdbt").unlink(),
    "missing arrays": lambda folder: shutil.rmtree(folder / "state"),
    "uncommitted": lambda folder: (folder / "checksums.json").unlink(),
    "empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}
REASONS = {
    "truncated": "bytes instead of",
    "uncommitted": "not committed",
    "empty folder": "not committed",
    "a byte of the seal": "checksums.json",
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> pathlib.Path:
    return saved(tmp_path_factory.mktemp("checkpoints"), 10, 20)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_step_is_named_skipped_kept_and_does_not_block_its_number(two_steps, tmp_path, warnings, kind):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_steps, directory)
    DAMAGES[kind](directory / "20")
    before = contents(directory / "20")
    with Checkpointer(directory, keep=1) as checkpointer:
        step, state, _ = checkpointer.restore(abstract(simple(0)))
        assert step == 10
        assert_same(state, simple(10))
        reason = REASONS.get(kind, "missing" if "missing" in kind else "changed since")
        assert len(warnings) == 1 and str(directory / "20") in warnings[0] and reason in warnings[0]
        assert contents(directory / "20") == before
        checkpointer.save(15, simple(15), META, wait=True)
        assert contents(directory / "20") == before and not (directory / "10").exists()
        checkpointer.save(20, simple(20), META, wait=True)
    assert contents(directory / "20.corrupt-1") == before and "kept as" in warnings[1]
    assert_same(restored(directory)[1], simple(20))


def test_all_damaged_is_an_error_and_only_half_saved_is_a_warning(tmp_path, warnings):
    saved(tmp_path, 10, 20)
    flip(data_file(tmp_path / "20"), 100)
    with pytest.raises(CheckpointError, match="20 is damaged: .*choose another of"):
        restored(tmp_path, 20)
    data_file(tmp_path / "10").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint in .* is damaged .*20.*changed.*10.*missing"):
        restored(tmp_path)
    (tmp_path / "new/10/state.orbax-checkpoint-tmp").mkdir(parents=True)
    assert restored(tmp_path / "new") is None and "not committed" in warnings[-1]


def test_pruning_keeps_the_newest_milestones_strangers_and_the_damaged(tmp_path, warnings):
    for stranger in ("7", "notes", "30.corrupt-1"):
        (tmp_path / stranger).mkdir()
        (tmp_path / stranger / "mine.txt").write_text("not vimlab's")
    (tmp_path / "1.deleting").mkdir()
    with Checkpointer(tmp_path, keep=2, keep_every_steps=20) as checkpointer:
        for step in (10, 20, 30, 40, 50):
            if step == 40:
                checkpointer.wait()
                flip(data_file(tmp_path / "30"), 0)
            checkpointer.save(step, simple(step), META)
        checkpointer.wait()
        assert checkpointer.steps() == [20, 30, 40, 50]
        assert "30 IS DAMAGED" in warnings[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["20", "30", "30.corrupt-1", "40", "50", "7", "notes"]


def test_a_damaged_step_takes_no_good_one_s_place(tmp_path):
    saved(tmp_path, 10, 20)
    flip(data_file(tmp_path / "20"), 0)
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.restore(abstract(simple(0)))[0] == 10
        checkpointer.save(30, simple(30), META, wait=True)
        assert checkpointer.steps() == [10, 20, 30]


def test_going_back_to_an_older_step_deletes_no_later_one_and_replaces_none(tmp_path, warnings):
    saved(tmp_path, 10, 20, 30)
    before = contents(tmp_path / "20")
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.restore(abstract(simple(0)), 10)
        checkpointer.save(10, simple(11), META)  # The step just restored: nothing to save.
        checkpointer.save(20, simple(21), META, wait=True)
        assert checkpointer.steps() == [20, 30]
    assert contents(tmp_path / "20.replaced-1") == before and len(warnings) == 1
    assert_same(restored(tmp_path, 20)[1], simple(21))


def test_an_error_in_the_background_reaches_the_next_call(tmp_path, monkeypatch):
    def full(folder, **facts):
        raise OSError(28, "No space left on device")

    checkpointer = Checkpointer(tmp_path)
    for call in (checkpointer.wait, lambda: checkpointer.save(9, simple(9), META), checkpointer.close):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "seal", full)
            checkpointer.save(1, simple(1), META)
            checkpointer._pending[1].exception()
        with pytest.raises(CheckpointError, match="step 1 could not be saved in .*No space left"):
            call()
    assert Checkpointer(tmp_path).steps() == []
    with pytest.raises(CheckpointError, match="not JSON serializable"):
        Checkpointer(tmp_path).save(2, simple(2), {"key": object()})
    saved(tmp_path, 1, 2)
    assert_same(restored(tmp_path)[1], simple(2))


def test_names_must_be_unique_and_the_config_keeps_at_least_one(tmp_path):
    assert list(named({"b": [1, 2], "a": {"x": 3}})) == ["a/x", "b/0", "b/1"]
    with pytest.raises(CheckpointError, match="same name"):
        named({"a": {"b": 1}, "a/b": 2})
    with pytest.raises(ConfigError, match="keep is 0"):
        CheckpointConfig(every=Duration(5), keep=0)


# Each moment's code runs in a child before its second save; `die()` is kill -9.
MOMENTS = {
    "before anything is written": "pathlib.Path.mkdir = lambda *a, **k: die()",
    "before the arrays": "ocp.AsyncCheckpointer.save = lambda *a, **k: die()",
    "as save returns": "never_sealed(); after = die",
    "while arrays are written": "never_sealed(); after = lambda: (time.sleep(0.01), die())",
    "before the seal": "checkpoint.seal = lambda *a, **k: die()",
    "the seal half-written": "os.fsync = lambda fd: die() if 'checksums' in os.readlink(f'/proc/self/fd/{fd}') else None",
    "before the seal's rename": "real = os.replace; os.replace = lambda a, b: die() if 'checksums' in str(a) else real(a, b)",
    "before pruning": "checkpoint.Checkpointer._prune = lambda *a: die()",
    "while pruning": "checkpoint.shutil.rmtree = lambda folder: ((folder / 'meta.json').unlink(), die())",
}
CHILD = """
import os, pathlib, signal, sys, time
import orbax.checkpoint as ocp
from tests.test_checkpoint import META, simple
from vimlab import checkpoint
after = lambda: None
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
never_sealed = lambda: setattr(checkpoint, "seal", lambda *a, **k: time.sleep(60))
checkpointer = checkpoint.Checkpointer(sys.argv[1], keep=1)
checkpointer.save(1, simple(1, 4_000_000), META, wait=True)
exec(sys.argv[2])
checkpointer.save(2, simple(2, 4_000_000), META)
after()
checkpointer.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kill -9 and /proc")
@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_loses_at_most_the_save_that_it_hits(tmp_path, moment):
    command = [sys.executable, "-c", CHILD, str(tmp_path), MOMENTS[moment]]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    good = 2 if "prun" in moment else 1
    target = abstract(simple(0, 4_000_000))
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        step, state, meta = checkpointer.restore(target)
        assert (step, meta) == (good, META)
        assert_same(state, simple(good, 4_000_000))
        for later in (2, 3):
            checkpointer.save(later, simple(later, 4_000_000), META)
        checkpointer.wait()
        assert checkpointer.steps() == [3]
    assert_same(Checkpointer(tmp_path).restore(target)[1], simple(3, 4_000_000))


PROCESS = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, numpy as np
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]))
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from vimlab import checkpoint
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("data"))
ramp = np.arange(24, dtype=np.float32).reshape(8, 3)
make = lambda k: {"w": jax.make_array_from_callback((8, 3), split, lambda index: ramp[index] + k)}
target = {"w": jax.ShapeDtypeStruct((8, 3), np.float32, sharding=split)}
local = lambda tree: np.concatenate([s.data for s in tree["w"].addressable_shards])
checkpointer = checkpoint.Checkpointer(sys.argv[1])
for step in (1, 2):
    checkpointer.save(step, make(step), {"step": step})
checkpointer.wait()
assert checkpointer.steps() == [1, 2]
np.testing.assert_array_equal(local(checkpointer.restore(target)[1]), local(make(2)))
multihost_utils.sync_global_devices("both have restored step 2")
if jax.process_index() == 0:  # Only the first process looks at checksums; both must agree on the older step.
    os.remove(os.path.join(sys.argv[1], "2", "meta.json"))
step, state, _ = checkpoint.Checkpointer(sys.argv[1]).restore(target)
assert step == 1
np.testing.assert_array_equal(local(state), local(make(1)))
if jax.process_index() == 0:
    checkpoint.seal = lambda *a, **k: 1 / 0
checkpointer.save(3, make(3), {})
try:
    checkpointer.wait()
except checkpoint.CheckpointError as error:
    print("HEARD", error)
checkpointer.close()
"""


def test_two_processes_save_and_restore_one_checkpoint_and_share_errors(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = lambda index: [sys.executable, "-c", textwrap.dedent(PROCESS), str(tmp_path), port, str(index)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    children = [subprocess.Popen(command(i), **pipes) for i in range(2)]
    try:
        outputs = [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    for child, output in zip(children, outputs, strict=True):
        assert child.returncode == 0 and "HEARD step 3 could not be saved" in output, output[-3000:]
    one = SingleDeviceSharding(jax.devices()[0])
    found = Checkpointer(tmp_path).restore({"w": jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=one)}, 1)[1]
    np.testing.assert_array_equal(found["w"], np.arange(24).reshape(8, 3) + 1)
    assert json.loads((tmp_path / "1/arrays.json").read_text()) == {"w": ["float32", [8, 3]]}


KILLED = """
import os, signal, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, numpy as np
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[3]), heartbeat_timeout_seconds=4)
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from vimlab import checkpoint
mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("data"))
make = lambda k: {"w": jax.make_array_from_callback((8, 300_000), split, lambda index: np.full((2, 300_000), k, np.float32))}
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
checkpointer = checkpoint.Checkpointer(sys.argv[1])
checkpointer.save(1, make(1), {}, wait=True)
if jax.process_index() == int(sys.argv[4]):
    exec(sys.argv[5])
checkpointer.save(2, make(2), {})
checkpointer.close()
"""


@pytest.mark.parametrize(
    ("victim", "moment"), [(0, "checkpoint.seal = die"), (1, "ocp.AsyncCheckpointer.wait_until_finished = die")]
)
def test_kill_9_of_one_of_two_processes_loses_at_most_the_save_that_it_hits(tmp_path, victim, moment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = lambda index: [sys.executable, "-c", KILLED, str(tmp_path), port, str(index), str(victim), moment]
    children = [subprocess.Popen(command(i), cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for i in range(2)]
    try:
        codes = [child.wait(120) for child in children]
    finally:
        for child in children:
            child.kill()
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, 2)
    one = SingleDeviceSharding(jax.devices()[0])
    step, state, _ = Checkpointer(tmp_path).restore({"w": jax.ShapeDtypeStruct((8, 300_000), jnp.float32, sharding=one)})
    # Whether process 1 had written all that the seal waits for when it died, the moment does not say.
    assert step == 1 or (victim == 1 and step == 2)
    np.testing.assert_array_equal(state["w"], np.full((8, 300_000), step))
