"""Where MLflow is: never in a folder that goes away, and its password in no text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gan.config import ConfigError
from pipeline.asking import models_at
from pipeline.backend import backend
from pipeline.job_server import JOB
from pipeline.tracking import run_url

DATABASE = "postgresql+psycopg2://mlflow:s3cr%2Fet@db:5432/mlflow"


def test_a_databases_password_is_in_no_text_and_the_client_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DATABASE)
    where = backend(str(tmp_path))
    assert where.uri == DATABASE
    assert where.shown == "postgresql+psycopg2://mlflow:***@db:5432/mlflow"
    assert "cr%2Fet" not in run_url(where, "1", "2")
    client: Any = SimpleNamespace(tracking_uri=DATABASE, search_registered_models=lambda **_: [])
    assert models_at(client) == f"MLflow at {where.shown} has no registered model"


@pytest.mark.parametrize(
    "uri", ["sqlite:////runs/a:b@c/mlflow.db", "http://127.0.0.1:5000", "https://flow/under/x@y"]
)
def test_addresses_without_a_password_are_shown_as_they_are(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert backend(str(tmp_path), must_answer=False).shown == uri


def test_a_server_gets_name_and_password_in_variables_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:s3cret@flow.example/x")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_USERNAME") as refused:
        backend(str(tmp_path))
    assert "s3cret" not in str(refused.value)


def test_a_job_on_a_cluster_keeps_no_database_in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(JOB, "mine-0000-1")
    with pytest.raises(ConfigError, match=r"must be set for a job .*mine-0000-1"):
        backend("s3://bucket/runs")
    assert not list(tmp_path.iterdir())
    shared = tmp_path / "shared"
    assert backend(str(shared)).uri == f"sqlite:///{shared / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'server.db'}")
    assert backend("s3://bucket/runs").uri.endswith("server.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv(JOB)
    assert backend("s3://bucket/runs").uri == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
