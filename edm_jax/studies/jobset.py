"""The tasks of a study on Kubernetes: a JobSet for each, one pod a host.

A pod that is evicted saves; the JobSet then starts all its pods again, without limit,
and the run resumes. After other failures it does so a few times.
"""

import dataclasses
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edm_jax.cost.chips import Topology
from edm_jax.fields import Count, Index, Settings
from edm_jax.studies import remote
from edm_jax.studies.task import Task

_TPU_LABELS = {  # of Google's node pools
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}
_GRACE_S = 120  # to save in, once a pod is told to go
_RANK = "JOB_COMPLETION_INDEX"


@dataclasses.dataclass(frozen=True)
class Resources(Settings):
    """What one run asks of the cluster."""

    topology: str = ""  # of TPUs, such as v5e:4x4
    chips_per_host: Count = 4
    gpus: Index = 0  # of a host
    hosts: Count = 1  # of a run, but on TPUs, whose topology tells
    image: str = "edm-jax:latest"
    volume: str = "runs"  # the claim of the volume that holds the runs
    node_selector: str = ""  # more labels, LABEL=VALUE,LABEL=VALUE
    namespace: str = "default"
    max_restarts: Index = 10  # after failures; evictions do not count

    def faults(self) -> Iterator[str]:
        """What contradicts itself."""
        for field in ("namespace", "volume"):
            name = getattr(self, field)
            if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", name):
                allowed = "use a-z, 0-9 and -."
                yield f"{field}={name!r} is not a name that Kubernetes allows: {allowed}"
        if not self.image:
            yield "image is empty: name one that holds the project."
        for pair in filter(None, self.node_selector.split(",")):
            if not re.fullmatch(r"[\w./-]+=[\w.-]*", pair):
                yield f"node_selector has {pair!r}, but must be LABEL=VALUE,LABEL=VALUE."
        if self.topology:
            yield from self._tpu_faults()

    def _tpu_faults(self) -> Iterator[str]:
        if self.gpus or self.hosts > 1:
            yield "topology is of TPUs, and tells the hosts: leave out gpus and hosts."
        chips = Topology.of(self.topology).chips
        several = chips > self.chips_per_host
        if several and (self.chips_per_host != 4 or chips % 4):
            yield (
                f"topology={self.topology} has {chips} chips, and chips_per_host is "
                f"{self.chips_per_host}: slices of several hosts have 4 on each."
            )

    @property
    def chip(self) -> str:
        """The kind of TPU; '' for what may be anything."""
        return Topology.of(self.topology).kind if self.topology else ""

    @property
    def all_hosts(self) -> int:
        """Pods of a run."""
        if not self.topology:
            return self.hosts
        return -(-Topology.of(self.topology).chips // self.chips_per_host)

    def limits(self) -> dict[str, int]:
        """The accelerators of a pod."""
        if self.topology:
            chips = Topology.of(self.topology).chips
            return {"google.com/tpu": min(chips, self.chips_per_host)}
        return {"nvidia.com/gpu": self.gpus} if self.gpus else {}

    def labels(self) -> dict[str, str]:
        """Of the nodes that pods may run on."""
        pairs = [pair.split("=") for pair in self.node_selector.split(",") if pair]
        found = dict(pairs)
        if self.topology:
            tpu = Topology.of(self.topology)
            found["cloud.google.com/gke-tpu-accelerator"] = _TPU_LABELS[tpu.kind]
            found["cloud.google.com/gke-tpu-topology"] = tpu.shape
        return found


def manifest(task: Task, resources: Resources, project: Path) -> dict[str, Any]:
    """The JobSet of a task; raises ValueError where its config is not in the project."""
    name, hosts = remote.job_name(task), resources.all_hosts
    join, alone = "", {}
    if hosts > 1 and resources.topology:
        alone = remote.ONE_TPU_HOST
    elif hosts > 1:
        first = f"{name}-hosts-0-0.{name}"
        join = (
            f"--coordinator={first}:{remote.COORDINATOR_PORT} "
            f"--num_processes={hosts} --process_id=${_RANK}"
        )
    there = remote.moved(task, project, "python", join, alone)
    command = there.process_command("python", _RANK)
    metadata: dict[str, Any] = {"name": name, "namespace": resources.namespace}
    if hosts > 1 and resources.topology:
        # All pods of a run on one slice, and none of another run's.
        where = "cloud.google.com/gke-nodepool"
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": where}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": resources.max_restarts,
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": "hosts",
                    "replicas": 1,
                    "template": {"spec": _job(hosts, _pod(command, resources))},
                }
            ],
        },
    }


def _job(hosts: int, pod: dict[str, Any]) -> dict[str, Any]:
    codes = {"operator": "In", "values": remote.PREEMPTED}
    evicted = {"type": "DisruptionTarget", "status": "True"}
    return {
        "completionMode": "Indexed",
        "completions": hosts,
        "parallelism": hosts,
        "backoffLimit": 0,  # the JobSet starts all pods again, not the job one of them
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": codes},
                {"action": "FailJob", "onPodConditions": [evicted]},
            ]
        },
        "template": {"spec": pod},
    }


def _pod(command: list[str], resources: Resources) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "run",
        "image": resources.image,
        # Kubernetes would expand $(NAME).
        "command": [word.replace("$(", "$$(") for word in command],
        "volumeMounts": [{"name": "runs", "mountPath": remote.RUNS}],
    }
    if limits := resources.limits():
        container["resources"] = {"limits": limits}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_S,
        "securityContext": {"fsGroup": 1000},  # the image's user may write to the runs
        "containers": [container],
        "volumes": [
            {
                "name": "runs",
                "persistentVolumeClaim": {"claimName": resources.volume},
            }
        ],
    }
    if labels := resources.labels():
        pod["nodeSelector"] = labels
    return pod


def apply(manifests: str) -> str:
    """Has kubectl create or update the JobSets, and returns what it says.

    Raises OSError without kubectl, or where the cluster refuses.
    """
    if not shutil.which("kubectl"):
        raise OSError(
            "kubectl was not found: install it, or apply what --dry_run prints from a "
            "machine that has it."
        )
    ask = ["kubectl", "apply", "-f", "-"]
    done = subprocess.run(
        ask, input=manifests, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"kubectl refuses: {done.stderr.strip()}")
    return done.stdout
