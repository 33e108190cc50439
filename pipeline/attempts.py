"""A gate's attempts in MLflow: counted before they measure, recorded when they are decided.

A lifetime bound on false promotions is spent attempt by attempt, so an attempt has to know its
number before it decides. Its run is created first, and then all runs of the model are counted, its
own included. So the k-th attempt that was created counts at least k, whatever others do at the
same time and with no compare-and-swap: two at once may both take the higher number, and then less
is spent than was allowed, never more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.backend import Backend  # before MLflow: it sets MLflow's environment

# isort: split
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag, ViewType

from pipeline.asking import create_once, explained
from pipeline.tracking import experiment_called

KIND, OP, MODEL, NUMBER = "forger.kind", "forger.op", "forger.model", "forger.attempt"
GATE = "gate"
PAGE = 1000
MAX_REASON = 1000  # characters
RESTORE = "restore it (mlflow experiments restore), because attempts are counted in it"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a gate, as it was counted."""

    run_id: str
    number: int  # from 1; at least its rank among all attempts of the model


def begin_attempt(
    where: Backend, model: str, *, op: str, name: str, tags: Mapping[str, str]
) -> Attempt:
    """Counts an attempt to promote into `model` and opens its MLflow run in NAME-gate.

    The same op is the same attempt: begun again after a crash it keeps its run and its number.
    Raises ConfigError where MLflow refuses, or where NAME-gate was deleted.
    """
    client = MlflowClient(tracking_uri=where.uri, registry_uri=where.uri)
    right = f"EDIT on the experiment '{model}-{GATE}'"
    with explained(where, f"record an attempt to promote into {model!r}", right=right):
        experiment = experiment_called(
            client, f"{model}-{GATE}", artifacts=where.artifacts, remedy=RESTORE
        )
        marks = {**tags, KIND: GATE, OP: op, MODEL: model}
        run = create_once(
            lambda: _find(client, experiment, op),
            lambda: client.create_run(experiment, tags=marks, run_name=name),
        )
        client.update_run(run.info.run_id, status="RUNNING")
        if NUMBER in run.data.tags:
            return Attempt(run.info.run_id, int(run.data.tags[NUMBER]))
        number = count_attempts(client, experiment, model)
        client.set_tag(run.info.run_id, NUMBER, str(number))
        return Attempt(run.info.run_id, number)


def count_attempts(client: MlflowClient, experiment_id: str, model: str) -> int:
    """How many attempts to promote into `model` there were, deleted runs included.

    Runs that were purged for good (`mlflow gc`) are remembered by the highest number given.
    """
    ops, highest = set(), 0
    for run in _runs(client, experiment_id, f"tags.`{MODEL}` = '{model}'"):
        ops.add(run.data.tags.get(OP, run.info.run_id))
        highest = max(highest, int(run.data.tags.get(NUMBER, 0)))
    return max(len(ops), highest + 1)


def finish_attempt(
    where: Backend,
    attempt: Attempt,
    *,
    decision: Mapping[str, Any],
    page: str,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> str:
    """Records what was decided, as decision.json, decision.html, metrics and tags of the run;
    returns the evidence digest. Repeated, it writes the same again.
    """
    client = MlflowClient(tracking_uri=where.uri, registry_uri=where.uri)
    record = decision_record(decision)
    with explained(where, "record the decision", right="EDIT on the gate's experiment"):
        client.log_text(attempt.run_id, record, "decision.json")
        client.log_text(attempt.run_id, page, "decision.html")
        began = client.get_run(attempt.run_id).info.start_time  # the same in each repetition
        client.log_batch(
            attempt.run_id,
            metrics=[Metric(name, value, began, 0) for name, value in metrics.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        client.set_terminated(attempt.run_id, status="FINISHED")
    return evidence_digest(decision)


def fail_attempt(where: Backend, attempt: Attempt, *, reason: str) -> None:
    """Closes an attempt that came to no decision; its share of alpha stays spent."""
    client = MlflowClient(tracking_uri=where.uri, registry_uri=where.uri)
    with explained(where, "record the attempt", right="EDIT on the gate's experiment"):
        client.set_tag(attempt.run_id, "forger.failure", reason[:MAX_REASON])
        client.set_terminated(attempt.run_id, status="FAILED")


def decision_record(decision: Mapping[str, Any]) -> str:
    """The text of decision.json: canonical, so that its digest can be checked."""
    return json.dumps(decision, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)


def evidence_digest(decision: Mapping[str, Any]) -> str:
    """sha256 of decision.json, as the promotion log keeps it."""
    return hashlib.sha256(decision_record(decision).encode()).hexdigest()


def _find(client: MlflowClient, experiment_id: str, op: str) -> Run | None:
    """The run of this op. Two, where an answer was lost and the call carried out late: the first
    by time, the same for everybody.
    """
    runs = list(_runs(client, experiment_id, f"tags.`{OP}` = '{op}'"))
    return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def _runs(client: MlflowClient, experiment_id: str, where: str) -> list[Run]:
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            where,
            run_view_type=ViewType.ALL,
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found
