"""forger search, as it is typed: real Ray, real MLflow, processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest

from pipeline.ledger import ENDED, Ledger, Trial
from pipeline.run import Run
from pipeline.storage import Folder
from tests.pipeline.desk import DEADLINE_SEC, Desk

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


def wait_for(desk: Desk, process, name: str, holds) -> None:
    deadline = time.monotonic() + DEADLINE_SEC
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        try:
            if holds(ledger_at(desk, name)):
                return
        except Exception:  # not that far yet, or just being written
            pass
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
    assert weights(desk.open_run("stripes-best")) == weights(winner)


def test_a_killed_driver_loses_nothing(undisturbed, tmp_path):
    calm, _ = undisturbed
    desk = desk_with_search(tmp_path)
    process = desk.start("search", "search.toml")
    wait_for(
        desk,
        process,
        "stripes-search",
        lambda ledger: (
            sum(t.state in ENDED for t in ledger.trials()) >= 1
            and sum(t.state == "running" for t in ledger.trials()) >= 1
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


def test_ctrl_c_checkpoints_and_a_killed_trial_process_does_not_fail_its_trial(
    undisturbed, tmp_path
):
    calm, _ = undisturbed
    desk = desk_with_search(tmp_path)
    process = desk.start("search", "search.toml")
    wait_for(desk, process, "stripes-search", lambda ledger: ledger.trial(0).nimg > 0)
    victims = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "play_trial" in " ".join(child.cmdline())
        or "ImplicitFunc" in child.name()
        or "ImplicitFunc" in " ".join(child.cmdline())
    ]
    assert victims
    victims[0].kill()
    wait_for(
        desk,
        process,
        "stripes-search",
        lambda ledger: any(t.ended for t in ledger.trials()),
    )
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 0, output
    if "to go on" in output:
        desk.run("search", "search.toml")
    assert what_counts(ledger_at(desk).trials()) == what_counts(ledger_at(calm).trials())


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
    cloned = [t for t in trials if t.origin == "cloned and changed"]
    assert all(trials[t.parent or 0].generation == t.generation - 1 for t in trials[4:])
    last = trials[-1] if not cloned else cloned[-1]
    result = ledger.result
    assert result is not None
    winner = ledger.trial(result["best"])
    desk.run("train", "runs/stripes-pbt/best.toml", "data.shards=data")
    replayed = desk.open_run("stripes-best")
    run = ledger.run_of(winner)
    theirs = {line.nimg: line.metrics for line in replayed.journal()}
    for line in run.journal():
        same = {k: v for k, v in line.metrics.items() if not k.startswith("speed/")}
        assert same == {k: v for k, v in theirs[line.nimg].items() if not k.startswith("speed/")}
    assert last.from_nimg > 0


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
