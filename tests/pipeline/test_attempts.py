"""A gate's attempts: counted so that a lifetime bound holds, and recorded once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from mlflow import MlflowClient

from gan.config import ConfigError
from pipeline.attempts import (
    Attempt,
    begin_attempt,
    count_attempts,
    decision_record,
    evidence_digest,
    finish_attempt,
)
from pipeline.backend import Backend
from pipeline.entries import digest


@pytest.fixture(scope="module")
def where(tmp_path_factory) -> Backend:
    """Each test has a model of its own in one database; making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("attempts")
    return Backend(f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri())


def begun(where: Backend, model: str, op: str) -> Attempt:
    return begin_attempt(where, model, op=op, name=f"gate-{op}", tags={"forger.candidate": op})


def client_of(where: Backend) -> MlflowClient:
    return MlflowClient(where.uri, registry_uri=where.uri)


def test_attempts_are_numbered_and_the_same_op_keeps_its_run_and_number(where):
    first = begun(where, "a", "x")
    second = begun(where, "a", "y")
    assert [first.number, second.number] == [1, 2]
    assert begun(where, "a", "x") == first
    assert begun(where, "b", "x").number == 1
    run = client_of(where).get_run(second.run_id)
    assert run.data.tags["forger.attempt"] == "2"
    assert run.data.tags["forger.candidate"] == "y"
    assert run.info.run_name == "gate-y"


def test_an_attempt_that_died_before_it_was_counted_is_counted_when_it_goes_on(where):
    begun(where, "dead", "x")
    client = client_of(where)
    experiment = client.get_experiment_by_name("dead-gate")
    assert experiment is not None
    tags = {"forger.model": "dead", "forger.op": "y"}
    client.create_run(experiment.experiment_id, tags=tags)  # and here it was killed
    assert begun(where, "dead", "z").number == 3
    assert begun(where, "dead", "y").number == 4


def test_the_kth_attempt_that_was_created_counts_at_least_k_in_any_interleaving(where):
    """Creating and counting are two calls; between them anything may happen."""
    dice, client = random.Random(4), client_of(where)
    begun(where, "many", "first")
    experiment = client.get_experiment_by_name("many-gate")
    assert experiment is not None
    created, counted = ["first"], {"first": 1}
    while len(counted) < 15:
        waiting = [op for op in created if op not in counted]
        if dice.random() < 0.5 or not waiting:
            created.append(f"op{len(created)}")
            tags = {"forger.model": "many", "forger.op": created[-1]}
            client.create_run(experiment.experiment_id, tags=tags)
        else:
            op = dice.choice(waiting)
            counted[op] = begun(where, "many", op).number
    for rank, op in enumerate(created, start=1):
        assert counted.get(op, rank) >= rank


def test_deleting_runs_gives_no_attempt_back(where):
    last = [begun(where, "thrifty", op) for op in "xyz"][-1]
    client = client_of(where)
    experiment = client.get_experiment_by_name("thrifty-gate")
    assert experiment is not None
    for run in client.search_runs([experiment.experiment_id]):
        client.delete_run(run.info.run_id)
    assert begun(where, "thrifty", "w").number == last.number + 1
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ConfigError, match="mlflow experiments restore"):
        begun(where, "thrifty", "v")


def test_a_deleted_experiment_of_attempts_is_named_and_not_counted_anew(where):
    begun(where, "lost", "x")
    client = client_of(where)
    experiment = client.get_experiment_by_name("lost-gate")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    said = rf"'lost-gate' \(id {experiment.experiment_id}\) was deleted; restore it"
    with pytest.raises(ConfigError, match=said):
        begun(where, "lost", "y")
    client.restore_experiment(experiment.experiment_id)
    assert begun(where, "lost", "y").number == 2


def test_a_run_that_was_doubled_by_a_lost_answer_counts_once(where):
    begun(where, "doubled", "x")
    client = client_of(where)
    experiment = client.get_experiment_by_name("doubled-gate")
    assert experiment is not None
    tags = {"forger.model": "doubled", "forger.op": "x"}
    client.create_run(experiment.experiment_id, tags=tags)
    assert count_attempts(client, experiment.experiment_id, "doubled") == 2
    assert begun(where, "doubled", "x").number == 1


def test_a_decision_recorded_twice_is_there_once_and_its_digest_is_of_the_file(where, tmp_path):
    attempt = begun(where, "decided", "x")
    decision = {"outcome": "rejected", "fd": {"interval": [-0.1, 1.1]}, "word": "schön"}
    first, evidence = (
        finish_attempt(
            where,
            attempt,
            decision=decision,
            page="<html></html>",
            metrics={"fd/difference": 0.5},
            tags={"forger.outcome": "rejected"},
        )
        for _ in range(2)
    )
    assert first == evidence
    client = client_of(where)
    assert len(client.get_metric_history(attempt.run_id, "fd/difference")) == 1
    text = Path(client.download_artifacts(attempt.run_id, "decision.json", str(tmp_path)))
    assert digest(text.read_text(encoding="utf-8")) == evidence == evidence_digest(decision)
    with pytest.raises(ValueError, match="not JSON compliant"):
        decision_record({"fd": float("nan")})
