"""The promotion log against a real server: races, kills, lost answers, and who may do what.

`mlflow server` with names and passwords and two workers, over Postgres, with artifacts in Ceph's
S3. Trainers may register candidates; promoters have EDIT on the promoted model, READ elsewhere.
"""

from __future__ import annotations

import os
import random
import runpy
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient, artifacts
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

from gan.config import ConfigError
from pipeline.attempts import begin_attempt, evidence_digest, finish_attempt
from pipeline.backend import Backend, pointed_at
from pipeline.contest import Counts
from pipeline.entries import Ledger
from pipeline.experiment import ClusterConfig
from pipeline.gate import GateRules
from pipeline.promote import GateRequest, promote_candidate
from pipeline.promotions import PromotionLog, promote, rollback
from pipeline.registry import load_registered
from pipeline.shards import write_shards
from tests.pipeline.desk import best_of, blobs, trained
from tests.pipeline.promoters import FORKS, KnownCandidate, Person, Promoter, patiently, quality
from tests.pipeline.promoters import run_promotion as run
from tests.pipeline.servers import (
    ADMIN,
    DEADLINE_SEC,
    LossyProxy,
    Missing,
    make_bucket,
    mlflow_server,
    or_skip,
    postgres,
)

pytestmark = pytest.mark.slow

TEAM = Path(__file__).parents[2] / "infra" / "mlflow_team.py"
CANDIDATES = "digits-candidates"
NUM_CANDIDATES = 60
RACES = int(os.environ.get("FORGER_RACES", "20"))
KILLS = int(os.environ.get("FORGER_KILLS", "50"))
LOSSES = int(os.environ.get("FORGER_LOSSES", "10"))


@dataclass(frozen=True)
class Team:
    """A server and the people who use it."""

    admin: Person
    trainer: Person
    promoter: Person
    auth: AuthServiceClient

    def model(self, name: str) -> str:
        """A new model that only the promoter may promote into."""
        client_of(self.admin).create_registered_model(name)
        self.auth.grant_user_permission("promoter", "registered_model", name, "EDIT")
        return name


def client_of(person: Person) -> MlflowClient:
    where = person.sit_down()
    return MlflowClient(where.uri, registry_uri=where.uri)


def log_of(person: Person, model: str) -> PromotionLog:
    return PromotionLog(person.sit_down(), model)


@pytest.fixture(scope="module")
def team(tmp_path_factory, ceph) -> Iterator[Team]:
    """The server, with NUM_CANDIDATES candidates that the trainer registered."""
    before = dict(os.environ)
    folder = tmp_path_factory.mktemp("server")
    with ExitStack() as running:
        try:
            databases = running.enter_context(postgres("mlflow", "auth"))
        except Missing as error:
            or_skip(error)
        make_bucket(ceph, "models")
        uri = running.enter_context(
            mlflow_server(
                databases["mlflow"],
                "s3://models/mlflow",
                folder,
                workers=2,
                auth_database=databases["auth"],
                env=ceph,
            )
        )
        admin = Person(uri, *ADMIN)
        trainer, promoter = (Person(uri, n, f"{n}-of-the-tests") for n in ("trainer", "promoter"))
        for person in (admin, trainer, promoter):
            (folder / f"mlflow_{person.name}").write_text(person.password)
        make_team = runpy.run_path(str(TEAM))["main"]
        for _ in range(2):  # the script may be given again
            make_team(uri, str(folder), CANDIDATES.removesuffix("-candidates"))
        admin.sit_down()
        auth = AuthServiceClient(uri)
        team = Team(admin, trainer, promoter, auth)
        register_candidates(team.trainer, folder / "bundle")
        yield team
    os.environ.clear()
    os.environ.update(before)


def register_candidates(trainer: Person, bundle: Path) -> None:
    """One artifact in S3; each version of the candidates' model is registered from it."""
    client = client_of(trainer)
    bundle.mkdir()
    (bundle / "weights").write_text("the weights")
    model = client.create_logged_model(client.create_experiment("training"), name="generator")
    client.log_model_artifacts(model.model_id, str(bundle))
    client.finalize_logged_model(model.model_id, "READY")
    source, model_id = model.model_uri, model.model_id
    for number in range(1, NUM_CANDIDATES + 1):
        tags = KnownCandidate(CANDIDATES, number).tags
        client.create_model_version(
            CANDIDATES, source, tags=tags, model_id=model_id, await_creation_for=0
        )
        source, model_id = f"models:/{CANDIDATES}/1", None


def alias(person: Person, model: str) -> int | None:
    named = client_of(person).get_registered_model(model).aliases.get("champion")
    return None if named is None else int(named)


def group(person: Person, model: str, numbers: list[int], *, seconds: float) -> list[Promoter]:
    """Promoters who begin together, one for each candidate."""
    barrier = FORKS.Barrier(len(numbers))
    return [
        Promoter(
            barrier,
            person,
            model,
            KnownCandidate(CANDIDATES, number),
            op=f"{model}-{number}",
            seconds=seconds,
        )
        for number in numbers
    ]


def one_line_of_better_champions(person: Person, model: str) -> Ledger:
    """The log, in which every champion is better than the one that it replaced, by an op of its
    own, and which the alias agrees with.
    """
    log = log_of(person, model)
    assert log.drift() is None
    qualities = [quality(entry) for entry in log.ledger.applied()]
    assert qualities == sorted(set(qualities))
    commands = [entry.op.rpartition(".")[0] for entry in log.ledger.applied()]
    assert len(commands) == len(set(commands))
    assert "repeated" not in {entry.state for entry in log.ledger.entries}
    return log.ledger


def test_racing_promoters_never_leave_a_worse_champion(team):
    dice, lost_races, entries = random.Random(1), 0, 0
    for number in range(RACES):
        model = team.model(f"race-{number}")
        racers = dice.sample(range(1, NUM_CANDIDATES + 1), 7)
        if (
            number % 2
        ):  # the others begin with nobody in charge, and set the alias for the first time
            run(team.promoter, model, KnownCandidate(CANDIDATES, racers[6]), "first", 0)
        else:
            racers.pop()
        promoters = group(team.promoter, model, racers[:6], seconds=0.05)
        outcomes = [promoter.last_word() for promoter in promoters]
        assert set(outcomes) <= {"promoted", "rejected"}, outcomes
        ledger = one_line_of_better_champions(team.promoter, model)
        assert quality(ledger.champion) == max(racers)
        states = [entry.state for entry in ledger.entries]
        entries += len(states)
        lost_races += states.count("superseded")
    print(f"{RACES} races: {entries} entries, {lost_races} of them overtaken")
    assert lost_races > 0  # else nothing was tested


def test_racing_promoters_share_a_local_file(tmp_path):
    """Each process works on the database itself, as on a laptop without a server."""
    person = Person(f"sqlite:///{tmp_path / 'mlflow.db'}", "", "")
    before = dict(os.environ)
    try:
        client = client_of(person)
        client.create_registered_model(CANDIDATES)
        for number in range(1, 9):
            tags = KnownCandidate(CANDIDATES, number).tags
            client.create_model_version(CANDIDATES, tmp_path.as_uri(), tags=tags)
        for number in range(2):
            model = f"local-{number}"
            numbers = random.Random(number).sample(range(1, 9), 4)
            outcomes = [p.last_word() for p in group(person, model, numbers, seconds=0.05)]
            assert set(outcomes) <= {"promoted", "rejected"}, outcomes
            assert quality(one_line_of_better_champions(person, model).champion) == max(numbers)
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_killed_promoters_leave_nothing_half_done_after_the_next_command(team):
    dice, at_once = random.Random(2), 5
    unfinished, finished, points = 0, 0, {"before": 0, "after": 0}
    lasts = longest = 1.0  # seconds that a group works; learned, for machines differ
    for number in range(KILLS):
        if sum(points.values()) >= KILLS:
            break
        model = team.model(f"kill-{number}")
        numbers = dice.sample(range(1, NUM_CANDIDATES + 1), at_once)
        promoters = group(team.promoter, model, numbers, seconds=0.05)
        promoters[0].wait_to_begin()
        began = time.monotonic()
        moments = [(place + dice.random()) / at_once * lasts for place in range(at_once)]
        for moment, promoter in zip(moments, dice.sample(promoters, at_once), strict=True):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            promoter.process.kill()
        for promoter in promoters:
            promoter.process.join(DEADLINE_SEC)
        killed = [p for p in promoters if p.process.exitcode == -signal.SIGKILL]
        log = log_of(team.promoter, model)
        written = {entry.op.rpartition(".")[0] for entry in log.entries()}
        for promoter in killed:
            points["after" if promoter.op in written else "before"] += 1
        finished += len(promoters) - len(killed)
        found = log.reconcile()
        if found is not None:
            assert "a move did not finish" in "".join(found.findings), found
            unfinished += 1
        one_line_of_better_champions(team.promoter, model)
        for promoter in killed:  # each types the command again
            run(team.promoter, model, promoter.candidate, promoter.op, 0)
        ledger = one_line_of_better_champions(team.promoter, model)
        assert quality(ledger.champion) == max(numbers)
        longest = max(longest, lasts)
        lasts *= 0.8 if len(killed) < at_once - 1 else 1.25
    print(
        f"killed within {longest:.1f} s: {points['before']} before their entry, {points['after']} "
        f"after it ({finished} were faster); {unfinished} moves were unfinished"
    )
    assert points["before"] + points["after"] >= KILLS


def test_lost_answers_double_nothing(team):
    model = team.model("lossy")
    with LossyProxy(team.promoter.uri, share=0.3, seed=3) as proxy:
        far = replace(team.promoter, uri=proxy.uri)
        for number in range(1, LOSSES + 1):
            candidate = KnownCandidate(CANDIDATES, number)
            assert run(far, model, candidate, f"op-{number}", 0).outcome == "promoted"
        where, numbers = far.sit_down(), []
        for number in range(1, LOSSES + 1):
            tags = {"forger.candidate": f"{CANDIDATES}/{number}"}
            attempt = patiently(
                lambda number=number, tags=tags: begin_attempt(
                    where, model, op=f"op-{number}", name=f"gate-{number}", tags=tags
                )
            )
            numbers.append(attempt.number)
        lost = [path.rpartition("/mlflow/")[2] for _, path in proxy.lost]
        creates = [name for name in lost if name.endswith("/create")]
        print(f"{proxy.passed + len(lost)} calls, {len(lost)} answers lost: {creates}")
    assert lost.count("model-versions/create") > 0
    assert lost.count("runs/create") > 0
    entries = log_of(team.promoter, model).entries()
    assert [entry.state for entry in entries] == ["applied"] * LOSSES
    assert [quality(entry) for entry in entries] == list(range(1, LOSSES + 1))
    assert alias(team.promoter, model) == LOSSES
    client = client_of(team.promoter)
    experiment = client.get_experiment_by_name(f"{model}-gate")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == LOSSES
    assert numbers == list(range(1, LOSSES + 1))


def test_a_trainer_registers_candidates_and_moves_no_champion(team):
    model = team.model("guarded")
    candidate = KnownCandidate(CANDIDATES, 1)
    run(team.promoter, model, candidate, "first", 0)
    client = client_of(team.trainer)
    added = client.create_model_version(CANDIDATES, f"models:/{CANDIDATES}/1", tags={"new": "yes"})
    client.set_registered_model_alias(CANDIDATES, "candidate", added.version)
    for forbidden in (
        lambda: client.create_model_version(model, f"models:/{CANDIDATES}/2"),
        lambda: client.set_registered_model_alias(model, "champion", "1"),
        lambda: client.delete_registered_model_alias(model, "champion"),
        lambda: client.set_registered_model_tag(model, "forger.head", "9:"),
        lambda: client.set_model_version_tag(model, "1", "forger.entry", "{}"),
        lambda: client.delete_model_version(model, "1"),
        lambda: client.delete_registered_model(model),
        lambda: client.rename_registered_model(model, "mine"),
    ):
        with pytest.raises(MlflowException) as refused:
            forbidden()
        assert refused.value.error_code == "PERMISSION_DENIED"
    assert log_of(team.trainer, model).drift() is None
    asked = []
    with pytest.raises(ConfigError) as words:
        promote(
            log_of(team.trainer, model),
            KnownCandidate(CANDIDATES, 2),
            asked.append,  # type: ignore[arg-type]
            actor="trainer",
            reason="mine",
            op="mine",
        )
    assert str(words.value) == (
        f"trainer may not write to the registered model 'guarded': that needs EDIT on 'guarded' "
        f"in MLflow at {team.trainer.uri}; its administrator grants it"
    )
    assert asked == []  # nothing was measured in vain
    stranger = replace(team.promoter, password="a wrong password")
    with pytest.raises(ConfigError, match="does not know promoter by this password"):
        run(stranger, model, candidate, "strange", 0)
    assert quality(log_of(team.promoter, model).champion()) == 1


def test_a_promoter_needs_only_edit_and_cannot_take_an_entry_away(team, tmp_path):
    model = team.model("served")
    run(team.promoter, model, KnownCandidate(CANDIDATES, 1), "one", 0)
    run(team.promoter, model, KnownCandidate(CANDIDATES, 2), "two", 0)
    log = log_of(team.promoter, model)
    done = rollback(log, actor="promoter", reason="ugly", op="back", verify=lambda entry: None)
    assert done.entry is not None
    assert done.entry.restores == 1
    client = client_of(team.promoter)
    for forbidden in (
        lambda: client.delete_model_version(model, "1"),
        lambda: client.delete_registered_model_alias(model, "champion"),
    ):
        with pytest.raises(MlflowException) as refused:
            forbidden()
        assert refused.value.error_code == "PERMISSION_DENIED"
    for name in (f"{model}/1", f"{model}/3", f"{model}@champion"):
        folder = download(team.promoter, f"models:/{name}", tmp_path / name)
        assert (folder / "weights").read_text() == "the weights"


def download(person: Person, uri: str, folder: Path) -> Path:
    with pointed_at(person.sit_down()):
        return Path(artifacts.download_artifacts(uri, dst_path=str(folder)))


def test_a_decision_is_recorded_with_its_page_and_its_digest(team):
    model = team.model("decided")
    where: Backend = team.promoter.sit_down()
    attempt = begin_attempt(where, model, op="x", name="gate-7", tags={"forger.protocol": "p"})
    decision = {"outcome": "rejected", "fd": {"difference": 0.5, "interval": [-0.1, 1.1]}}
    digest = finish_attempt(
        where,
        attempt,
        decision=decision,
        page="<html></html>",
        metrics={"fd/difference": 0.5},
        tags={"forger.outcome": "rejected"},
    )
    client = client_of(team.promoter)
    run_ = client.get_run(attempt.run_id)
    assert run_.info.status == "FINISHED"
    assert run_.data.metrics == {"fd/difference": 0.5}
    assert run_.data.tags["forger.attempt"] == "1"
    assert digest == evidence_digest(decision)
    names = {file.path for file in client.list_artifacts(attempt.run_id)}
    assert names == {"decision.json", "decision.html"}


def test_a_promotion_whose_gate_breaks_leaves_everything_as_it_was(team):
    model = team.model("broken")
    run(team.promoter, model, KnownCandidate(CANDIDATES, 1), "first", 0)

    def breaks(champion: object) -> None:
        raise RuntimeError("NaN features")

    with pytest.raises(RuntimeError, match="NaN"):
        promote(
            log_of(team.promoter, model),
            KnownCandidate(CANDIDATES, 2),
            breaks,  # type: ignore[arg-type]
            actor="promoter",
            reason="",
            op="breaks",
        )
    assert quality(log_of(team.promoter, model).champion()) == 1
    assert log_of(team.promoter, model).drift() is None


def test_a_promoter_takes_a_trainers_generator_through_the_whole_gate(team, tmp_path):
    """Trained and registered by one person, judged and promoted by another, over the server."""
    shards = write_shards(
        str(tmp_path / "blobs"), blobs(1200), classes=("left", "right"), origin={}
    )
    model = team.model("blobs")
    run = trained("blobs", tmp_path / "runs", shards, kimg=20, where=team.trainer.sit_down())
    request = GateRequest(rules=GateRules(), counts=Counts(first=1000, most=2000))
    asked = {"storage": str(tmp_path / "runs"), "cluster": ClusterConfig()}
    with pytest.raises(ConfigError, match="trainer may not write to the registered model 'blobs'"):
        promote_candidate(model, request, where=team.trainer.sit_down(), **asked)
    where = team.promoter.sit_down()
    decided = promote_candidate(model, request, where=where, **asked)
    assert decided.promotion.moved
    champion = load_registered(where, f"models:/{model}@champion")
    assert champion.sha256 == best_of(run).sha256
    (entry,) = log_of(team.promoter, model).entries()
    assert entry.actor.startswith("promoter")
