"""Who the processes of a run are: from flags, our environment variables, or what a TPU pod, GKE or Slurm says of itself."""

import argparse
import dataclasses
import os
from collections.abc import Mapping

from vimlab.config import ConfigError

FLAGS = {"coordinator": "VIMLAB_COORDINATOR", "num_processes": "VIMLAB_NUM_PROCESSES", "process_id": "VIMLAB_PROCESS_ID"}
TPU_PORT = 8482  # Open between the workers of a pod; JAX's own choice.


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A process's place among those of its run.

    Attributes:
      kind: what said so.
      coordinator: HOST:PORT that process 0 listens on.
      count: how many processes there are.
      index: which of them this is, from 0.
      local_devices: the GPUs of its host that are this process's; None for all.
    """

    kind: str
    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _, colon, port = self.coordinator.rpartition(":")
        if not (colon and port.isdecimal()):
            raise ConfigError(f"{self.kind}: the coordinator is {self.coordinator!r}, but must be HOST:PORT, as 10.0.0.2:8476")
        if not 0 <= self.index < self.count:
            raise ConfigError(f"{self.kind}: the process id is {self.index}, but of {self.count} processes it must be from 0 to {self.count - 1}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every command that may run as many processes."""
    group = parser.add_argument_group("many processes", "Started once on every host, the same command works as one; TPU pods, GKE and Slurm "
                                      "say by themselves who belongs together, elsewhere --coordinator, --num-processes and --process-id (or "
                                      "VIMLAB_COORDINATOR, VIMLAB_NUM_PROCESSES and VIMLAB_PROCESS_ID) do.")  # fmt: skip
    group.add_argument("--distributed", choices=("auto", "on", "off"), default="auto", help="auto: if there are several processes (default); "
                       "on: it is an error if there are not; off: this process alone")  # fmt: skip
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, with a free port there")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")
    group.add_argument("--init-timeout", type=float, default=300.0, metavar="SECONDS", help="how long to wait for all to come (300)")
    group.add_argument("--peer-timeout", type=float, default=45.0, metavar="SECONDS", help="how long one may be silent before it counts as "
                       "dead (45)")  # fmt: skip


def find(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that this process belongs to; None where it works alone.

    Args:
      args: of `add_flags`.

    Raises:
      ConfigError: half a cluster is described, or none can be found although --distributed=on, or one is there that does not
        say enough of itself.
    """
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    if args.distributed == "off":
        if given:
            raise ConfigError(f"--distributed=off and {_flag(next(iter(given)))} contradict each other; leave one of them out")
        return None
    cluster = _told(given, environment) or _of_tpus(environment) or _of_slurm(environment) or _of_tpu_vm() or _of_kubernetes(environment)
    if cluster is None and args.distributed == "on":
        raise ConfigError("--distributed=on, but nothing says which processes there are; give --coordinator=HOST:PORT --num-processes=N "
                          "--process-id=I (or VIMLAB_COORDINATOR, VIMLAB_NUM_PROCESSES, VIMLAB_PROCESS_ID)")  # fmt: skip
    return cluster if cluster and cluster.count > 1 else None


def _told(given: Mapping[str, object], environment: Mapping[str, str]) -> Cluster | None:
    values = {name: environment[variable] for name, variable in FLAGS.items() if environment.get(variable)} | given
    if not values:
        return None
    if missing := [name for name in FLAGS if name not in values]:
        there = f"{_flag(next(iter(values)))} (or {FLAGS[next(iter(values))]})"
        raise ConfigError(f"{there} is given, but not {' nor '.join(f'{_flag(n)} (or {FLAGS[n]})' for n in missing)}; give all three")
    count, index = (_whole(values[name], f"{_flag(name)} or {FLAGS[name]}") for name in ("num_processes", "process_id"))
    return Cluster("flags" if given else "environment", str(values["coordinator"]), count, index)


def _of_tpus(environment: Mapping[str, str]) -> Cluster | None:
    """TPU slices whose hosts are told of each other by variables, as on GKE; several slices by Megascale's."""
    listed = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if not listed:
        return None
    hosts = [host.strip() for host in listed.split(",")]
    slices = _whole(environment.get("MEGASCALE_NUM_SLICES") or 1, "MEGASCALE_NUM_SLICES")
    if len(hosts) * slices == 1:
        return Cluster("one TPU host", f"{hosts[0].split(':')[0]}:{TPU_PORT}", 1, 0)
    names = ["TPU_WORKER_ID"] + ["MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS"] * (slices > 1)
    if missing := [name for name in names if not environment.get(name)]:
        raise ConfigError(f"this is one of {len(hosts) * slices} TPU hosts, but {missing[0]} is not set; set it, or give --coordinator, "
                          "--num-processes and --process-id, or --distributed=off")  # fmt: skip
    worker, part = (_whole(environment.get(name) or 0, name) for name in ("TPU_WORKER_ID", "MEGASCALE_SLICE_ID"))
    first = environment.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    return Cluster("TPU slices", f"{first.split(':')[0]}:{TPU_PORT}", len(hosts) * slices, part * len(hosts) + worker)


def _of_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """The tasks of a Slurm step; a batch script by itself is no step and works alone."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if not all(environment.get(name) for name in names):
        return None
    job, nodes, count, index, local = (environment[name] for name in names)
    host, _, ranges = nodes.split(",")[0].partition("[")
    host += ranges.split("-")[0].rstrip("]")
    port = 65536 - 4096 + _whole(job, "SLURM_JOB_ID") % 4096
    alone = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "")).split("(")[0] == "1"
    # Tasks that share a node take a GPU each, unless Slurm has given them theirs already (--gpus-per-task).
    bound = alone or len(environment.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1
    devices = None if bound else (_whole(local, "SLURM_LOCALID"),)
    return Cluster("Slurm", f"{host}:{port}", _whole(count, "SLURM_NTASKS"), _whole(index, "SLURM_PROCID"), devices)


def _of_tpu_vm() -> Cluster | None:
    """A Cloud TPU VM, of which its metadata server knows the others; asked through JAX, which does so too."""
    from jax._src.clusters import GceTpuCluster
    from jax._src.clusters.cloud_tpu_cluster import running_in_cloud_tpu_vm

    if not running_in_cloud_tpu_vm:
        return None
    try:
        if not GceTpuCluster.is_env_present():
            return None
        count, index = GceTpuCluster.get_process_count(), GceTpuCluster.get_process_id()
        return Cluster("Cloud TPU VM", GceTpuCluster.get_coordinator_address(60, str(TPU_PORT)), count, index)
    except Exception as error:
        raise ConfigError(f"this is a Cloud TPU VM, but its metadata server does not say which others belong to it ({error}); give "
                          "--coordinator, --num-processes and --process-id, or --distributed=off for this host alone") from error  # fmt: skip


def _of_kubernetes(environment: Mapping[str, str]) -> None:
    """Raises ConfigError in a pod of an indexed job: how many there are, and where the first is, no variable says."""
    if environment.get("KUBERNETES_SERVICE_HOST") and environment.get("JOB_COMPLETION_INDEX"):
        raise ConfigError("this is a pod of an indexed Kubernetes job; set VIMLAB_COORDINATOR, VIMLAB_NUM_PROCESSES and VIMLAB_PROCESS_ID (the "
                          "latter to JOB_COMPLETION_INDEX) if its pods are to work as one, or give --distributed=off if each works alone")  # fmt: skip


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _whole(value: object, what: str) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ConfigError(f"{what} is {value!r}, but must be a whole number") from None
