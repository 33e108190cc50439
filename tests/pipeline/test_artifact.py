"""The registered generator's files: a flat file of code and a folder, whole and alone."""

from __future__ import annotations

import ast
import pickletools
import subprocess
import sys
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from pipeline.bundle import CHECKOUT, NEEDED, flat_file, write_bundle
from pipeline.card import TENSORS
from pipeline.manifest import MANIFEST, check_files, listing, sha256_of
from pipeline.run import Run
from pipeline.snapshot import read_snapshot
from tests.pipeline.desk import (
    ROOT,
    best_of,
    clean_environment,
    negative_checkout,
    small_run,
)

REQUEST = {"n": 3, "seed": 7, "label": 1}


@pytest.fixture(scope="module")
def run(stripes, tmp_path_factory) -> Run:
    return small_run(tmp_path_factory.mktemp("desk") / "runs", stripes)


@pytest.fixture(scope="module")
def negative(tmp_path_factory) -> Path:
    return negative_checkout(tmp_path_factory.mktemp("negative"))


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
