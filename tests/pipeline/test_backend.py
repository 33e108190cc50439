"""Where MLflow is, and that its password stays where it came from."""

from __future__ import annotations

import pytest

from gan.config import ConfigError
from pipeline.backend import backend
from pipeline.tracking import run_url

DATABASE = "postgresql+psycopg2://mlflow:s3cr%2Fet@db:5432/mlflow"


def test_a_databases_password_is_in_no_text_and_the_client_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DATABASE)
    where = backend(str(tmp_path))
    assert where.uri == DATABASE
    assert where.shown == "postgresql+psycopg2://mlflow:***@db:5432/mlflow"
    assert "cr%2Fet" not in run_url(where, "1", "2")


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
