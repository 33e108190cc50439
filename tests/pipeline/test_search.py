"""forger search, as it is typed: real Ray, real MLflow, processes that are killed."""

from __future__ import annotations

import html
import json
import os
import signal
import time

import psutil
import pytest

from pipeline.folder import Folder
from pipeline.ledger import Ledger, Trial
from pipeline.run import Run
from tests.pipeline.desk import Desk
from tests.pipeline.servers import DEADLINE_SEC

pytestmark = pytest.mark.slow

SEARCH = """
extends = "stripes.toml"
name = "stripes"
[turns]
total_kimg = 2
[tracking]
tick_kimg = 0.25
[evaluate]
every_kimg = 0.5
[cluster]
workers = 1
[search]
trials = 4
scheduler = "none"
finalists = 2
final_images = 200
final_seeds = 2
[search.space]
generator.lr = { loguniform = [3e-4, 3e-3] }
discriminator.lr = { times = "generator.lr", loguniform = [0.5, 2] }
turns.d_steps = { choice = [1, 2] }
"""
PBT = """
extends = "search.toml"
[turns]
d_steps = 1
[search]
name = "stripes-pbt"
scheduler = "pbt"
generations = 3
finalists = 1
"""


def desk_with_search(folder) -> Desk:
    desk = Desk(folder)
    (folder / "search.toml").write_text(SEARCH)
    (folder / "pbt.toml").write_text(PBT)
    return desk


def ledger_at(desk: Desk, name: str = "stripes-search") -> Ledger:
    return Ledger.at(Folder(desk.folder / "runs" / name))


def what_counts(trials: list[Trial]) -> list[tuple]:
    """All that must not depend on when which process was killed."""
    return [(t.number, t.point, t.settings, t.origin, t.state, t.nimg, t.readings) for t in trials]


def weights(run: Run) -> str:
    best = run.best()
    assert best is not None
    return best.sha256


def wait_for(desk: Desk, process, holds) -> None:
    """Returns once `holds` of the trials in the ledger of a search that is under way."""
    deadline = time.monotonic() + DEADLINE_SEC
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        if (desk.folder / "runs/stripes-search/search.json").is_file() and holds(
            ledger_at(desk).trials()
        ):
            return
        time.sleep(0.05)
    raise AssertionError("the search did not get that far")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Desk, str]:
    """A complete search, and what it printed."""
    desk = desk_with_search(tmp_path_factory.mktemp("undisturbed"))
    return desk, desk.run("search", "search.toml")


def test_a_search_ends_in_a_table_and_a_registered_candidate(undisturbed):
    desk, output = undisturbed
    ledger = ledger_at(desk)
    trials = ledger.trials()
    assert [t.state for t in trials] == ["complete"] * 4
    assert all(t.nimg >= 2000 and len(t.readings) == 4 for t in trials)
    assert trials[0].origin == "the file's own"
    own = {"generator.lr": 1e-3, "discriminator.lr": 1e-3, "turns.d_steps": 1}
    assert trials[0].settings == own
    assert "registered as candidate models:/stripes-candidates/1" in output
    again = desk.run("search", "search.toml")  # complete: nothing is played
    assert what_counts(ledger_at(desk).trials()) == what_counts(trials)
    assert "models:/stripes-candidates/1" in again
    shown = desk.run("search", "--show", "stripes-search")
    for trial in trials:
        assert any(line.split()[:2] == [str(trial.number), "complete"]
                   for line in shown.splitlines())  # fmt: skip
    desk.run("report", "stripes-search", "-o", "page.html")
    page = html.unescape((desk.folder / "page.html").read_text())
    assert "trial 0" in page
    assert 'name = "stripes-search-best"' in page


def test_mlflow_has_the_parent_its_trials_their_params_and_the_page(undisturbed):
    from mlflow import MlflowClient

    desk, _ = undisturbed
    client = MlflowClient(desk.tracking, desk.tracking)
    experiment = client.get_experiment_by_name("stripes")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [r for r in runs if r.data.tags["forger.kind"] == "search"]
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    trials = ledger_at(desk).trials()
    assert {int(r.data.tags["forger.trial"]) for r in children} == {t.number for t in trials}
    for child in children:
        trial = trials[int(child.data.tags["forger.trial"])]
        for key, value in trial.settings.items():
            assert child.data.params[key] == str(value)
        history = client.get_metric_history(child.info.run_id, "g/loss")
        assert [m.step for m in history] == sorted({m.step for m in history})
        assert max(m.step for m in history) == trial.nimg
        assert child.info.status == "FINISHED"
    assert parent.info.status == "FINISHED"
    assert parent.data.params["search.trials"] == "4"
    files = {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert {"search.html", "best.toml", "experiment.toml"} <= files
    version = client.get_model_version_by_alias("stripes-candidates", "candidate")
    assert version.tags["forger.search"] == "stripes-search"


def test_the_best_file_trains_to_the_same_weights(undisturbed):
    desk, _ = undisturbed
    ledger = ledger_at(desk)
    result = ledger.result
    assert result is not None
    desk.run("train", "runs/stripes-search/best.toml", "data.shards=data")
    winner = ledger.run_of(ledger.trial(result["best"]))
    assert weights(desk.open_run("stripes-search-best")) == weights(winner)


def kill_a_trials_process(driver: int) -> None:
    """SIGKILL to one of the processes in which Ray Tune plays a trial."""
    deadline = time.monotonic() + DEADLINE_SEC
    while time.monotonic() < deadline:
        for child in psutil.Process(driver).children(recursive=True):
            try:
                if "ImplicitFunc" in " ".join(child.cmdline()):
                    child.kill()
                    return
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError("no trial has a process")


def test_a_killed_trial_ctrl_c_and_a_killed_driver_lose_nothing(undisturbed, tmp_path):
    calm, _ = undisturbed
    desk = desk_with_search(tmp_path)

    process = desk.start("search", "search.toml")
    wait_for(desk, process, lambda trials: any(t.nimg > 0 for t in trials))
    kill_a_trials_process(process.pid)
    # At its next sign of life at most two of four have begun: there is something to stop.
    seen = sum(t.nimg for t in ledger_at(desk).trials())
    wait_for(desk, process, lambda trials: sum(t.nimg for t in trials) > seen)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 0, output
    stopped = ledger_at(desk).trials()
    assert "to go on: forger search search.toml" in output
    assert not any(t.state == "running" for t in stopped)

    ended = sum(t.ended for t in stopped)
    process = desk.start("search", "search.toml")
    wait_for(
        desk,
        process,
        lambda trials: (
            sum(t.ended for t in trials) > ended
            or any(t.state == "running" and t.readings for t in trials)
        ),
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    desk.run("search", "search.toml")
    assert what_counts(ledger_at(desk).trials()) == what_counts(ledger_at(calm).trials())
    before, after = ledger_at(calm).result, ledger_at(desk).result
    assert before is not None
    assert after is not None
    assert before["best"] == after["best"]
    assert before["finalists"] == after["finalists"]


def test_trials_on_several_workers_are_nested_ray_train_runs(undisturbed, tmp_path):
    calm, _ = undisturbed
    desk = desk_with_search(tmp_path)
    desk.run("search", "search.toml", "cluster.workers=2", "search.trials=2")
    trials = ledger_at(desk).trials()
    assert [t.state for t in trials] == ["complete"] * 2
    played = ledger_at(desk).run_of(trials[1]).lineage["played"]
    assert [stretch["world_size"] for stretch in played] == [2]
    for ours, alone in zip(trials, ledger_at(calm).trials()[:2], strict=True):
        assert ours.point == alone.point
        for mine, other in zip(ours.readings, alone.readings, strict=True):
            assert mine.values["fd"] == pytest.approx(other.values["fd"], rel=1e-2)


def test_trials_that_diverge_or_cannot_work_are_recorded_and_the_search_goes_on(tmp_path):
    desk = desk_with_search(tmp_path)
    output = desk.run(
        "search",
        "search.toml",
        "search.name=wild",
        "search.trials=3",
        "search.space={generator.lr={choice=[1e-3, 1e30]}}",
        "search.points=[{generator.lr=1e30}]",
    )
    trials = ledger_at(desk, "wild").trials()
    assert trials[1].state == "diverged"
    assert "lower generator.lr" in trials[1].reason
    assert trials[1].reason in output
    assert trials[0].state == "complete"
    result = ledger_at(desk, "wild").result
    assert result is not None
    assert result["best"] in (0, 2)
    assert "NaN" not in json.dumps([t.reason for t in trials])


def test_a_pbt_winners_file_replays_its_life(tmp_path):
    desk = desk_with_search(tmp_path)
    desk.run("search", "pbt.toml")
    ledger = ledger_at(desk, "stripes-pbt")
    trials = ledger.trials()
    assert len(trials) == 12
    assert {t.generation for t in trials} == {0, 1, 2}
    assert all(trials[t.parent or 0].generation == t.generation - 1 for t in trials[4:])
    result = ledger.result
    assert result is not None
    winner = ledger.trial(result["best"])
    desk.run("train", "runs/stripes-pbt/best.toml", "data.shards=data")
    replayed = desk.open_run("stripes-pbt-best")
    run = ledger.run_of(winner)
    theirs = {line.nimg: line.metrics for line in replayed.journal()}
    for line in run.journal():
        same = {k: v for k, v in line.metrics.items() if not k.startswith(("speed/", "host/"))}
        assert same == {
            k: v for k, v in theirs[line.nimg].items() if not k.startswith(("speed/", "host/"))
        }
    assert winner.from_nimg > 0
    assert weights(replayed) == weights(run)


def test_mistakes_are_met_before_a_trial_all_at_once(tmp_path):
    desk = desk_with_search(tmp_path)
    output = desk.run(
        "search",
        "search.toml",
        "search.space.generator.lr={loguniform=[3e-3, 3e-4]}",
        "search.space.generator.widht={int=[8, 16]}",
        "search.objectives=['fd', 'beauty']",
        "search.space.turns.batch_size={choice=[1, 16]}",
        "cluster.workers=2",
        code=2,
    )
    for said in ("generator.lr", "generator.width?", "objectives", "batch_size"):
        assert said in output
    assert not (desk.folder / "runs").exists()
