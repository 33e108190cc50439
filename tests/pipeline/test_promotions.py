"""Promotions and rollbacks over SQLite, and what hands do to their log."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient, artifacts

from gan.config import ConfigError
from pipeline.asking import who
from pipeline.backend import Backend, pointed_at
from pipeline.entries import ENTRY, LINK, OVERTAKEN, Entry, Head, replay
from pipeline.promotion_log import HEAD, PAGE, PromotionLog
from pipeline.promotions import Promotion, Verdict, promote, rollback, rollback_op
from tests.pipeline.paper import MODEL, Paper, edit_reason


@dataclass(frozen=True)
class Candidate:
    """A candidate whose quality is known."""

    version: int
    quality: float = 0.0
    model: str = "digits-candidates"

    @property
    def sha256(self) -> str:
        return f"{self.version:064x}"

    @property
    def manifest_sha256(self) -> str:
        return f"{self.version + 1000:064x}"

    @property
    def tags(self) -> dict[str, str]:
        return {
            "forger.sha256": self.sha256,
            "forger.manifest": self.manifest_sha256,
            "forger.run_id": f"run-{self.version}",
            "score/fd_digits_1k": "12.5",
        }


@pytest.fixture(scope="module")
def migrated(tmp_path_factory) -> Path:
    """A database with MLflow's tables and ten candidates; making one takes seconds."""
    folder = tmp_path_factory.mktemp("migrated")
    client = client_of(Backend(f"sqlite:///{folder / 'mlflow.db'}", None))
    client.create_registered_model("digits-candidates")
    for number in range(1, 11):
        content = folder / str(number)
        content.mkdir()
        (content / "weights").write_text(f"weights of {number}")
        client.create_model_version(
            "digits-candidates", content.as_uri(), tags=Candidate(number).tags
        )
    return folder


def client_of(where: Backend) -> MlflowClient:
    return MlflowClient(where.uri, registry_uri=where.uri)


@pytest.fixture
def where(migrated, tmp_path) -> Backend:
    shutil.copy(migrated / "mlflow.db", tmp_path / "mlflow.db")
    return Backend(f"sqlite:///{tmp_path / 'mlflow.db'}", None)


def yes(champion: Entry | None) -> Verdict:
    return Verdict(
        promote=True, outcome="promoted", decision="run-1", evidence="e" * 64, protocol="p" * 64
    )


def no(champion: Entry | None) -> Verdict:
    return Verdict(promote=False, outcome="rejected")


def promoted(where: Backend, number: int, *, op: str = "", decide=yes, **options) -> Promotion:
    return promote(
        PromotionLog(where, MODEL),
        Candidate(number),
        decide,
        actor="ann",
        reason=options.pop("reason", "better"),
        op=op or f"promote-{number}",
        **options,
    )


def rolled_back(
    where: Backend, *, to: int | None = None, op: str = "back", **options
) -> Promotion:
    options.setdefault("verify", lambda entry: None)
    return rollback(
        PromotionLog(where, MODEL), to=to, actor="bob", reason="ugly", op=op, **options
    )


def champion(where: Backend) -> Entry:
    found = PromotionLog(where, MODEL).champion()
    assert found is not None
    return found


def alias(where: Backend) -> int | None:
    model = client_of(where).get_registered_model(MODEL)
    version = model.aliases.get("champion")
    return None if version is None else int(version)


def test_a_promotion_is_one_version_with_all_that_was_decided_and_the_alias_names_it(where):
    done = promoted(where, 3)
    assert done.moved
    version = client_of(where).get_model_version_by_alias(MODEL, "champion")
    assert version.source == "models:/digits-candidates/3"
    assert version.tags["forger.sha256"] == Candidate(3).sha256
    assert version.tags["forger.manifest"] == Candidate(3).manifest_sha256
    assert version.tags["forger.run_id"] == "run-3"
    assert version.tags["score/fd_digits_1k"] == "12.5"
    assert version.description == "promoted by ann: better"
    entry = champion(where)
    assert entry == done.entry
    assert (entry.candidate, entry.actor, entry.reason) == ("digits-candidates/3", "ann", "better")
    assert (entry.decision, entry.evidence, entry.protocol) == ("run-1", "e" * 64, "p" * 64)
    assert (entry.kind, entry.outcome, entry.expects, entry.forced) == (
        "promote",
        "promoted",
        0,
        False,
    )


@pytest.fixture
def pointed(where) -> Iterator[None]:
    """MLflow's own functions work on the log's database, for one test."""
    with pointed_at(where):
        yield


def test_every_name_of_the_champion_loads_the_artifact_of_the_candidate(where, pointed, tmp_path):
    promoted(where, 1)
    promoted(where, 2)
    rolled_back(where)
    for name, number in [("1", 1), ("2", 2), ("3", 1)]:
        for uri in (f"models:/{MODEL}/{name}", f"models:/digits-candidates/{number}"):
            folder = artifacts.download_artifacts(uri, dst_path=str(tmp_path / "got"))
            assert (Path(folder) / "weights").read_text() == f"weights of {number}"
    folder = artifacts.download_artifacts(f"models:/{MODEL}@champion")
    assert (Path(folder) / "weights").read_text() == "weights of 1"


def test_a_command_repeated_with_its_op_does_nothing_twice(where):
    first = promoted(where, 1, op="x")
    again = promoted(where, 1, op="x", decide=no)
    assert again.entry == first.entry
    promoted(where, 2)
    late = promoted(where, 1, op="x", decide=no)
    assert late.entry == first.entry
    assert champion(where).candidate == "digits-candidates/2"
    assert len(PromotionLog(where, MODEL).entries()) == 2


def test_a_no_leaves_the_champion_alone_and_is_asked_against_it(where):
    promoted(where, 1)
    asked = []

    def decide(against: Entry | None) -> Verdict:
        asked.append(against)
        return no(against)

    done = promoted(where, 2, decide=decide)
    assert (done.moved, done.outcome) == (False, "rejected")
    assert asked == [champion(where)]
    assert champion(where).candidate == "digits-candidates/1"


def test_the_champion_is_not_promoted_over_itself(where):
    promoted(where, 1)
    done = promoted(where, 1, op="again")
    assert (done.moved, done.outcome, done.rounds) == (False, "in charge", 0)


def test_force_needs_a_reason_and_is_recorded_with_what_the_gate_had_said(where):
    with pytest.raises(ConfigError, match="needs a reason"):
        promoted(where, 1, decide=no, force=True, reason=" ")
    done = promoted(where, 1, decide=no, force=True, reason="the demo is at noon")
    assert done.entry is not None
    assert done.entry.forced
    assert done.entry.outcome == "rejected"
    unforced = promoted(where, 2, force=True)
    assert unforced.entry is not None
    assert not unforced.entry.forced


def test_who_loses_a_race_decides_again_against_the_new_champion(where):
    promoted(where, 1)
    asked = []

    def decide(against: Entry | None) -> Verdict:
        assert against is not None
        asked.append(against.candidate)
        if len(asked) == 1:
            promoted(where, 2)
        return yes(against)

    done = promoted(where, 3, decide=decide)
    assert asked == ["digits-candidates/1", "digits-candidates/2"]
    assert done.rounds == 2
    assert done.replaced is not None
    assert done.replaced.candidate == "digits-candidates/2"
    assert champion(where).candidate == "digits-candidates/3"
    assert alias(where) == champion(where).version


def test_an_entry_that_came_too_late_is_marked_for_readers_of_versions(where):
    promoted(where, 1)
    client = client_of(where)
    late = replace(champion(where), op="late", expects=0, previous="").carrying({})
    client.create_model_version(MODEL, "models:/digits-candidates/2", tags=late.tags())
    client.create_model_version(
        MODEL, "models:/digits-candidates/1", tags=client.get_model_version(MODEL, "1").tags
    )
    assert PromotionLog(where, MODEL).reconcile() is None
    assert client.get_model_version(MODEL, "2").tags[OVERTAKEN] == "superseded"
    assert client.get_model_version(MODEL, "3").tags[OVERTAKEN] == "repeated"
    assert OVERTAKEN not in client.get_model_version(MODEL, "1").tags
    assert alias(where) == 1


def test_rollbacks_go_further_back_each_time_and_never_return_what_was_taken_away(where):
    for number in (1, 2, 3):
        promoted(where, number)
    verified = []
    done = rolled_back(where, op="a", verify=verified.append)
    assert [entry.version for entry in verified] == [2]
    assert done.entry is not None
    assert (done.entry.kind, done.entry.restores, done.entry.sha256) == (
        "rollback",
        2,
        Candidate(2).sha256,
    )
    assert champion(where).candidate == "digits-candidates/2"
    assert rolled_back(where, op="a").entry == done.entry
    rolled_back(where, op="b")
    assert champion(where).candidate == "digits-candidates/1"
    with pytest.raises(ConfigError, match="no older champion"):
        rolled_back(where, op="c")
    rolled_back(where, to=3, op="d")
    assert champion(where).candidate == "digits-candidates/3"
    version = client_of(where).get_model_version_by_alias(MODEL, "champion")
    assert version.tags["forger.manifest"] == Candidate(3).manifest_sha256
    assert version.tags["forger.run_id"] == "run-3"


def test_a_rollback_typed_twice_is_one_and_with_other_words_another(where):
    for number in (1, 2, 3):
        promoted(where, number)
    log = PromotionLog(where, MODEL)

    def typed(reason: str) -> None:
        op = rollback_op(log.read(), to=None, actor="bob", reason=reason)
        rollback(log, actor="bob", reason=reason, op=op, verify=lambda entry: None)

    typed("ugly")
    typed("ugly")
    assert champion(where).candidate == "digits-candidates/2"
    typed("ugly too")
    assert champion(where).candidate == "digits-candidates/1"
    promoted(where, 4)
    typed("ugly")
    assert champion(where).version == 7


def test_a_rollback_needs_a_whole_target_that_was_champion_and_a_reason(where):
    promoted(where, 1)
    promoted(where, 2)
    log = PromotionLog(where, MODEL)

    def broken(entry: Entry) -> None:
        raise ConfigError([f"entry {entry.version} does not load"])

    with pytest.raises(ConfigError, match="entry 1 does not load"):
        rolled_back(where, verify=broken)
    with pytest.raises(ConfigError, match=r"was champion \(1, 2\); entry 9 does not exist"):
        rolled_back(where, to=9)
    with pytest.raises(ConfigError, match="entry 2 is the champion"):
        rolled_back(where, to=2)
    with pytest.raises(ConfigError, match="needs a reason"):
        rollback(log, actor="bob", reason="", op="x", verify=lambda entry: None)
    assert champion(where).version == 2


def test_a_rollback_without_a_version_is_refused_where_the_champion_moved_meanwhile(where):
    promoted(where, 1)
    promoted(where, 2)
    with pytest.raises(ConfigError, match="became entry 3 while this command ran"):
        rolled_back(where, verify=lambda entry: promoted(where, 3) and None)
    assert champion(where).candidate == "digits-candidates/3"


def test_a_rollback_to_a_version_is_repeated_until_it_holds(where):
    promoted(where, 1)
    promoted(where, 2)
    rolled_back(where, to=1, verify=lambda entry: promoted(where, 3) and None)
    assert champion(where).candidate == "digits-candidates/1"


def change(where: Backend, act: Callable[[MlflowClient], object]) -> None:
    act(client_of(where))


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda c: c.set_registered_model_alias(MODEL, "champion", "1"),
         "the alias champion names 1, the log says 2: it was moved by hand"),
        (lambda c: c.delete_registered_model_alias(MODEL, "champion"),
         "the alias champion is missing, the log says 2: it was moved by hand"),
        (lambda c: c.delete_model_version(MODEL, "1"), "entry 1 was deleted"),
        (lambda c: c.set_model_version_tag(MODEL, "1", "forger.sha256", "0"),
         "entry 1 has the tag forger.sha256 edited"),
        (lambda c: c.set_model_version_tag(MODEL, "1", "forger.run_id", "0"),
         "entry 1 has one of these tags edited: forger.manifest forger.run_id forger.sha256"),
        (lambda c: c.create_model_version(MODEL, "models:/digits-candidates/9"),
         "entry 3 was not written by Forger's log"),
    ],
)  # fmt: skip
def test_what_a_hand_did_is_told_and_the_alias_follows_the_log_again(where, act, says):
    promoted(where, 1)
    promoted(where, 2)
    change(where, act)
    log = PromotionLog(where, MODEL)
    found = log.drift()
    assert found is not None
    assert found.findings == (says,)
    assert log.reconcile() == found
    assert alias(where) == 2
    after = log.drift()
    assert after is None or after.findings == tuple(f for f in (says,) if "alias" not in f)


def test_a_move_that_was_not_finished_is_told_from_one_by_hand(where):
    promoted(where, 1)
    log = PromotionLog(where, MODEL)
    ledger = log.read()
    entry = replace(champion(where), op="killed", expects=1, previous=ledger.tip_link)
    assert log.append(entry, source="models:/digits-candidates/2", tags={}) is not None
    found = log.reconcile()
    assert found is not None
    assert found.findings == ("the alias champion names 1, the log says 2: a move did not finish",)
    assert alias(where) == 2
    assert log.drift() is None


def test_a_deleted_champion_is_told_and_the_one_before_is_in_charge(where):
    promoted(where, 1)
    promoted(where, 2)
    change(where, lambda c: c.delete_model_version(MODEL, "2"))
    found = PromotionLog(where, MODEL).reconcile()
    assert found is not None
    assert found.findings[0] == "entry 2 was deleted"
    assert alias(where) == 1
    promoted(where, 3)
    assert champion(where).candidate == "digits-candidates/3"
    assert champion(where).expects == 2


def test_an_edited_champion_stays_in_service_and_is_not_promoted_against(where):
    promoted(where, 1)
    promoted(where, 2)
    edited = edit_reason(client_of(where).get_model_version(MODEL, "2").tags)
    change(where, lambda c: c.set_model_version_tag(MODEL, "2", ENTRY, edited[ENTRY]))
    log = PromotionLog(where, MODEL)
    found = log.reconcile()
    assert found is not None
    assert found.findings[0] == "entry 2 was edited after it was written"
    assert alias(where) == 2
    with pytest.raises(ConfigError, match="entry 2 of 'digits' is in charge but was edited"):
        promoted(where, 3)
    rolled_back(where)
    assert champion(where).candidate == "digits-candidates/1"
    promoted(where, 3)
    assert champion(where).candidate == "digits-candidates/3"
    assert alias(where) == champion(where).version


def test_a_log_longer_than_a_page_is_read_whole(where):
    log = PromotionLog(where, MODEL)
    log.read(create=True)
    paper = Paper()
    last = replay(MODEL, ())
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlModelVersionTag
    from sqlalchemy import create_engine, insert

    count = 2 * PAGE + 7
    for number in range(count):
        version = paper.write(last, f"op{number}")
        last = replace(last, tip=version, tip_link=paper.versions[version][LINK])
    rows = [
        {"workspace": "default", "name": MODEL, "version": v, "current_stage": "None",
         "creation_time": v, "last_updated_time": count - v, "status": "READY",
         "source": "models:/digits-candidates/1"}
        for v in paper.versions
    ]  # fmt: skip
    tags = [
        {"workspace": "default", "name": MODEL, "version": v, "key": key, "value": value}
        for v, tags in paper.versions.items()
        for key, value in tags.items()
    ]
    with create_engine(where.uri).begin() as connection:
        connection.execute(insert(SqlModelVersion), rows)
        connection.execute(insert(SqlModelVersionTag), tags)
    assert len(log.entries()) == count
    assert champion(where).version == count
    assert promoted(where, 2).entry is not None
    assert champion(where).version == count + 1


def test_an_unknown_model_and_a_server_that_is_away_are_named(where, monkeypatch):
    with pytest.raises(ConfigError, match=r"cannot read .* with name=digits not found"):
        PromotionLog(where, MODEL).read()
    with pytest.raises(ConfigError, match=r"Model Version .name=digits-candidates, version=99"):
        promoted(where, 99)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"cannot read .* in MLflow at http://127\.0\.0\.1:9"):
        PromotionLog(Backend("http://127.0.0.1:9", None), MODEL).read()
    with pytest.raises(ConfigError, match="no quotes, slashes or colons"):
        PromotionLog(where, "x' or name = 'y")


def test_the_actor_is_the_user_of_mlflow_or_of_the_machine(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    assert who() == "ann"
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    assert "@" in who()


def test_the_note_of_the_head_is_kept_beside_the_log(where):
    promoted(where, 1)
    tags = client_of(where).get_registered_model(MODEL).tags
    assert Head.parse(tags[HEAD]) == Head(1, champion(where).link)
