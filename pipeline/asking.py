"""Asking MLflow for things that must happen once, and its refusals in words that help."""

from __future__ import annotations

import getpass
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pipeline.backend import Backend, without_password  # before MLflow: it sets its variables

# isort: split
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from gan.config import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")
PAUSES_SEC = (0.1, 0.3, 1.0, 3.0)  # between tries of a call that was not answered
DENIALS = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}
NAMED = 10  # models, where another one was asked for
REFUSALS = DENIALS | {  # error codes that another try does not change
    "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED",
}  # fmt: skip


def who() -> str:
    """Who acts: MLFLOW_TRACKING_USERNAME, or the user of this machine."""
    if name := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return name
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def create_once(find: Callable[[], T | None], create: Callable[[], object]) -> T:
    """What `find` finds, created first where it finds nothing.

    A create that was not answered may have been carried out: it is looked for before it is tried
    again. Should the server carry it out later still, there are two, and `find` has to prefer one.
    Raises MlflowException where MLflow refuses, or did not answer several times.
    """
    for pause in (*PAUSES_SEC, None):
        if (found := find()) is not None:
            return found
        try:
            with _asked_once():
                create()
        except MlflowException as error:
            if error.error_code in REFUSALS or pause is None:
                raise
            log.info("not answered, looking for it: %s", error)
            time.sleep(pause * random.uniform(0.5, 1))
    found = find()
    assert found is not None, "MLflow does not show what it said it had created"
    return found


_environment = threading.Lock()
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


@contextmanager
def _asked_once() -> Iterator[None]:
    """MLflow's client asks again by itself where an answer was lost, creates included, and would
    create twice. It reads its patience from the environment at each call.
    """
    with _environment:
        before = os.environ.get(_RETRIES)
        os.environ[_RETRIES] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_RETRIES]
            else:
                os.environ[_RETRIES] = before


@contextmanager
def explained(where: Backend, doing: str, *, right: str, only_denials: bool = False) -> Iterator:
    """MLflow's errors in this block as ConfigError: what could not be done, and what would help.

    `doing` completes "cannot ..."; `right` is what a server with names and passwords wants for it.
    """
    try:
        yield
    except MlflowException as error:
        if only_denials and error.error_code not in DENIALS:
            raise
        raise ConfigError([_words(error, where, doing, right)]) from None


def models_at(client: MlflowClient) -> str:
    """Where MLflow is and which registered models it has, for those who look for another."""
    uri = without_password(client.tracking_uri)
    try:
        found = client.search_registered_models(max_results=NAMED + 1)
    except MlflowException as error:
        return f"MLflow at {uri} does not say which models it has ({error.error_code})"
    names = [model.name for model in found]
    more = ", ..." if len(names) > NAMED else ""
    return f"MLflow at {uri} has {', '.join(names[:NAMED]) or 'no registered model'}{more}"


def _words(error: MlflowException, where: Backend, doing: str, right: str) -> str:
    match error.error_code:
        case "PERMISSION_DENIED":
            return (
                f"{who()} may not {doing}: that needs {right} in MLflow at {where.shown}; "
                f"its administrator grants it"
            )
        case "UNAUTHENTICATED" | "CUSTOMER_UNAUTHORIZED":
            return (
                f"MLflow at {where.shown} does not know {who()} by this password; "
                f"set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        case "RESOURCE_DOES_NOT_EXIST":
            said = error.message.partition(": ")[2] or error.message
            return f"cannot {doing}: {said}; {models_at(where.client())}"
    return f"cannot {doing} in MLflow at {where.shown}: {error}"
