"""What KubeRay's RayCluster and RayJob may hold: JSON schemas of `ray.io/v1` as of KubeRay 1.7.

The fields that infra/ uses and their neighbours, written by hand after KubeRay's published types
and the reference in Ray's documentation. Every name that KubeRay's Go types had at its commits
026f143 (clusters) and 0057210 (jobs) is here as it is there; the newer ones (`authOptions`, labels
and resources of groups, deadlines before running, ...) are from the reference alone.
Stricter in one thing: a name that it does not know is a mistake here, where Kubernetes would drop
it in silence. What is inside a pod's template is Kubernetes' own and is checked against its schema
(`templates`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
BOOL, STRING, OBJECT = {"type": "boolean"}, {"type": "string"}, {"type": "object"}
LIST = {"type": "array"}


def _of(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


AUTOSCALER = _of(
    version={"enum": ["v1", "v2"]},
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    resources=OBJECT,
    securityContext=OBJECT,
    image=STRING,
    imagePullPolicy={"enum": ["Always", "Never", "IfNotPresent"]},
    env=LIST,
    envFrom=LIST,
    volumeMounts=LIST,
)
AUTH = _of(mode={"enum": ["disabled", "token"]}, secretName=STRING, enableK8sTokenAuth=BOOL)
HEAD = _of(
    ("template",),
    template=OBJECT,
    rayStartParams=STRINGS,
    labels=STRINGS,
    resources=STRINGS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]},
    headService=OBJECT,
    enableIngress=BOOL,
)
WORKERS = _of(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=STRING,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts={"type": "integer", "minimum": 1},
    idleTimeoutSeconds=COUNT,
    priority={"type": "integer"},
    suspend=BOOL,
    labels=STRINGS,
    resources=STRINGS,
    rayStartParams=STRINGS,
    scaleStrategy=OBJECT,
    template=OBJECT,
)
CLUSTER_SPEC = _of(
    ("headGroupSpec",),
    rayVersion=STRING,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    enableInTreeAutoscaling=BOOL,
    autoscalerOptions=AUTOSCALER,
    authOptions=AUTH,
    headServiceAnnotations=STRINGS,
    gcsFaultToleranceOptions=OBJECT,
    upgradeStrategy=OBJECT,
    networkPolicy=OBJECT,
    tlsOptions=OBJECT,
    managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
    suspend=BOOL,
)
JOB_SPEC = _of(
    entrypoint=STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    rayClusterSpec=CLUSTER_SPEC,
    clusterSelector=STRINGS,
    submitterPodTemplate=OBJECT,
    submitterConfig=_of(backoffLimit=COUNT),
    backoffLimit=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=BOOL,
    ttlSecondsAfterFinished=COUNT,
    deletionStrategy=OBJECT,
    runtimeEnvYAML=STRING,
    metadata=STRINGS,
    jobId=STRING,
    entrypointNumCpus={"type": "number", "minimum": 0},
    entrypointNumGpus={"type": "number", "minimum": 0},
    entrypointResources=STRING,
    suspend=BOOL,
    managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
)
# A cluster of its own or one that stands, never both; a cluster that stands is not begun anew.
JOB_SPEC["oneOf"] = [{"required": ["rayClusterSpec"]}, {"required": ["clusterSelector"]}]
JOB_SPEC["dependentSchemas"] = {
    "clusterSelector": {"properties": {"backoffLimit": {"const": 0}}},
    "ttlSecondsAfterFinished": {"properties": {"shutdownAfterJobFinishes": {"const": True}}},
}


def _kind(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    head = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": OBJECT}
    return _of(("apiVersion", "kind", "metadata", "spec"), **head, spec=spec)


KINDS = {"RayCluster": _kind("RayCluster", CLUSTER_SPEC), "RayJob": _kind("RayJob", JOB_SPEC)}


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """The cluster that a RayCluster is, or that a RayJob brings."""
    spec = manifest["spec"]
    return spec if manifest["kind"] == "RayCluster" else spec["rayClusterSpec"]


def templates(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, pod template) of each that a manifest of Ray's holds."""
    spec = cluster_spec(manifest)
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if manifest["kind"] == "RayJob":
        yield "submitter", manifest["spec"]["submitterPodTemplate"]
