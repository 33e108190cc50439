"""The manifests as `kubectl apply -k` would send them: as much of kustomize as infra/kube uses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.infra import kuberay

INFRA = Path(__file__).parents[2] / "infra"
KUBE = INFRA / "kube"
ROOTS = ("base", "job", "overlays/one-node", "overlays/spot-gpu")
KNOWN = {
    "apiVersion", "kind", "namespace", "resources", "configMapGenerator", "generatorOptions",
    "configurations", "images", "patches",
}  # fmt: skip
Manifest = dict[str, Any]


def rendered(root: Path) -> list[Manifest]:
    """Every manifest of a kustomization; a field that is not known here is refused."""
    says = yaml.safe_load((root / "kustomization.yaml").read_text())
    assert set(says) <= KNOWN, f"{root}: {set(says) - KNOWN}"
    found: list[Manifest] = []
    for name in says["resources"]:
        path = root / name
        if path.is_dir():
            found += rendered(path)
        else:
            found += [doc for doc in yaml.safe_load_all(path.read_text()) if doc]
    for made in says.get("configMapGenerator", []):
        data = dict(pair.split("=", 1) for pair in made.get("literals", []))
        for file in made.get("files", []):
            key, _, name = file.rpartition("=")
            data[key or name] = (root / name).read_text()
        namespace = made.get("namespace", says.get("namespace"))
        metadata = {"name": made["name"], "namespace": namespace}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    for patch in says.get("patches", []):
        kind, name = patch["target"]["kind"], patch["target"]["name"]
        (place,) = [
            i for i, m in enumerate(found) if (m["kind"], m["metadata"]["name"]) == (kind, name)
        ]
        found[place] = _patched(found[place], yaml.safe_load(patch["patch"]))
    for image in says.get("images", []):
        for _, pod in (pair for manifest in found for pair in pods(manifest)):
            for container in pod["spec"]["containers"]:
                if container["image"].rpartition(":")[0] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return found


def _patched(manifest: Manifest, operations: list[dict[str, Any]]) -> Manifest:
    """RFC 6902's replace and remove; both need what they name to be there."""
    manifest = copy.deepcopy(manifest)
    for operation in operations:
        *path, last = operation["path"].strip("/").split("/")
        place: Any = manifest
        for step in path:
            place = place[int(step)] if isinstance(place, list) else place[step]
        last = int(last) if isinstance(place, list) else last
        place[last]
        if operation["op"] == "remove":
            del place[last]
        else:
            assert operation["op"] == "replace"
            place[last] = operation["value"]
    return manifest


def pods(manifest: Manifest) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, pod template) of every pod that a manifest leads to."""
    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    if manifest["kind"] in kuberay.KINDS:
        for where, template in kuberay.templates(manifest):
            yield f"{name}/{where}", template
    elif "template" in manifest.get("spec", {}):
        yield name, manifest["spec"]["template"]
