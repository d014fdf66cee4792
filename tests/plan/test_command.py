"""`vimlab plan` without libtpu: the analytic half of shipped configs, what it takes for granted, and what it refuses."""

import json
import os
import pathlib

import jax
import pytest

from vimlab import cli, exits
from vimlab import config as configs
from vimlab import run as runs
from vimlab.parallel.mesh import MeshConfig
from vimlab.plan import chips, compiling, estimate, search
from vimlab.plan.abstract import StandIns, abstract_run
from vimlab.plan.chips import topology
from vimlab.plan.plan import plan_mesh

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch):
    """No libtpu, and an environment of its own."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(compiling, "has_libtpu", lambda: False)


def plan(tmp_path, name: str, *arguments: str) -> tuple[int, dict]:
    file = tmp_path / "plan.json"
    code = cli.main(["plan", "--config", f"{CONFIGS / name}", "--json", str(file), *arguments])
    return code, json.loads(file.read_text()) if file.exists() else {}


def test_a_generator_without_anything_of_its_own(tmp_path, capsys):
    code, found = plan(tmp_path, "parti_emoji.py:smoke", "--topology", "v5e:2x2", "--mesh", "fsdp=2,tensor=2")
    out = capsys.readouterr().out
    assert code == exits.FINISHED and found["memory"]["fits"] and found["memory"]["by"] == "estimate"
    assert "libtpu is not installed" in out and "vitvq_emoji.py" in out, "what was taken for granted is said"
    assert found["mesh"] == {"data": 1, "stage": 1, "fsdp": 2, "tensor": 2}
    assert found["run"]["steps"] == 20 and len(found["run"]["at"]) == 3
    assert {c["kind"] for c in found["step"]["collectives"]} == {"all-gather", "reduce-scatter", "all-reduce"}
    assert found["versions"]["jax"] == jax.__version__
    assert "fits by the estimate" in out and "chip-hours" in out


def test_a_tokenizer_on_gpus(tmp_path, capsys):
    code, found = plan(tmp_path, "vitvq_small_imagenet256.py:smoke", "--topology", "h100:4", "--config.loss.perceptual.weights=absent.pth")
    assert code == exits.FINISHED and "compile" not in found
    said = " ".join(found["assumed"])
    assert "GPUs are planned by arithmetic" in said and "absent.pth" in said
    config = runs.resolve(found["config"])
    assert found["memory"]["given"]["frozen"] == pytest.approx(4 * 14.7e6, rel=0.01), "VGG16's convolutions"
    (gradients,) = found["step"]["collectives"]
    assert (gradients["kind"], gradients["group"]) == ("all-reduce", 4)
    assert gradients["bytes"] == found["memory"]["given"]["parameters"] >= 4 * config.model.param_count()


def test_decoding_is_planned(tmp_path, capsys):
    code, found = plan(tmp_path, "parti_emoji.py:smoke", "--topology", "v5e:2x2", "--sample", "8")
    assert code == exits.FINISHED and found["what"] == "decoding of 8 images" and "run" not in found
    assert "optimizer" not in found["memory"]["given"]


def test_a_plan_that_does_not_fit_says_what_to_try(tmp_path, capsys, monkeypatch):
    given = ("parti_emoji.py:smoke", "--topology", "v5e:2x2", "--config.batch_size=4096")
    need = plan(tmp_path, *given)[1]["memory"]
    memory = sum(need["given"].values()) + 0.8 * need["activations"]
    monkeypatch.setitem(chips.CHIPS, "v5e", chips.dataclasses.replace(chips.CHIPS["v5e"], memory=memory))
    code, found = plan(tmp_path, *given)
    assert code == exits.FAILED and "does not fit" in capsys.readouterr().out
    (advice,) = found["advice"]
    command = advice.removeprefix("try ").partition(" (")[0].split()
    assert any(word.startswith("--config.accumulate=") for word in command)
    code, found = plan(tmp_path, *given, *command)
    assert code == exits.FINISHED, "what is proposed fits"
    (tmp_path / "plan.json").unlink()
    monkeypatch.setattr(search, "meshes", lambda config, where: [config.mesh, MeshConfig(data=2, fsdp=2)])
    code, found = plan(tmp_path, *given, "--search")
    out = capsys.readouterr().out
    assert code == exits.FINISHED and len(found) > 1 and "--config.accumulate=" in out and "--mesh " in out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("parti_emoji.py", "--topology", "v9:4x4"), "no known chip"),
        (("parti_emoji.py", "--topology", "v5e:2x2", "--mesh", "fsdp=3"), "set one axis to -1"),
        (("parti_emoji.py", "--topology", "v5e:2x2", "--mesh", "rows=3"), "--mesh 'rows=3'"),
        (("parti_emoji.py", "--topology", "v5e:2x2", "--mesh", "4"), "write it as"),
        (("parti_emoji.py:smoke", "--topology", "v5e:16x16"), "data-parallel devices"),
        (("vitvq_emoji.py", "--topology", "v5e:2x2", "--sample"), "trains a tokenizer"),
        (("parti_emoji.py", "--topology", "v5e:2x2", "--sample", "--search"), "one of the two"),
        (("parti_emoji.py", "--topology", "v5e:2x2", "--tokenizer-config", str(CONFIGS / "parti_emoji.py")), "that of a tokenizer"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, arguments, sentence):
    code, _ = plan(tmp_path, *arguments)
    error = capsys.readouterr().err
    assert code == exits.USER_ERROR and sentence in error and error.count("\n") == 1


def test_the_environment_that_libtpu_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setitem(os.environ, "LIBTPU_INIT_ARGS", "--mine=1")
    compiling.prepare_environment()
    compiling.prepare_environment()
    assert os.environ["LIBTPU_INIT_ARGS"].split() == ["--mine=1", compiling.STACK]
    assert os.environ["JAX_PLATFORMS"] == "cpu"


REFUSAL = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (115.08G) exceeds available HBM (15.75G)."
REPORT = """Memory Space: default (color=0)
Total bytes: 213022488064 (198.39GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
   72.00GiB( 31%);   72.00GiB; 117323841536;                5; 5×bf16[24,256,1024,3,16,96]
   72.50GiB( 77%);  512.0MiB; 201188933632;                2; (s32[], f32[4]), bf16[3,256,16,1024,96], f32[256,16,1024,128], u32[4]


Memory Space: vmem (color=1)
Total bytes: 117440512 (112.00MiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
   12.00MiB( 31%);   12.00MiB;            0;                1; f32[8]
"""


def test_what_the_compiler_says_is_read():
    assert compiling.required(REFUSAL) == 115.08 * 2**30
    assert compiling.largest(REPORT) == ["72.00 GiB bf16[24,256,1024,3,16,96]", "512.00 MiB s32[], f32[4], bf16[3,256,16,1024,96]"]
    assert compiling.largest("") == []
    line = "E1126 spmd.cc:1] [SPMD] Involuntary full rematerialization. The compiler cannot go from sharding A to B"
    weighed = f"{line} for HLO operation %fake_parameter.2 = f32[8]"
    assert compiling.remat_warnings(f"{line}\nelse\n{line}\n{weighed}\n") == [line.partition("] ")[2]]


ASSIGNMENT = """BufferAssignment:
allocation 0: size 512, thread-local:
 value: <29 reduce_sum.80 @0> (size=512,offset=0): f32[]{:T(128)}
allocation 1: size 4096, parameter 0, shape |f32[8,128]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 1024, parameter 1, shape |f32[256]| at ShapeIndex {}:
allocation 3: size 2048, maybe-live-out:
allocation 4: size 32, output shape is |(f32[8,128], f32[512])|, maybe-live-out:
allocation 5: size 100, constant:
allocation 6: size 65536, preallocated-temp:
allocation 7: size 999999, color 1, preallocated-temp:
"""


def test_a_buffer_assignment_is_read():
    """What is updated in place is counted once, and memory on the chip is none of HBM's."""
    assert compiling.assigned(ASSIGNMENT) == {"arguments": 4096 + 1024, "outputs": 2048 + 32, "temporaries": 512 + 100 + 65536}


def test_collectives_of_a_mesh_by_hand():
    """parti_emoji on data=2, fsdp=2, tensor=2, its batch of 64 at 16 rows a device."""
    config = runs.resolve(configs.load(str(CONFIGS / "parti_emoji.py")))
    config = runs.resolve(runs.to_dict(config), [("mesh.data", "2"), ("mesh.fsdp", "2"), ("mesh.tensor", "2")])
    mesh = plan_mesh(config, topology("h100:8"), compiles=False)
    run = abstract_run(config, mesh, "cpu", StandIns(config_file=str(CONFIGS / "parti_emoji.py")))
    found = {(c.kind, c.group, c.count): c for c in estimate.collectives(run)}
    # Remat is full: three passes over 4 decoder blocks of three sums and 2 encoder blocks of two, of 64 positions of width 128, bf16.
    sums = found["all-reduce", 2, 3 * (4 * 3 + 2 * 2)]
    assert sums.bytes == sums.count * 16 * 64 * 128 * 2
    assert sums.wire == sums.bytes, "a ring of two sends each half twice"
    (gathers,) = (c for c in found.values() if c.kind == "all-gather")
    (scatters,) = (c for c in found.values() if c.kind == "reduce-scatter")
    assert gathers.bytes == scatters.bytes and gathers.count == 2 * scatters.count, "two gathers in bf16, one scatter in f32"
