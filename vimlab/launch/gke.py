"""`vimlab launch gke`: a JobSet for TPU slices on Google Kubernetes Engine, queued by Kueue, in the shape that xpk makes."""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from vimlab import exits
from vimlab.config import ConfigError
from vimlab.launch.accelerators import Slice
from vimlab.launch.outcome import GOES_ON
from vimlab.launch.record import LaunchFolder, now
from vimlab.launch.shell import Shell
from vimlab.paths import is_bucket

NAME_LIMIT = 28  # Kueue, JobSet and GKE add to names, which end at 63 characters.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gke:
    """A JobSet.

    Attributes:
      name: of the JobSet.
      image: container image that holds vimlab.
      slice: the TPUs; slices: how many of them. GKE tells the processes of several slices of each other (MEGASCALE_*).
      namespace: of Kubernetes; None leaves it to kubectl's context.
      queue: Kueue's LocalQueue, or None where the cluster has no Kueue.
      priority: Kubernetes' priority class.
      spot: whether to run on spot capacity.
      service_account: of Kubernetes, which may write to the bucket.
      environment: variables of the containers.
      claim: a persistent volume claim, mounted at `mount`.
      restarts: how often the JobSet may start all pods again.
      grace: seconds that pods get to save once they are asked to end.
    """

    name: str
    image: str
    slice: Slice
    slices: int = 1
    namespace: str | None = None
    queue: str | None = None
    priority: str | None = None
    spot: bool = False
    service_account: str | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    claim: str | None = None
    mount: str = "/workdir"
    restarts: int = 100
    grace: int = 300

    def check(self, workdir: str) -> None:
        """Raises ConfigError for a workdir that would vanish with the pods."""
        if not is_bucket(workdir) and not self.claim:
            raise ConfigError(f"--workdir {workdir} is a folder inside the pods and would vanish with them; give gs://BUCKET/FOLDER, or mount a "
                              "volume there with --volume-claim CLAIM --mount FOLDER")
        if not is_bucket(workdir) and not f"{workdir}/".startswith(f"{self.mount.rstrip('/')}/"):
            raise ConfigError(f"--workdir {workdir} is not below --mount {self.mount}, where the volume is; it would vanish with the pods")

    def kubectl(self, *args: str) -> list[str]:
        """A kubectl command in this namespace."""
        return ["kubectl", *args, *([f"--namespace={self.namespace}"] if self.namespace else [])]


def manifest(command: Sequence[str], gke: Gke) -> dict[str, Any]:
    """The JobSet (jobset.x-k8s.io/v1alpha2) that runs a vimlab command on every host of every slice.

    A pod that ends with a code of GOES_ON, or is evicted, makes the JobSet start all pods again; one that ends with another code than
    0 makes it fail at once.
    """
    labels = {"kueue.x-k8s.io/queue-name": gke.queue} if gke.queue else {}
    job = {
        "parallelism": gke.slice.hosts,
        "completions": gke.slice.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [
            # First, since an evicted pod may end with any code.
            {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "vimlab", "operator": "NotIn", "values": list(GOES_ON)}},
        ]},
        "template": {"spec": _pod(command, gke)},
    }  # fmt: skip
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _present(
            name=gke.name, namespace=gke.namespace, labels=labels,
            # A slice is a node pool, and each job gets one of its own.
            annotations={"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        ),
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": gke.restarts,
                "rules": [{"name": "failed", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": "slice", "replicas": gke.slices, "template": {"spec": job}}],
        },
    }  # fmt: skip


def _pod(command: Sequence[str], gke: Gke) -> dict[str, Any]:
    selector = {"cloud.google.com/gke-tpu-accelerator": gke.slice.generation.gke, "cloud.google.com/gke-tpu-topology": gke.slice.topology}
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if gke.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append({"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    field = lambda name, path: {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
    chips = {"google.com/tpu": gke.slice.chips_per_host}
    return _present(
        restartPolicy="Never",
        nodeSelector=selector,
        tolerations=tolerations,
        hostNetwork=True,  # Slices reach each other over the hosts' own network.
        dnsPolicy="ClusterFirstWithHostNet",
        terminationGracePeriodSeconds=gke.grace,
        serviceAccountName=gke.service_account,
        priorityClassName=gke.priority,
        containers=[_present(
            name="vimlab",
            image=gke.image,
            command=["python3", "-m", "vimlab.launch.worker", "--", *command],
            env=[
                field("VIMLAB_SLICE", "metadata.annotations['jobset.sigs.k8s.io/job-index']"),
                field("VIMLAB_HOST", "metadata.annotations['batch.kubernetes.io/job-completion-index']"),
                {"name": "VIMLAB_WORKER", "value": "$(VIMLAB_SLICE)_$(VIMLAB_HOST)"},
                *({"name": name, "value": value} for name, value in gke.environment.items()),
            ],
            ports=[{"containerPort": 8471}, {"containerPort": 8080}],  # TPU runtime, coordinator of several slices.
            resources={"requests": chips, "limits": dict(chips)},
            volumeMounts=[{"name": "workdir", "mountPath": gke.mount}] if gke.claim else [],
        )],
        volumes=[{"name": "workdir", "persistentVolumeClaim": {"claimName": gke.claim}}] if gke.claim else [],
    )  # fmt: skip


def _present(**fields: Any) -> dict[str, Any]:
    """The fields that hold something."""
    return {name: value for name, value in fields.items() if value not in (None, [], {})}


def launch(command: Sequence[str], folder: LaunchFolder, gke: Gke, *, dry: bool) -> int:
    """Prints the manifest; unless dry, gives it to the cluster. Returns an exit code.

    Raises:
      ConfigError: the workdir would vanish, or a launch on it is running.
      LaunchError: kubectl refused the manifest.
    """
    gke.check(folder.workdir)
    text = yaml.safe_dump(manifest(command, gke), sort_keys=False, width=144)
    sys.stdout.write(text)
    shell, file = Shell(dry, mark="# $ "), folder.path / f"{gke.name}.yaml"
    create = gke.kubectl("create", f"--filename={file}")
    if dry:
        shell.show(create)
        return exits.FINISHED
    with folder.hold():
        file.write_text(text)
        shell.check(create)
        folder.write({"kind": "gke", "launcher": os.getpid(), "command": list(command), "time": now(), "job": gke.name, "namespace": gke.namespace})
    return exits.FINISHED
