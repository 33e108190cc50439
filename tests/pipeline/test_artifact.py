"""The registered generator: a file of code and a folder; whole, alone and the same everywhere."""

from __future__ import annotations

import ast
import json
import os
import pickletools
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
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
from pipeline.bundle import CHECKOUT, NEEDED, flat_file, write_bundle
from pipeline.experiment_file import experiment_from_dict
from pipeline.fresh import NotProvedError
from pipeline.logged import RegistrationError
from pipeline.manifest import MANIFEST, check_files, listing, sha256_of
from pipeline.pictures import grid_png
from pipeline.play import play
from pipeline.registry import candidate_version, load_registered, register
from pipeline.run import Best, Run
from pipeline.snapshot import TENSORS, read_snapshot
from pipeline.tracking import Backend, open_tracker
from tests.pipeline.desk import ROOT, clean_environment, server

REQUEST = {"n": 3, "seed": 7, "label": 1}


@pytest.fixture(scope="module")
def run(stripes, tmp_path_factory) -> Run:
    """A finished run of a second or two, of 8 px images in two classes."""
    values = {
        "name": "small",
        "data": {"shards": stripes.uri},
        "generator": {"width": 8, "latent_dim": 4, "lr": 1e-3},
        "discriminator": {"width": 8, "lr": 1e-3},
        "conditioning": {"name": "projection"},
        "turns": {"total_kimg": 0.064, "batch_size": 16},
        "evaluate": {"images": 50},
        "cluster": {"storage": str(tmp_path_factory.mktemp("desk") / "runs")},
    }
    run = Run.open("small", experiment_from_dict(values), stripes)
    assert play(run, stripes).finished
    return run


def best_of(run: Run) -> Best:
    best = run.best()
    assert best is not None
    return best


def saved_model(run: Run, folder: Path, *, checkout: Path = CHECKOUT) -> str:
    """The run's generator as MLflow's files, with the code of `checkout`, in no registry."""
    folder.mkdir()
    code, bundle = folder / "served.py", folder / "generator"
    code.write_text(flat_file("a test", checkout))
    write_bundle(bundle, run, best_of(run), served_sha256=sha256_of(code), mlflow_run_id="none")
    path = str(folder / "model")
    mlflow.pyfunc.save_model(
        path,
        python_model=str(code),
        artifacts={"generator": str(bundle)},
        pip_requirements=list(NEEDED),
    )
    return path


@pytest.fixture(scope="module")
def negative(tmp_path_factory) -> Path:
    """A checkout in which somebody made dcgan draw every image as its own negative."""
    checkout = tmp_path_factory.mktemp("negative")
    for package in ("gan", "pipeline"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__*__"))
        (checkout / package / "__init__.py").touch()
    (checkout / "gan/networks/__init__.py").write_text(
        (ROOT / "gan/networks/__init__.py").read_text()
    )
    dcgan = checkout / "gan/networks/dcgan.py"
    changed = dcgan.read_text().replace(
        "return self.to_image(x).tanh()", "return -self.to_image(x).tanh()"
    )
    assert changed != dcgan.read_text()
    dcgan.write_text(changed)
    return checkout


def pixels_of(model, **request) -> torch.Tensor:
    (drawn,) = model.predict([REQUEST | request])
    return torch.from_numpy(np.stack([image.pixels for image in drawn])).permute(0, 3, 1, 2)


class _Running(ast.NodeTransformer):
    """A module without what only type checkers read."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def test_the_flat_file_imports_nothing_but_what_it_says():
    """Every import that can run, in the file and in what it carries; no Forger, no jaxtyping."""
    text = flat_file("a test")
    sources = next(n.value for n in ast.parse(text).body if isinstance(n, ast.Assign))
    found = set()
    for module in (text, *ast.literal_eval(sources).values()):
        for node in ast.walk(_Running().visit(ast.parse(module))):
            if isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
    outside = {name for name in found - sys.stdlib_module_names if not name.startswith("forger_")}
    assert outside == set(NEEDED) - {"pillow"} | {"PIL"}


def test_two_generators_of_different_code_in_one_process_draw_their_own_images(
    run, negative, tmp_path
):
    """-tanh(x) is the negative: 255 - the byte."""
    ours = mlflow.pyfunc.load_model(saved_model(run, tmp_path / "a"))
    theirs = mlflow.pyfunc.load_model(saved_model(run, tmp_path / "b", checkout=negative))
    again = mlflow.pyfunc.load_model(str(tmp_path / "a" / "model"))
    assert torch.equal(pixels_of(ours), pixels_of(again))
    assert torch.equal(pixels_of(theirs), 255 - pixels_of(ours))
    expected = read_snapshot(run.storage, best_of(run).folder).images([7, 8, 9], labels=[1] * 3)
    assert torch.equal(pixels_of(ours), expected)


def test_a_request_is_a_list_of_images_with_their_seeds_and_classes(run, tmp_path):
    model = mlflow.pyfunc.load_model(saved_model(run, tmp_path / "a"))
    snapshot = read_snapshot(run.storage, best_of(run).folder)
    three, one = model.predict([{"n": 3, "seed": 5}, {}])
    assert [image.seed for image in three] == [5, 6, 7]
    assert [image.label for image in three] == snapshot.labels([5, 6, 7])
    assert [image.seed for image in one] == [0]
    assert one[0].pixels.shape == (8, 8, 1)
    half = pixels_of(model, truncation=0.5)
    assert torch.equal(half, snapshot.images([7, 8, 9], labels=[1] * 3, truncation=0.5))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n": 0}, "n: Input should be greater than or equal to 1, got 0"),
        ({"n": 257}, "n: Input should be less than or equal to 256, got 257"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, got -1"),
        ({"seed": "1"}, "seed: Input should be a valid integer, got '1'"),
        ({"sed": 1}, "sed: Extra inputs are not permitted, got 1"),
        ({"truncation": 1.5}, "truncation: Input should be less than or equal to 1, got 1.5"),
        ({"truncation": float("nan")}, "truncation: Input should be"),
        ({"label": 2}, "label must be between 0 and 1, got 2"),
        ({"seed": 2**32 - 1, "n": 2}, "seed must be between 0 and 4294967295, got 4294967296"),
    ],
)
def test_requests_out_of_range_are_refused_in_one_readable_line(run, tmp_path, wrong, said):
    model = mlflow.pyfunc.load_model(saved_model(run, tmp_path / "a"))
    with pytest.raises(mlflow.MlflowException) as caught:
        model.predict([wrong])
    assert said in caught.value.message
    assert "FieldInfo" not in caught.value.message
    assert caught.value.get_http_status_code() == 400


def test_nothing_in_the_artifact_is_a_pickle(run, tmp_path):
    path = Path(saved_model(run, tmp_path / "a"))
    files = [file for file in path.rglob("*") if file.is_file()]
    assert {"served.py", TENSORS, MANIFEST, "experiment.toml", "samples.png", "snapshot.json"} <= {
        file.name for file in files
    }
    for file in files:
        assert file.suffix in (".json", ".safetensors", ".png", ".toml", ".yaml", ".txt", ".py",
                               ""), file  # fmt: skip
        assert not zipfile.is_zipfile(file), file  # as torch.save writes
        with pytest.raises((ValueError, IndexError, EOFError, KeyError)):
            list(pickletools.genops(file.read_bytes()))


def test_the_manifest_names_all_that_reproducing_needs(run, tmp_path):
    path = Path(saved_model(run, tmp_path / "a")) / "artifacts" / "generator"
    manifest = check_files(path)
    assert manifest["files"].keys() == listing(path).keys() - {MANIFEST}
    assert manifest["weights_sha256"] == manifest["files"][TENSORS] == best_of(run).sha256
    assert manifest["served_sha256"] == sha256_of(path.parents[1] / "served.py")
    assert manifest["data_digest"] == run.data_digest
    assert manifest["experiment_digest"] == run.experiment.digest
    assert manifest["scores"] == best_of(run).card.scores
    assert manifest["run"]["id"] == run.id
    assert manifest["search_id"] is None
    (stretch,) = manifest["played"]
    assert (stretch["world_size"], stretch["device"]) == (1, "cpu")
    for name in ("commit", "python", "machine", "packages", "judged", "seed", "nimg"):
        assert name in manifest


@pytest.mark.parametrize("name", [TENSORS, "snapshot.json", "experiment.toml", "more.txt"])
def test_a_file_that_is_not_the_manifests_is_named_when_a_model_is_loaded(run, tmp_path, name):
    path = saved_model(run, tmp_path / "a")
    changed = Path(path) / "artifacts" / "generator" / name
    changed.write_bytes((changed.read_bytes() if changed.exists() else b"") + b" ")
    with pytest.raises(ValueError, match=name):
        mlflow.pyfunc.load_model(path)
    changed.unlink()
    if name != "more.txt":
        with pytest.raises(ValueError, match=f"{name} is missing"):
            mlflow.pyfunc.load_model(path)


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
def shelf(run) -> Shelf:
    storage = run.storage.root.parent
    where = Backend(f"sqlite:///{storage / 'mlflow.db'}", (storage / "mlartifacts").as_uri())
    tracker = open_tracker(where, run)
    registered = register(where, run, best_of(run), mlflow_run_id=tracker.run_id)
    assert registered == registry.Registered("small-candidates", "1", known=False)
    (mlmodel,) = (storage / "mlartifacts").rglob("MLmodel")
    return Shelf(where, tracker.client, run, tracker.run_id, mlmodel.parent)


@pytest.mark.slow
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


@pytest.mark.slow
def test_training_makes_no_champion(shelf):
    assert [m.name for m in shelf.client.search_registered_models()] == ["small-candidates"]
    assert shelf.aliases() == {"candidate": "1"}


@pytest.mark.slow
def test_registering_again_and_a_lost_answer_leave_one_version_that_counts(shelf):
    assert shelf.register() == registry.Registered(shelf.model, "1", known=True)
    assert shelf.versions() == ["1"]
    # A client that loses the answer after the commit sends the call once more; so it looks then.
    first = shelf.client.get_model_version(shelf.model, "1")
    shelf.client.create_model_version(shelf.model, first.source, tags=first.tags)
    assert shelf.register() == registry.Registered(shelf.model, "1", known=True)
    assert shelf.versions() == ["1", "2"]
    assert shelf.aliases() == {"candidate": "1"}
    shelf.client.delete_model_version(shelf.model, "2")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_model_that_draws_other_images_alone_is_not_registered(shelf, negative, monkeypatch):
    for module in (registry, logged):
        monkeypatch.setattr(module, "flat_file", lambda made_by: flat_file(made_by, negative))
    with pytest.raises(RegistrationError, match="draws other images in a fresh process"):
        shelf.register()
    assert shelf.versions() == ["1"]


@pytest.mark.slow
def test_a_model_that_needs_forger_is_not_registered(shelf, monkeypatch):
    for module in (registry, logged):
        monkeypatch.setattr(
            module, "flat_file", lambda made_by: f"{flat_file(made_by)}\nimport gan.config\n"
        )
    with pytest.raises(NotProvedError, match=r"gan\.? ?.*is not in reach"):
        shelf.register()
    assert shelf.versions() == ["1"]


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


@pytest.mark.slow
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

    def command(port: int) -> list[str]:
        words = ["mlflow", "models", "serve", "-m", "models:/small-candidates@candidate"]
        return [*words, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]

    with server(command, log=tmp_path / "serve.log", env=env, folder=tmp_path) as address:
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


@pytest.mark.slow
def test_an_onnx_export_draws_the_same_images_without_torch(run, tmp_path):
    """Latents by hand, as a server without torch makes them; a byte may be one off, rarely."""
    forger = [sys.executable, "-m", "jobs", "export", str(run.storage.root)]
    env = clean_environment() | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*forger, "small.onnx"], cwd=tmp_path, env=env, check=True)
    program = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession("small.onnx")
z = numpy.stack([numpy.random.RandomState(seed).standard_normal(4) for seed in (7, 8, 9)])
images = session.run(None, {"z": z.astype("float32"), "labels": numpy.array([1, 1, 1])})[0]
numpy.save("small.npy", numpy.clip(numpy.round((images + 1) * 127.5), 0, 255).astype("uint8"))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    drawn = np.load(tmp_path / "small.npy").astype(int)
    snapshot = read_snapshot(run.storage, best_of(run).folder)
    off = np.abs(drawn - snapshot.images([7, 8, 9], labels=[1] * 3).numpy())
    assert off.max() <= 1
    assert (off > 0).mean() < 0.02
    bad = subprocess.run([*forger, "small.pb"], cwd=tmp_path, env=env, capture_output=True)
    assert bad.returncode == 2
    assert b"must end in .onnx" in bad.stderr
