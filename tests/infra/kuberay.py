"""What KubeRay's RayCluster and RayJob may hold: JSON schemas of `ray.io/v1` at KubeRay v1.7.0.

KUBERAY names the release and the commit of the reference that KubeRay generates from its CRDs' Go
types (docs/reference/api.md; its own CI fails where the two differ). Every field of RayClusterSpec
and RayJobSpec that stands there is here with its type, its values and its bounds, written by hand.

Stricter in two things: a name that KubeRay does not know is a mistake here, where Kubernetes would
drop it in silence; and what the operator refuses only once it has the object is refused here too.
What is Kubernetes' own (pod templates, containers' settings) is checked against its own schemas
(`templates`, `autoscaler`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KUBERAY = ("v1.7.0", "97509c3a7216cf3440af381646560a1885afb53b")

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
INTEGER, COUNT = {"type": "integer"}, {"type": "integer", "minimum": 0}
NUMBER = {"type": "number", "minimum": 0}
BOOL, STRING, OBJECT = {"type": "boolean"}, {"type": "string"}, {"type": "object"}
QUANTITY = {"type": ["string", "number"]}


def _enum(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def _list(items: dict[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


def _of(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


PULL = _enum("Always", "Never", "IfNotPresent")
MANAGER = _enum("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
# The fields of a Kubernetes container that an autoscaler may be given.
CONTAINER = {
    "resources": OBJECT,
    "securityContext": OBJECT,
    "image": STRING,
    "imagePullPolicy": PULL,
    "env": _list(OBJECT),
    "envFrom": _list(OBJECT),
    "volumeMounts": _list(OBJECT),
    "command": _list(STRING),
    "args": _list(STRING),
}
AUTOSCALER = _of(
    version=_enum("v1", "v2"),
    idleTimeoutSeconds=COUNT,
    upscalingMode=_enum("Default", "Aggressive", "Conservative"),
    **CONTAINER,
)
AUTH = _of(mode=_enum("disabled", "token"), secretName=STRING, enableK8sTokenAuth=BOOL)
CREDENTIAL = _of(value=STRING, valueFrom=OBJECT)
GCS_STORAGE = _of(
    claimName=STRING,
    size=QUANTITY,
    storageClassName=STRING,
    accessModes=_list(STRING),
    subPath=STRING,
    deletionPolicy=_enum("DeleteWithCluster", "Retain"),
)
GCS = _of(
    backend=_enum("redis", "rocksdb"),
    redisUsername=CREDENTIAL,
    redisPassword=CREDENTIAL,
    externalStorageNamespace=STRING,
    redisAddress=STRING,
    storage=GCS_STORAGE,
)
HISTORY = _of(
    collectorOptions=_of(image=STRING, imagePullPolicy=PULL, resources=OBJECT, env=_list(OBJECT))
)
RULES: dict[str, Any] = {"ingressRules": _list(OBJECT), "egressRules": _list(OBJECT)}
NETWORK = _of(
    mode=_enum("DenyAll", "DenyAllIngress", "DenyAllEgress"),
    head=_of((), **RULES),
    worker=_of((), **RULES),
    workerGroups=_list(_of(("groupName",), groupName=STRING, **RULES)),
)
INGRESS = _of(
    host=STRING,
    path=STRING,
    pathType=_enum("Exact", "Prefix", "ImplementationSpecific"),
    tls=_list(OBJECT),
)
GROUP = {"template": OBJECT, "rayStartParams": STRINGS, "labels": STRINGS, "resources": STRINGS}
HEAD = _of(
    ("template",),
    serviceType=_enum("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    headService=OBJECT,
    enableIngress=BOOL,
    ingressOptions=INGRESS,
    **GROUP,
)
WORKERS = _of(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=STRING,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts={"type": "integer", "minimum": 1},
    idleTimeoutSeconds=COUNT,
    priority=INTEGER,
    suspend=BOOL,
    scaleStrategy=_of(workersToDelete=_list(STRING)),
    **GROUP,
)
CLUSTER_SPEC = _of(
    ("headGroupSpec",),
    rayVersion=STRING,
    headGroupSpec=HEAD,
    workerGroupSpecs=_list(WORKERS),
    enableInTreeAutoscaling=BOOL,
    autoscalerOptions=AUTOSCALER,
    authOptions=AUTH,
    headServiceAnnotations=STRINGS,
    gcsFaultToleranceOptions=GCS,
    historyServerOptions=HISTORY,
    upgradeStrategy=_of(type=_enum("Recreate", "None")),
    networkPolicy=NETWORK,
    tlsOptions=_of(enabled=BOOL),
    managedBy=MANAGER,
    suspend=BOOL,
)
DELETION = _of(policy=_enum("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"))
DELETION_RULE = _of(
    ("policy", "condition"),
    **DELETION["properties"],
    condition=_of(ttlSeconds=COUNT, jobStatus=STRING, jobDeploymentStatus=STRING),
)
# One way or the other: a list of rules, or both of the older pair.
DELETION_STRATEGY = _of(
    onSuccess=DELETION, onFailure=DELETION, deletionRules=_list(DELETION_RULE, 1)
) | {"oneOf": [{"required": ["deletionRules"]}, {"required": ["onSuccess", "onFailure"]}]}
JOB_SPEC = _of(
    entrypoint=STRING,
    submissionMode=_enum("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    rayClusterSpec=CLUSTER_SPEC,
    clusterSelector=STRINGS,
    submitterPodTemplate=OBJECT,
    submitterConfig=_of(backoffLimit=COUNT),
    backoffLimit=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=BOOL,
    ttlSecondsAfterFinished=COUNT,
    deletionStrategy=DELETION_STRATEGY,
    runtimeEnvYAML=STRING,
    metadata=STRINGS,
    jobId=STRING,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=STRING,
    suspend=BOOL,
    managedBy=MANAGER,
)
# A cluster of its own or one that stands, never both; a cluster that stands is not begun anew.
JOB_SPEC["oneOf"] = [{"required": ["rayClusterSpec"]}, {"required": ["clusterSelector"]}]
JOB_SPEC["dependentSchemas"] = {
    "clusterSelector": {"properties": {"backoffLimit": {"const": 0}}},
    "ttlSecondsAfterFinished": {"properties": {"shutdownAfterJobFinishes": {"const": True}}},
    "deletionStrategy": {
        "if": {"properties": {"deletionStrategy": {"required": ["deletionRules"]}}},
        "then": {"properties": {"shutdownAfterJobFinishes": {"const": False}}},
    },
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


def autoscaler(manifest: dict[str, Any]) -> dict[str, Any]:
    """A pod template with what a manifest says of the autoscaler's container, and no more."""
    given = cluster_spec(manifest).get("autoscalerOptions", {})
    container = {"name": "autoscaler"} | {k: v for k, v in given.items() if k in CONTAINER}
    return {"spec": {"containers": [container]}}
