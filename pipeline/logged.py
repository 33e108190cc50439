"""A generator as a logged model of MLflow: written, and proved by a fresh process."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.backend import Backend, pointed_at  # before MLflow: it sets MLflow's environment

# isort: split
import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

from pipeline.bundle import flat_file, requirements, this_code, write_bundle
from pipeline.fresh import REQUESTS, expected_pixels, fresh_process
from pipeline.manifest import MANIFEST, check_listing, listing, sha256_of
from pipeline.run import Best, Run
from pipeline.snapshot import read_snapshot

SERVED = "served.py"
GENERATOR = "generator"  # the artifact's folder inside the model
ARTIFACTS = f"artifacts/{GENERATOR}"
NOTED_BY_MLFLOW = "registered_model_meta"  # MLflow adds it to what is downloaded


class RegistrationError(Exception):
    """A generator was logged, but is not what it should be; no version was made of it."""


@dataclass(frozen=True, slots=True)
class Logged:
    """A model that MLflow holds and a fresh process has proved."""

    uri: str
    model_id: str
    manifest_sha256: str
    other_files: dict[str, str]


def log_proved(where: Backend, run: Run, best: Best, *, mlflow_run_id: str) -> Logged:
    """Logs the snapshot as a pyfunc model and has a fresh process prove it."""
    client = MlflowClient(tracking_uri=where.uri, registry_uri=where.uri)
    with tempfile.TemporaryDirectory() as temporary, pointed_at(where):
        folder = Path(temporary)
        with fresh_process(folder, where.uri) as prove:
            code, bundle = folder / SERVED, folder / GENERATOR
            code.write_text(flat_file(this_code()))
            write_bundle(
                bundle, run, best, served_sha256=sha256_of(code), mlflow_run_id=mlflow_run_id
            )
            with mlflow.start_run(run_id=mlflow_run_id):
                info = mlflow.pyfunc.log_model(
                    name=run.name,
                    python_model=str(code),
                    artifacts={GENERATOR: str(bundle)},
                    pip_requirements=requirements(),
                    input_example=REQUESTS[:1],
                )
            status = client.get_logged_model(info.model_id).status
            if status != LoggedModelStatus.READY:
                raise RegistrationError(f"MLflow holds {info.model_uri} as {status}, not READY")
            proof = prove(info.model_uri)
        written = {f"{ARTIFACTS}/{name}": sha256 for name, sha256 in listing(bundle).items()}
        written[SERVED] = sha256_of(code)
        manifest_sha256 = written[f"{ARTIFACTS}/{MANIFEST}"]
    stored = proof["files"]
    check_listing({n: s for n, s in stored.items() if n in written}, written,
                  where=info.model_uri, by="what was logged")  # fmt: skip
    if proof["pixels"] != expected_pixels(read_snapshot(run.storage, best.folder)):
        raise RegistrationError(
            f"{info.model_uri} draws other images in a fresh process than "
            f"{run.storage.below(best.folder).uri} does here; it was not registered"
        )
    others = {name: sha256 for name, sha256 in other_files(stored).items() if name != SERVED}
    return Logged(info.model_uri, info.model_id, manifest_sha256, others)


def other_files(model_files: dict[str, str]) -> dict[str, str]:
    """Of a model's files those outside of our own folder: the code, and what MLflow wrote."""
    return {
        name: sha256
        for name, sha256 in model_files.items()
        if not name.startswith(f"{ARTIFACTS}/") and name != NOTED_BY_MLFLOW
    }
