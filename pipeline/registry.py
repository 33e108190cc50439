"""Generators in MLflow's model registry: register, and name the first champion."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow import MlflowClient, artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from gan.config import ConfigError
from pipeline.run import GRID, Best, Run
from pipeline.snapshot import CARD, TENSORS, Snapshot, read_snapshot
from pipeline.storage import Folder
from pipeline.tracking import Backend

CHAMPION = "champion"
CANDIDATE = "candidate"
SERVED = "served.py"
PROOF_SEEDS = range(4)
GENERATOR = "generator"  # the artifact's folder inside the model


@dataclass(frozen=True, slots=True)
class Registered:
    """A version of a registered model."""

    model: str
    version: str
    champion: bool  # whether the alias `champion` names it
    known: bool  # whether these weights had been registered before

    @property
    def uri(self) -> str:
        """How to load it."""
        return f"models:/{self.model}/{self.version}"


def register(where: Backend, run: Run, best: Best, *, mlflow_run_id: str) -> Registered:
    """Registers a snapshot as the next version of the run's model and points `candidate` at it.

    The same weights are registered once: a second call finds the version. A first version becomes
    the champion; a later one stays a candidate until it is promoted.
    """
    client = MlflowClient(tracking_uri=where.uri, registry_uri=where.uri)
    model = run.experiment.tracking.model or run.experiment.name
    _ensure_model(client, model)
    version = _find(client, model, best.sha256)
    known = version is not None
    if version is None:
        source, model_id = _log_model(where, run, best, mlflow_run_id=mlflow_run_id)
        version = client.create_model_version(
            model,
            source,
            run_id=mlflow_run_id,
            tags=_lineage_tags(run, best),
            model_id=model_id,
        )
    client.set_registered_model_alias(model, CANDIDATE, version.version)
    if CHAMPION not in client.get_registered_model(model).aliases:
        client.set_registered_model_alias(model, CHAMPION, version.version)
    champion = client.get_model_version_by_alias(model, CHAMPION).version == version.version
    return Registered(model, str(version.version), champion, known)


def load_registered(where: Backend, uri: str) -> Snapshot:
    """The generator at models:/NAME@alias or models:/NAME/version. Raises ConfigError where there
    is none.
    """
    mlflow.set_tracking_uri(where.uri)
    mlflow.set_registry_uri(where.uri)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
        except MlflowException as error:
            raise ConfigError(
                [f"{uri} cannot be loaded from {where.uri}: {error.message}"]
            ) from None
        return read_snapshot(Folder(Path(path) / "artifacts"), GENERATOR)


def _ensure_model(client: MlflowClient, model: str) -> None:
    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find(client: MlflowClient, model: str, sha256: str) -> ModelVersion | None:
    found = client.search_model_versions(
        f"name = '{model}' and tags.`forger.sha256` = '{sha256}'", max_results=1
    )
    return found[0] if found else None


def _lineage_tags(run: Run, best: Best) -> dict[str, Any]:
    card = best.card
    return {
        "forger.sha256": best.sha256,
        "forger.run_id": run.id,
        "forger.run_name": run.name,
        "forger.nimg": str(card.nimg),
        "forger.seed": str(run.experiment.seed),
        "forger.data_digest": run.data_digest,
        "forger.experiment_digest": run.experiment.digest,
        "forger.commit": str(run.lineage.get("commit")),
        "forger.judged": json.dumps(card.lineage["judged"]),
        "forger.packages": json.dumps(run.lineage["packages"]),
        **{name: f"{value:.6g}" for name, value in card.scores.items()},
    }


def _log_model(
    where: Backend, run: Run, best: Best, *, mlflow_run_id: str
) -> tuple[str, str | None]:
    """Logs the snapshot as a pyfunc model, proves that it draws, and returns its URI and id."""
    mlflow.set_tracking_uri(where.uri)
    mlflow.set_registry_uri(where.uri)
    height = best.card.sample.shape[1]
    channels = best.card.sample.shape[0]
    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.long, "seed"),
                ColSpec(DataType.long, "label", required=False),
                ColSpec(DataType.double, "truncation", required=False),
            ]
        ),
        outputs=Schema([TensorSpec(np.dtype("uint8"), (-1, height, height, channels))]),
    )
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / GENERATOR
        bundle.mkdir()
        for name in (TENSORS, CARD, GRID):
            shutil.copy(run.storage.path(f"{best.folder}/{name}"), bundle / name)
        with mlflow.start_run(run_id=mlflow_run_id):
            info = mlflow.pyfunc.log_model(
                name=run.name,
                python_model=str(files("pipeline") / SERVED),
                artifacts={GENERATOR: str(bundle)},
                signature=signature,
                pip_requirements=_requirements(),
                input_example=_rows(PROOF_SEEDS),
            )
    _prove(run, best, info.model_uri)
    return info.model_uri, info.model_id


def _requirements() -> list[str]:
    """What serving needs besides Forger itself, which has to be installed where it is served."""
    needed = ("jaxtyping", "mlflow", "numpy", "pandas", "pydantic", "safetensors", "torch")
    return [f"{name}=={version(name).partition('+')[0]}" for name in needed]


def _rows(seeds: range) -> pd.DataFrame:
    return pd.DataFrame({"seed": list(seeds)})


def _prove(run: Run, best: Best, uri: str) -> None:
    """Loads the logged model as any user would; it must draw what the snapshot draws."""
    drawn = mlflow.pyfunc.load_model(uri).predict(_rows(PROOF_SEEDS))
    snapshot = read_snapshot(run.storage, best.folder)
    expected = snapshot.images(list(PROOF_SEEDS)).permute(0, 2, 3, 1).numpy()
    if not np.array_equal(drawn, expected):
        raise RuntimeError(f"{uri} draws other images than {best.folder}; it was not registered")
