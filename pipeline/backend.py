"""Where MLflow is: the server at MLFLOW_TRACKING_URI, or a SQLite file beside the runs.

Imported before mlflow, whose patience and chatter are set here.
"""

from __future__ import annotations

import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gan.config import ConfigError
from pipeline.folder import Folder
from pipeline.storage import open_storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

logging.getLogger("alembic").setLevel(logging.WARNING)
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # it tells of every migration it makes

# Before mlflow is imported: its own defaults keep a caller waiting 247 s for a dead server.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

REACH_SEC = 5
LOCAL_RUNS = "runs"  # where MLflow is kept that cannot be beside the runs


@dataclass(frozen=True, slots=True)
class Backend:
    """Where MLflow is: a server's address, or a database beside the runs."""

    uri: str
    artifacts: str | None  # None where the server decides

    @property
    def shown(self) -> str:
        """Its address as people and records get it."""
        return without_password(self.uri)

    def client(self) -> MlflowClient:
        """A client of its tracking and its registry."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)


def without_password(uri: str) -> str:
    """The address, with *** for the password that a database's may carry."""
    return re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", uri)


@contextmanager
def pointed_at(where: Backend) -> Iterator[None]:
    """MLflow's own functions look here within the block; they can be told in no other way.

    MLflow remembers it in an environment variable, which would send all that comes later in this
    process, and its children, to the same place.
    """
    import mlflow

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(where.uri)
    mlflow.set_registry_uri(where.uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before[names[0]] or "")
        mlflow.set_registry_uri(before[names[1]] or "")
        for name, value in before.items():
            if not value:
                os.environ.pop(name, None)


def backend(storage: str, *, must_answer: bool = True) -> Backend:
    """MLFLOW_TRACKING_URI, or a SQLite file and a folder of artifacts below `storage`.

    A database cannot lie in a bucket: with runs in s3:// and no MLFLOW_TRACKING_URI, both are
    below ./runs of this machine.

    Raises ConfigError where a server is named that does not answer, unless it need not yet, and in
    a cluster's job whose database would go with its folder.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    runs = open_storage(storage)
    root = runs.root if isinstance(runs, Folder) else Folder(LOCAL_RUNS).root
    if not uri:
        job = os.environ.get("FORGER_JOB")  # pipeline.job_server.JOB, as a job finds it
        if job and not isinstance(runs, Folder):
            raise ConfigError(
                [
                    f"MLFLOW_TRACKING_URI must be set for a job whose runs are in {runs.uri}: a "
                    f"database of its own would lie in the temporary folder of {job} and go with "
                    f"it; set it where you submit, or on the cluster's nodes where it has a "
                    f"password"
                ]
            )
        root.mkdir(parents=True, exist_ok=True)
        return Backend(f"sqlite:///{root / 'mlflow.db'}", (root / "mlartifacts").as_uri())
    if urlsplit(uri).scheme in ("http", "https"):
        if "@" in urlsplit(uri).netloc:  # it would be in every link, and in the run's records
            raise ConfigError(
                [
                    "MLFLOW_TRACKING_URI must be without name and password, got one with them; "
                    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                ]
            )
        if must_answer:
            _reach(uri)
    elif not uri.startswith(("sqlite:", "postgresql", "mysql", "mssql")):
        raise ConfigError(
            [
                f"MLFLOW_TRACKING_URI must be http(s)://... or a database such as sqlite:///..., "
                f"got {uri!r}"
            ]
        )
    local = uri.startswith("sqlite:///")
    return Backend(uri, (root / "mlartifacts").as_uri() if local else None)


def _reach(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REACH_SEC):
            return
    except urllib.error.HTTPError:
        return  # something answers; what it thinks of us is said by the first real call
    except (TimeoutError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            [f"MLFLOW_TRACKING_URI = {uri!r} does not answer within {REACH_SEC} s ({reason}); "
             f"start the server, or unset the variable to track into a local file"]
        ) from None  # fmt: skip
