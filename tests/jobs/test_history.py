"""forger history and forger rollback, on generators that were trained and registered for real."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from gan.config import ConfigError
from jobs.history import command as history
from jobs.rollback import command as rollback
from pipeline.backend import Backend, pointed_at
from pipeline.entries import Entry
from pipeline.play import play
from pipeline.promotions import PromotionLog, Verdict, promote
from pipeline.registry import candidate_version, load_registered, register
from pipeline.run import Run
from pipeline.tracking import open_tracker
from tests.pipeline.desk import best_of, small_run

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Desk:
    """A local registry with two generators, both promoted: `small/1`, then `small/2`."""

    storage: Path
    where: Backend

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.where.uri, registry_uri=self.where.uri)

    def type(self, command, *words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(command, [*words, "--storage", str(self.storage)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    def weights(self, name: str) -> str:
        return load_registered(self.where, f"models:/{name}").sha256


def yes(champion: Entry | None) -> Verdict:
    return Verdict(promote=True, outcome="promoted")


@pytest.fixture(scope="module")
def desk(stripes, tmp_path_factory) -> Desk:
    storage = tmp_path_factory.mktemp("desk") / "runs"
    desk = Desk(
        storage, Backend(f"sqlite:///{storage / 'mlflow.db'}", (storage / "mlartifacts").as_uri())
    )
    first = small_run(storage, stripes)
    second = Run.open("small-2", first.experiment.replace("seed", 1), stripes)
    assert play(second, stripes).finished
    for number, run in enumerate((first, second), start=1):
        tracker = open_tracker(desk.where, run)
        register(desk.where, run, best_of(run), mlflow_run_id=tracker.run_id)
        candidate = candidate_version(desk.client, f"small/{number}")
        log = PromotionLog(desk.where, "small")
        promote(log, candidate, yes, actor="ann", reason=f"number {number}", op=f"op{number}")
    return desk


def test_what_was_promoted_is_what_every_name_of_it_loads(desk):
    assert desk.weights("small/1") == desk.weights("small-candidates/1")
    assert desk.weights("small@champion") == desk.weights("small-candidates/2")
    with pointed_at(desk.where):
        served = mlflow.pyfunc.load_model("models:/small@champion")
        (images,) = served.predict([{"n": 2, "seed": 3, "label": 1}])
    assert [image.seed for image in images] == [3, 4]


def test_history_shows_who_when_and_why_and_stars_the_champion(desk):
    lines = desk.type(history, "models:/small@champion").output.splitlines()
    assert lines[0].split()[:3] == ["version", "when", "(UTC)"]
    assert [line.split()[0] for line in lines[1:]] == ["*", "1"]
    assert lines[1].endswith("small-candidates/2  ann  promoted  number 2")
    record = json.loads(desk.type(history, "small", "--json").output)
    assert (record["champion"], record["alias"], record["findings"]) == (2, 2, [])
    assert [entry["candidate"] for entry in record["entries"]] == [
        "small-candidates/2",
        "small-candidates/1",
    ]


def test_a_moved_alias_is_reported_and_put_right_when_asked(desk):
    desk.client.set_registered_model_alias("small", "champion", "1")
    words = "found: the alias champion names 1, the log says 2: it was moved by hand"
    assert words in desk.type(history, "small", code=1).output
    assert desk.weights("small@champion") == desk.weights("small-candidates/1")
    output = desk.type(history, "small", "--repair").output
    assert words in output
    assert "the alias champion names 2" in output
    assert words not in desk.type(history, "small").output
    assert desk.weights("small@champion") == desk.weights("small-candidates/2")


def test_a_rollback_checks_the_files_first_and_typed_twice_goes_back_once(desk):
    root = Path(
        str(desk.client.get_model_version_download_uri("small", "1")).removeprefix("file://")
    )
    weights = root / "artifacts" / "generator" / "generator.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"generator\.safetensors"):
        desk.type(rollback, "small", "--reason", "blurred")
    weights.write_bytes(whole)
    assert desk.weights("small@champion") == desk.weights("small-candidates/2")
    output = desk.type(rollback, "small", "--reason", "blurred").output
    assert output == (
        "models:/small@champion is version 3: small-candidates/1 again, as promoted in 1\n"
    )
    assert "done already" in desk.type(rollback, "small", "--reason", "blurred").output
    assert desk.weights("small@champion") == desk.weights("small-candidates/1")
    with pytest.raises(ConfigError, match="no older champion"):
        desk.type(rollback, "small", "--reason", "blurred still")
    desk.type(rollback, "small", "--to", "2", "--reason", "it was the screen")
    assert desk.weights("small@champion") == desk.weights("small-candidates/2")
    lines = desk.type(history, "small").output.splitlines()
    assert ["rollback to 2" in lines[1], "rollback to 1" in lines[2]] == [True, True]


def test_an_unknown_model_is_named(desk):
    with pytest.raises(ConfigError, match="Registered Model with name=other not found"):
        desk.type(history, "other")
    with pytest.raises(ConfigError, match="Registered Model with name=other not found"):
        desk.type(rollback, "other", "--reason", "x")
