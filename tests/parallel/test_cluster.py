"""Who belongs together: flags and variables of our own, TPU slices, Slurm, and hosts that work alone."""

import argparse

import pytest

from vimlab.config import ConfigError
from vimlab.parallel.cluster import Cluster, add_flags, find

OURS = {"VIMLAB_COORDINATOR": "10.0.0.2:8476", "VIMLAB_NUM_PROCESSES": "4", "VIMLAB_PROCESS_ID": "3"}
POD = {"TPU_WORKER_HOSTNAMES": "t0.x,t1.x", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "s0-t0.x:8081"}
STEP = {"SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "n[003-004,009]", "SLURM_NTASKS": "3", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}


def found(environment=None, *flags):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return find(parser.parse_args(flags), environment or {})


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        (OURS, Cluster("environment", "10.0.0.2:8476", 4, 3)),
        (POD, Cluster("TPU slices", "t0.x:8482", 2, 1)),
        (POD | SLICES, Cluster("TPU slices", "s0-t0.x:8482", 4, 3)),
        ({"TPU_PROCESS_ADDRESSES": "10.1.1.1:8471,10.1.1.2:8471", "TPU_WORKER_ID": "0"}, Cluster("TPU slices", "10.1.1.1:8482", 2, 0)),
        (STEP | {"SLURM_TASKS_PER_NODE": "1(x3)"}, Cluster("Slurm", "n003:61441", 3, 2)),
        (STEP | {"SLURM_TASKS_PER_NODE": "4", "SLURM_LOCALID": "2"}, Cluster("Slurm", "n003:61441", 3, 2, (2,))),
        (STEP | {"SLURM_TASKS_PER_NODE": "4", "CUDA_VISIBLE_DEVICES": "0"}, Cluster("Slurm", "n003:61441", 3, 2)),
        (STEP | {"SLURM_STEP_NODELIST": "a-1,b-2", "SLURM_TASKS_PER_NODE": "1"}, Cluster("Slurm", "a-1:61441", 3, 2)),
    ],
)
def test_what_the_environment_tells(environment, cluster):
    assert found(environment) == found(environment, "--distributed=on") == cluster
    assert found(environment, "--distributed=off") is None


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_WORKER_HOSTNAMES": "t0", "TPU_WORKER_ID": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # A batch script, outside any step.
        STEP | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        OURS | {"VIMLAB_NUM_PROCESSES": "1", "VIMLAB_PROCESS_ID": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_a_lone_host_stays_alone(environment):
    assert found(environment) is None


def test_flags_go_before_the_environment():
    flags = ("--coordinator=h:1", "--num-processes=2", "--process-id=0")
    assert found({}, *flags) == found(POD, *flags) == Cluster("flags", "h:1", 2, 0)
    assert found(OURS, "--process-id=1") == Cluster("flags", "10.0.0.2:8476", 4, 1)


@pytest.mark.parametrize(
    ("environment", "flags", "sentence"),
    [
        ({}, ["--coordinator=h:1"], r"--coordinator \(or VIMLAB_COORDINATOR\) is given, but not --num-processes .* nor --process-id"),
        (OURS | {"VIMLAB_PROCESS_ID": ""}, [], "but not --process-id"),
        (OURS, ["--coordinator=h"], "must be HOST:PORT"),
        (OURS | {"VIMLAB_PROCESS_ID": "4"}, [], "the process id is 4, but of 4 processes it must be from 0 to 3"),
        (OURS | {"VIMLAB_PROCESS_ID": "one"}, [], "VIMLAB_PROCESS_ID is 'one', but must be a whole number"),
        ({}, ["--distributed=on"], "nothing says which processes there are"),
        ({}, ["--distributed=off", "--process-id=1"], "contradict"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, [], "one of 2 TPU hosts, but TPU_WORKER_ID is not set"),
        (POD | SLICES | {"MEGASCALE_SLICE_ID": ""}, [], "one of 4 TPU hosts, but MEGASCALE_SLICE_ID is not set"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, [], "pod of an indexed Kubernetes job; set VIMLAB_COORDINATOR"),
    ],
)
def test_half_a_cluster_is_an_error(environment, flags, sentence):
    with pytest.raises(ConfigError, match=sentence):
        found(environment, *flags)
