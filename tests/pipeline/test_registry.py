"""Candidates in the registry: proved, whole, registered once, and served by strangers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from gan.config import ConfigError
from pipeline import logged, registry
from pipeline.backend import Backend, pointed_at
from pipeline.bundle import flat_file
from pipeline.card import TENSORS
from pipeline.fresh import NotProvedError
from pipeline.logged import RegistrationError
from pipeline.manifest import MANIFEST, check_files, sha256_of
from pipeline.pictures import grid_png
from pipeline.registry import candidate_version, load_registered, register
from pipeline.run import Run
from pipeline.tracking import open_tracker
from tests.pipeline.desk import (
    ROOT,
    best_of,
    clean_environment,
    negative_checkout,
    small_run,
)
from tests.pipeline.servers import (
    LossyProxy,
    free_port,
    listens,
    mlflow_server,
    process,
    wait_until,
)

pytestmark = pytest.mark.slow

REQUEST = {"n": 3, "seed": 7, "label": 1}


@dataclass
class Shelf:
    """A local registry in which `run` is registered, and the folder of the model's files."""

    where: Backend
    client: MlflowClient
    run: Run
    mlflow_run_id: str
    folder: Path
    model: str = "small-candidates"

    def register(self) -> registry.Registered:
        return register(self.where, self.run, best_of(self.run), mlflow_run_id=self.mlflow_run_id)

    def versions(self) -> list[str]:
        found = self.client.search_model_versions(f"name = '{self.model}'")
        return sorted(str(version.version) for version in found)

    def aliases(self) -> dict[str, str]:
        """Which version each alias names (SQLite gives numbers, a server gives texts)."""
        aliases = self.client.get_registered_model(self.model).aliases
        return {name: str(version) for name, version in aliases.items()}

    @contextmanager
    def replaced(self, name: str, data: bytes):
        path = self.folder / name
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(data)
        try:
            yield
        finally:
            path.unlink() if before is None else path.write_bytes(before)


@pytest.fixture(scope="module")
def run(stripes, tmp_path_factory) -> Run:
    return small_run(tmp_path_factory.mktemp("desk") / "runs", stripes)


@pytest.fixture(scope="module")
def negative(tmp_path_factory) -> Path:
    return negative_checkout(tmp_path_factory.mktemp("negative"))


@pytest.fixture(scope="module")
def shelf(run) -> Shelf:
    storage = run.storage.root.parent
    where = Backend(f"sqlite:///{storage / 'mlflow.db'}", (storage / "mlartifacts").as_uri())
    tracker = open_tracker(where, run)
    registered = register(where, run, best_of(run), mlflow_run_id=tracker.run_id)
    assert registered == registry.Registered("small-candidates", "1", known=False)
    (mlmodel,) = (storage / "mlartifacts").rglob("MLmodel")
    return Shelf(where, tracker.client, run, tracker.run_id, mlmodel.parent)


def test_a_candidate_is_found_by_what_a_person_types(shelf):
    client = shelf.client
    candidate = candidate_version(client, "small")
    for name in ("small@candidate", "small/1", "models:/small-candidates/1",
                 "models:/small-candidates@candidate", "small-candidates"):  # fmt: skip
        assert candidate_version(client, name) == candidate, name
    assert candidate.uri == "models:/small-candidates/1"
    assert candidate.sha256 == best_of(shelf.run).sha256
    assert candidate.manifest_sha256 == sha256_of(
        shelf.folder / "artifacts" / "generator" / MANIFEST
    )
    assert candidate.source_uri == f"models:/{candidate.model_id}"
    assert candidate.tags["forger.data_digest"] == shelf.run.data_digest
    for name in ("small/2", "other"):
        with pytest.raises(ConfigError, match="the registry has no version"):
            candidate_version(client, name)
    for name in ("small@champion", "small/one", ""):
        with pytest.raises(ConfigError, match="a candidate is NAME"):
            candidate_version(client, name)


def test_training_makes_no_champion(shelf):
    assert [m.name for m in shelf.client.search_registered_models()] == ["small-candidates"]
    assert shelf.aliases() == {"candidate": "1"}


def test_registering_again_and_a_lost_answer_leave_one_version_that_counts(shelf):
    assert shelf.register() == registry.Registered(shelf.model, "1", known=True)
    assert shelf.versions() == ["1"]
    # A client that loses the answer after the commit sends the call once more; so it looks then.
    first = shelf.client.get_model_version(shelf.model, "1")
    with pointed_at(shelf.where):
        shelf.client.create_model_version(shelf.model, first.source, tags=first.tags)
    assert shelf.register() == registry.Registered(shelf.model, "1", known=True)
    assert shelf.versions() == ["1", "2"]
    assert shelf.aliases() == {"candidate": "1"}
    shelf.client.delete_model_version(shelf.model, "2")


@pytest.mark.parametrize(
    "name",
    [
        f"artifacts/generator/{TENSORS}",
        "artifacts/generator/samples.png",
        f"artifacts/generator/{MANIFEST}",
        "artifacts/generator/more.txt",
        "served.py",
        "MLmodel",
        "requirements.txt",
        "more.py",
    ],
)
def test_a_version_of_which_any_file_was_changed_is_not_loaded(shelf, name):
    uri = "models:/small-candidates@candidate"
    path = shelf.folder / name
    before = path.read_bytes() if path.exists() else b""
    with (
        shelf.replaced(name, before + b"\n"),
        pytest.raises(ConfigError, match=Path(name).name),
    ):
        load_registered(shelf.where, uri)
    assert load_registered(shelf.where, uri).sha256 == best_of(shelf.run).sha256


def test_other_weights_with_a_manifest_that_fits_them_are_not_loaded(shelf):
    """Whoever can write to the artifact store can make the folder agree with itself, but not with
    the version's tag.
    """
    folder = shelf.folder / "artifacts" / "generator"
    weights, card = (folder / TENSORS).read_bytes(), (folder / "snapshot.json").read_text()
    forged = bytearray(weights)
    forged[-1] ^= 1
    with shelf.replaced(f"artifacts/generator/{TENSORS}", bytes(forged)):
        new = sha256_of(folder / TENSORS)
        card = card.replace(best_of(shelf.run).sha256, new)
        with shelf.replaced("artifacts/generator/snapshot.json", card.encode()):
            manifest = json.loads((folder / MANIFEST).read_bytes())
            manifest["files"] |= {
                TENSORS: new,
                "snapshot.json": sha256_of(folder / "snapshot.json"),
            }
            with shelf.replaced(f"artifacts/generator/{MANIFEST}", json.dumps(manifest).encode()):
                check_files(folder)  # at peace with itself
                with pytest.raises(ConfigError, match=r"manifest.json is not the file that was"):
                    load_registered(shelf.where, "models:/small-candidates/1")


def test_a_model_that_draws_other_images_alone_is_not_registered(shelf, negative, monkeypatch):
    for module in (registry, logged):
        monkeypatch.setattr(module, "flat_file", lambda made_by: flat_file(made_by, negative))
    with pytest.raises(RegistrationError, match="draws other images in a fresh process"):
        shelf.register()
    assert shelf.versions() == ["1"]


def test_a_model_that_needs_forger_is_not_registered(shelf, monkeypatch):
    for module in (registry, logged):
        monkeypatch.setattr(
            module, "flat_file", lambda made_by: f"{flat_file(made_by)}\nimport gan.config\n"
        )
    with pytest.raises(NotProvedError, match=r"gan\.? ?.*is not in reach"):
        shelf.register()
    assert shelf.versions() == ["1"]


def test_an_answer_lost_after_the_server_had_committed_doubles_nothing(run, tmp_path):
    """MLflow's client sends the call again and makes a second version; the first one counts."""
    store = f"sqlite:///{tmp_path / 'server.db'}"
    with mlflow_server(store, str(tmp_path / "artifacts"), tmp_path) as address:
        creating = iter([True])  # once

        def first_creation(_: str, path: str) -> bool:
            return "model-versions/create" in path and next(creating, False)

        with LossyProxy(address, share=1.0, applies=first_creation) as proxy:
            where = Backend(proxy.uri, None)
            tracker = open_tracker(where, run)
            there = Shelf(where, tracker.client, run, tracker.run_id, tmp_path)
            assert there.register() == registry.Registered(there.model, "1", known=False)
            assert len(proxy.lost) == 1
            assert there.versions() == ["1", "2"]
            assert there.aliases() == {"candidate": "1"}
            assert there.register() == registry.Registered(there.model, "1", known=True)
            loaded = load_registered(where, "models:/small-candidates@candidate")
            assert loaded.sha256 == best_of(run).sha256


def stranger(folder: Path) -> Path:
    """The bin of a new virtualenv with this one's packages, but neither Forger nor jaxtyping.

    Packages are found by their folder's name on the path; the .pth files in that folder, Forger's
    editable install among them, count only in an environment's own folder.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    own = next(folder.glob("lib/python*/site-packages"))
    packages = Path(mlflow.__file__).parents[1]
    hidden = "import sys; sys.modules['jaxtyping'] = None"
    (own / "borrowed.pth").write_text(f"{packages}\n{hidden}\n")
    for name, call in (("mlflow", "mlflow.cli:cli"), ("uvicorn", "uvicorn:main")):
        module, function = call.split(":")
        script = folder / "bin" / name
        script.write_text(
            f"#!{folder / 'bin' / 'python'}\nfrom {module} import {function}\n{function}()\n"
        )
        script.chmod(0o755)
    return folder / "bin"


def post(address: str, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"{address}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_stranger_serves_the_model_and_its_pixels_are_those_of_forger_sample(shelf, tmp_path):
    bin_ = stranger(tmp_path / "venv")
    for package in ("gan", "pipeline", "jobs", "jaxtyping"):
        done = subprocess.run(
            [bin_ / "python", "-c", f"import {package}"], cwd=tmp_path, capture_output=True
        )
        assert b"ModuleNotFoundError" in done.stderr, package
    env = clean_environment() | {
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(bin_.parent),
        "MLFLOW_TRACKING_URI": shelf.where.uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    env.pop("PYTHONPATH", None)

    port, log = free_port(), tmp_path / "serve.log"
    command = ["mlflow", "models", "serve", "-m", "models:/small-candidates@candidate"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with process(command, log, env=env, cwd=tmp_path) as serving:
        wait_until(lambda: listens(port), "mlflow serve", processes=(serving,), log=log)
        address = f"http://127.0.0.1:{port}"
        status, answer = post(address, {"inputs": [REQUEST, {"seed": 3, "truncation": 0.5}]})
        assert status == 200, answer
        for wrong, said in (
            ({"n": 300}, "n: Input should be less than or equal to 256, got 300"),
            ({"label": 5}, "label must be between 0 and 1, got 5"),
            ({"sed": 5}, "sed: Extra inputs are not permitted"),
        ):
            status, refusal = post(address, {"inputs": [wrong]})
            assert status == 400
            assert said in refusal["message"]
            assert "stack_trace" not in refusal
            assert "Traceback" not in json.dumps(refusal)
    first, second = answer["predictions"]
    assert [(i["seed"], i["label"]) for i in first] == [(7, 1), (8, 1), (9, 1)]
    assert [i["seed"] for i in second] == [3]
    drawn = torch.cat([decoded(image["png"]) for image in first])
    words = ["sample", "models:/small-candidates@candidate", "-n", "3", "--seed", "7"]
    words += ["--label", "1", "-o", str(tmp_path / "three.png")]
    subprocess.run(
        [sys.executable, "-m", "jobs", *words, "--storage", str(shelf.run.storage.root.parent)],
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "three.png").read_bytes() == grid_png(drawn)


def decoded(png: str) -> torch.Tensor:
    """uint8 (1, c, h, w) of a PNG in base64, by nothing of ours."""
    import base64
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
    return torch.from_numpy(pixels.reshape(1, *pixels.shape[:2], -1).copy()).permute(0, 3, 1, 2)
