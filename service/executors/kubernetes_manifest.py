"""A run as a Kubernetes Job: a pure function of what is asked, like Slurm's batch script."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etd_ds.contract import cluster, launch, rundir, spec

_PORT = 29500
_INDEX = "$(JOB_COMPLETION_INDEX)"
"""The pod's number, which Kubernetes puts into the command."""
_USER = 10001
"""Of our images."""


@dataclass(frozen=True)
class KubernetesOptions:
    """Where pods find image and data, and what each of them asks for. The defaults are those of trainer.Dockerfile."""

    image: str
    claim: str
    """A PersistentVolumeClaim that all pods can write to (ReadWriteMany for more than one node)."""
    mount: Path = Path("/data")
    """Where the pods see it; run folder and cache lie below."""
    cache: Path = Path("/data/cache")
    python: str = "/opt/venv/bin/python"
    repository: Path = Path("/opt/etd-ds")
    cpu: bool = False
    gpu_resource: str = "nvidia.com/gpu"
    cpus: str = ""
    """CPU cores of a pod, as Kubernetes writes them; empty leaves it to the cluster."""
    memory: str = ""
    grace: int = 120
    """Seconds that a pod has to write its checkpoint when it is evicted."""
    retries: int = 5
    """How many failed pods of each node are replaced; evicted ones do not count."""


def render(options: KubernetesOptions, *, run: rundir.RunDir, job: spec.JobSpec) -> list[dict[str, Any]]:
    """An Indexed Job with a pod for each of the spec's nodes; for more than one also the Service that names them.

    A pod that fails or is lost is started anew, the others end and follow, and all go on from the last checkpoint.
    """
    name = run.root.name
    labels = {"app.kubernetes.io/name": "etd-ds", "app.kubernetes.io/instance": name}
    spec_of_job = {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": job.nodes,
        "backoffLimit": options.retries * job.nodes,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _RULES},
        "template": {"metadata": {"labels": labels}, "spec": _pod(options, run, job)},
    }
    meta = {"name": name, "labels": labels}
    made = [{"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec_of_job}]
    if job.nodes > 1:
        # pods must find each other before they are ready
        headless = {"clusterIP": "None", "selector": labels, "publishNotReadyAddresses": True}
        made.insert(0, {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": headless})
    return made


_RULES: list[dict[str, Any]] = [
    # in this order: evictions and preemptions, a checkpoint written on request, a spec that cannot work
    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [launch.EXIT_STOPPED]}},
    {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [launch.EXIT_BAD_INPUT]}},
]


def _pod(options: KubernetesOptions, run: rundir.RunDir, job: spec.JobSpec) -> dict[str, Any]:
    env = launch.train_env(cpu=options.cpu) | {"HOME": "/tmp"}
    limits = {} if options.cpu else {options.gpu_resource: str(job.gpus)}
    limits |= {key: value for key, value in (("cpu", options.cpus), ("memory", options.memory)) if value}
    places = {"data": str(options.mount), "tmp": "/tmp", "shm": "/dev/shm"}
    container = {
        "name": "trainer",
        "image": options.image,
        "command": node_argv(options, run=run, job=job),
        "env": [{"name": key, "value": value} for key, value in sorted(env.items())],
        "resources": {"limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": key, "mountPath": path} for key, path in places.items()],
    }
    user = {"runAsNonRoot": True, "runAsUser": _USER, "runAsGroup": _USER, "fsGroup": _USER}
    # else each start goes through all files of the volume
    shared = {"fsGroupChangePolicy": "OnRootMismatch"}
    return {
        "restartPolicy": "Never",
        **({"subdomain": run.root.name} if job.nodes > 1 else {}),
        "terminationGracePeriodSeconds": options.grace,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {**user, **shared, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": options.claim}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def node_argv(options: KubernetesOptions, *, run: rundir.RunDir, job: spec.JobSpec) -> list[str]:
    """The command of one node's pod: DeepSpeed's launcher for that node alone, which ends with its ranks' exit code."""
    ranks = {f"node-{number}": list(range(job.gpus)) for number in range(job.nodes)}
    world = base64.urlsafe_b64encode(json.dumps(ranks).encode()).decode()
    name = run.root.name
    master = f"{name}-0.{name}" if job.nodes > 1 else "127.0.0.1"
    python, *train = cluster.rank_argv(
        run, job, cache=options.cache, python=options.python, repository=options.repository
    )
    where: Sequence[str] = ("--node_rank", _INDEX, "--master_addr", master, "--master_port", str(_PORT))
    return [python, "-m", "deepspeed.launcher.launch", "--world_info", world, *where, *train]
