"""What is run for us is run by nobody special: versions, users, rights, limits, secrets."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from typing import Any

import pytest
import yaml

from tests.infra import kuberay
from tests.infra.kube import INFRA, KUBE, ROOTS, pods, rendered

ALL_PODS = [
    (f"{root}:{where}", pod)
    for root in ROOTS
    for manifest in rendered(KUBE / root)
    for where, pod in pods(manifest)
]
PODS = [pytest.param(*each, id=each[0]) for each in ALL_PODS]
COMPOSE: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
SECRET = re.compile(r"(?i)(password|secret|token|access_key)")
REFERENCE = re.compile(r"(?i)(_file|_path|_uri|_name|credentials_file)$")


def test_every_image_has_a_version():
    dockerfile = (INFRA / "Dockerfile").read_text()
    images = re.findall(r"^ARG \w+_IMAGE=(\S+)", dockerfile, re.M)
    images += [service["image"] for service in SERVICES.values()]
    images += [c["image"] for _, pod in ALL_PODS for c in pod["spec"]["containers"]]
    images.append(yaml.safe_load((INFRA / "ray" / "cluster.yaml").read_text())["docker"]["image"])
    assert len(images) > 10
    for image in images:
        assert re.search(r":v?\d+\.\d+[\w.-]*$|@sha256:[0-9a-f]{64}$", image), image
    stages = set(re.findall(r" AS (\S+)", dockerfile))
    for image in re.findall(r"^FROM (\S+)", dockerfile, re.M):
        assert image in stages or image.startswith("${"), image


@pytest.mark.parametrize(("where", "pod"), PODS)
def test_a_pod_has_no_rights_and_a_limit(where, pod):
    spec = pod["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), where
    assert not any("hostPath" in volume for volume in spec.get("volumes", [])), where
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    # Ray's head has the account that KubeRay makes for its autoscaler.
    assert where.endswith("/head") or spec["automountServiceAccountToken"] is False
    for container in spec["containers"] + spec.get("initContainers", []):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in rights
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][kind]), (where, kind)
    for volume in spec.get("volumes", []):
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            assert "sizeLimit" in volume["emptyDir"]


@pytest.mark.parametrize("root", ROOTS)
def test_no_secret_is_in_a_manifest(root):
    for manifest in rendered(KUBE / root):
        assert manifest["kind"] != "Secret"
        for _, pod in pods(manifest):
            for container in pod["spec"]["containers"]:
                for entry in container.get("env", []):
                    if SECRET.search(entry["name"]) and not REFERENCE.search(entry["name"]):
                        assert "secretKeyRef" in entry.get("valueFrom", {}), entry


@pytest.mark.parametrize("root", ROOTS)
def test_ray_asks_for_a_token(root):
    for manifest in (m for m in rendered(KUBE / root) if m["kind"] in kuberay.KINDS):
        assert kuberay.cluster_spec(manifest)["authOptions"]["mode"] == "token"
        rights = kuberay.cluster_spec(manifest)["autoscalerOptions"]["securityContext"]
        assert rights["capabilities"] == {"drop": ["ALL"]}


def test_nothing_comes_in_but_what_is_named():
    manifests = rendered(KUBE / "base")
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    closed = [p for p in policies if p["podSelector"] == {} and "Ingress" in p["policyTypes"]]
    assert closed
    assert all("ingress" not in policy and "egress" not in policy for policy in closed)
    names = {
        pod["metadata"]["labels"]["app.kubernetes.io/name"]
        for m in manifests
        for _, pod in pods(m)
    }
    for policy in policies:
        for rule in policy.get("ingress", []):
            assert rule["from"], "an empty `from` is everybody"
            for source in rule["from"]:
                assert "ipBlock" not in source
                chosen = source.get("podSelector", {}).get("matchLabels", {})
                assert set(chosen.values()) <= names
    (space,) = [m for m in manifests if m["kind"] == "Namespace"]
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert not any(m["kind"] == "Service" and m["spec"].get("type") for m in manifests)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_of_compose_has_no_rights_and_a_limit(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(service)
    assert int(service["user"].split(":")[0]) > 0
    assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    assert "healthcheck" in service
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), port
    for volume in service.get("volumes", []):
        assert volume.split(":")[0] in COMPOSE["volumes"], "nothing of the host is mounted"
    for key, value in service["environment"].items() if "environment" in service else ():
        if SECRET.search(key):
            assert REFERENCE.search(key), f"{key} holds a secret"
            assert "/" in value or key.endswith("_NAME")


def test_a_service_knows_only_the_secrets_that_it_needs():
    knows = {name: set(service.get("secrets", [])) for name, service in SERVICES.items()}
    assert set().union(*knows.values()) == set(COMPOSE["secrets"])
    for name in ("head", "worker"):
        assert knows[name] == {"ray_token", "s3_forger", "mlflow_trainer"}
    assert "ray_token" not in knows["mlflow"] | knows["postgres"] | knows["s3"]
    assert not any("database" in SERVICES[name]["networks"] for name in ("head", "worker", "s3"))
    assert COMPOSE["networks"]["database"]["internal"] is True


def test_the_image_is_made_of_locked_packages_and_runs_without_root():
    dockerfile = (INFRA / "Dockerfile").read_text()
    for command in re.findall(r"pip install (.*)", dockerfile):
        assert "--no-deps" in command
        assert "--require-hashes" in command or command.startswith("--no-deps .")
    for stage in re.split(r"^FROM ", dockerfile, flags=re.M)[1:]:
        if re.match(r"\S+ AS (runtime|s3)", stage):
            assert "\nUSER 1000:1000\n" in stage
    ignored = (INFRA.parent / ".dockerignore").read_text().split()
    assert {".git", "infra/secrets"} <= set(ignored)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_lock_has_every_package_by_hash_and_is_of_this_pyproject(name):
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    text = (INFRA / "locks" / f"{name}.txt").read_text()
    entries = re.findall(r"^(\S+?)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.M)
    assert len(entries) == len(re.findall(r"^[^\s#]", text, re.M)), "a package without a hash"
    locked = {canonicalize_name(package): Version(version) for package, version, _ in entries}
    import tomllib

    project = tomllib.loads((INFRA.parent / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        line for extra in ("server", "onnx") for line in project["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, wanted):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version.public), f"{requirement}, locked {version}"
    assert ("nvidia-nccl-cu13" in locked) == (name == "cuda")


def test_the_secrets_are_their_owners_and_made_once(tmp_path):
    (tmp_path / "secrets.sh").write_text((INFRA / "secrets.sh").read_text())

    def run() -> dict[str, bytes]:
        subprocess.run(["bash", str(tmp_path / "secrets.sh")], check=True)
        return {path.name: path.read_bytes() for path in (tmp_path / "secrets").iterdir()}

    made = run()
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert set(made) >= set(COMPOSE["secrets"])
    assert len(set(made.values())) == len(made), "each is another"
    assert all(len(value) >= 24 for value in made.values())
    assert run() == made
    git = ["git", "check-ignore", "-q", "infra/secrets/ray_token"]
    assert subprocess.run(git, cwd=INFRA.parent).returncode == 0


def test_the_bucket_policy_gives_the_prefixes_that_are_used_and_no_more():
    policy = json.loads((INFRA / "storage" / "bucket-policy.json").read_text())
    names = {"s3:ListBucket", "s3:ListBucketMultipartUploads"}
    for statement in policy["Statement"]:
        if statement["Effect"] == "Deny":
            continue
        said, place = statement["Action"], statement["Resource"]
        actions = {said} if isinstance(said, str) else set(said)
        assert not any("*" in action for action in actions)
        assert statement["Principal"] != "*"
        if place == "arn:aws:s3:::BUCKET":
            assert actions <= names
        else:
            assert re.fullmatch(r"arn:aws:s3:::BUCKET/(data|runs|mlflow)/\*", place)
