"""Kubernetes, KubeRay and Ray's autoscaler take the manifests; all of it offline."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline.experiment_file import load_experiment
from tests.infra import kuberay
from tests.infra.kube import KUBE, ROOTS, pods, rendered

KUBERNETES = ("1.31.0", "1.37.0")  # from the oldest that is looked after to the newest


def all_of(root: str) -> list[dict[str, Any]]:
    return rendered(KUBE / root)


def check(manifest: dict[str, Any], version: str) -> None:
    """Raises where Kubernetes, or KubeRay, would not take it as it is meant."""
    if manifest["kind"] in kuberay.KINDS:
        schema = kuberay.KINDS[manifest["kind"]]
        jsonschema.Draft202012Validator(schema).validate(manifest)
        autoscaler = ("autoscaler", kuberay.autoscaler(manifest))
        for where, template in (*kuberay.templates(manifest), autoscaler):
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": where}}
            kubernetes_validate.validate(pod | {"template": template}, version, strict=True)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("root", ROOTS)
def test_kubernetes_and_kuberay_take_every_manifest(root, version):
    manifests = all_of(root)
    assert manifests
    for manifest in manifests:
        check(manifest, version)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "resource"), {}),
        (("spec", "workerGroupSpecs", 0, "maxReplica"), 4),
        (("spec", "workerGroupSpecs", 0, "template", "spec", "terminationGracePeriod"), 9),
        (("spec", "workerGroupSpecs", 0, "minReplicas"), -1),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "autoscalerOptions", "version"), "v3"),
        (("spec", "autoscalerOptions", "resources"), {"limit": {"cpu": "1"}}),
        (("spec", "networkPolicy"), {"mode": "DenyIngress"}),
        (("spec", "gcsFaultToleranceOptions"), {"storage": {"claim": "gcs"}}),
        (("spec", "authOptions", "mode"), "tokens"),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_a_misspelt_or_mistyped_field_is_refused(path, value):
    (cluster,) = [m for m in all_of("base") if m["kind"] == "RayCluster"]
    broken = copy.deepcopy(cluster)
    place: Any = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(broken, KUBERNETES[-1])


@pytest.mark.parametrize(
    "strategy",
    [
        {"onSuccess": {"policy": "DeleteCluster"}},
        {"deletionRules": []},
        {"deletionRules": [{"policy": "DeleteSelf", "condition": {"ttlSeconds": 60}}]},
    ],
    ids=["half of the pair", "no rule", "rules beside shutdownAfterJobFinishes"],
)
def test_how_a_job_is_cleared_away_is_said_in_one_way(strategy):
    (job,) = [m for m in all_of("job") if m["kind"] == "RayJob"]
    assert job["spec"]["shutdownAfterJobFinishes"]
    with pytest.raises(jsonschema.ValidationError):
        check(job | {"spec": job["spec"] | {"deletionStrategy": strategy}}, KUBERNETES[-1])


def test_a_job_has_one_cluster_and_is_begun_anew_only_with_its_own():
    (job,) = [m for m in all_of("job") if m["kind"] == "RayJob"]
    validate = jsonschema.Draft202012Validator(kuberay.KINDS["RayJob"]).validate
    both = copy.deepcopy(job)
    both["spec"]["clusterSelector"] = {"ray.io/cluster": "forger"}
    with pytest.raises(jsonschema.ValidationError):
        validate(both)
    del both["spec"]["rayClusterSpec"]
    with pytest.raises(jsonschema.ValidationError):
        validate(both)  # backoffLimit is still 3


@pytest.mark.parametrize("root", ROOTS)
def test_rays_autoscaler_sees_a_head_without_work_and_workers_that_come_and_go(root):
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    for manifest in (m for m in all_of(root) if m["kind"] in kuberay.KINDS):
        spec = kuberay.cluster_spec(manifest)
        config = _derive_autoscaling_config_from_ray_cr({**manifest, "spec": spec})
        head = config["available_node_types"]["headgroup"]
        workers = config["available_node_types"]["spot-gpu"]
        assert head["resources"]["CPU"] == 0
        assert head["max_workers"] == 0
        assert workers["min_workers"] < workers["max_workers"]
        assert workers["labels"]["ray.io/market-type"] == "spot"
        assert workers["resources"].get("GPU", 0) == (root != "overlays/one-node")
        assert spec["autoscalerOptions"]["version"] == "v2", "v1 knows no labels"


@pytest.mark.parametrize("root", ROOTS)
def test_a_spot_node_has_time_to_drain_before_it_is_killed(root):
    for manifest in (m for m in all_of(root) if m["kind"] in kuberay.KINDS):
        for group in kuberay.cluster_spec(manifest)["workerGroupSpecs"]:
            pod = group["template"]["spec"]
            given = {e["name"]: e.get("value") for e in pod["containers"][0]["env"]}
            drain = int(given["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert drain + 10 <= pod["terminationGracePeriodSeconds"]


def test_a_jobs_cluster_is_the_standing_one():
    (cluster,) = [m for m in all_of("base") if m["kind"] == "RayCluster"]
    (job,) = [m for m in rendered(KUBE / "job") if m["kind"] == "RayJob"]
    without_images = yaml.safe_dump(job["spec"]["rayClusterSpec"]).replace("REGISTRY/", "")
    assert yaml.safe_load(without_images) == cluster["spec"]


def test_rays_version_is_the_images():
    lock = (KUBE.parent / "locks" / "cuda.txt").read_text()
    for root in ROOTS:
        for manifest in (m for m in all_of(root) if m["kind"] in kuberay.KINDS):
            assert f"\nray=={kuberay.cluster_spec(manifest)['rayVersion']} " in lock


@pytest.mark.parametrize("root", ROOTS[1:])
def test_what_a_pod_names_is_there_or_is_a_secret_that_the_readme_makes(root):
    manifests = all_of(root) + (all_of("base") if root == "job" else [])
    there = {m["metadata"]["name"] for m in manifests if m["kind"] == "ConfigMap"}
    accounts = {m["metadata"]["name"] for m in manifests if m["kind"] == "ServiceAccount"}
    readme = (KUBE.parent / "README.md").read_text()
    for where, pod in (pair for m in manifests for pair in pods(m)):
        spec = pod["spec"]
        assert spec.get("serviceAccountName", "default") in accounts | {"default"}, where
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for container in spec["containers"]:
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in volumes or mount["name"] == "data", (where, mount)
            for entry in container.get("env", []):
                ref = entry.get("valueFrom", {})
                if "secretKeyRef" in ref:
                    assert f"generic {ref['secretKeyRef']['name']} " in readme, where
                if "configMapKeyRef" in ref and root != "job":
                    assert ref["configMapKeyRef"]["name"] in there, where
        for volume in volumes.values():
            named = volume.get("configMap", {})
            assert named.get("optional") or not named or named["name"] in there, where
    for manifest in manifests:
        if manifest["kind"] in kuberay.KINDS:
            name = kuberay.cluster_spec(manifest)["authOptions"]["secretName"]
            assert f"generic {name} --from-file=auth_token=" in readme


def test_the_jobs_experiment_is_one():
    loaded = load_experiment(str(KUBE / "job" / "experiment.toml"), ())
    assert loaded.experiment.cluster.storage.startswith("s3://")
    assert loaded.experiment.cluster.device == "cuda"
