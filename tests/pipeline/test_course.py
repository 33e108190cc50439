"""The course of a search without Ray: trials in this process, and a driver that dies anywhere."""

from __future__ import annotations

from itertools import count

import pytest

from pipeline.course import Course, Ending
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_from_dict
from pipeline.ledger import Ledger, Trial, best_of
from pipeline.plans import Generations, TrialByTrial
from pipeline.play import play
from pipeline.search_checks import search_space
from tests.pipeline.test_play import stop_after_rounds


class KilledError(Exception):
    """The driver is gone."""


def experiment(storage, shards, **search) -> Experiment:
    space = {
        "generator.lr": {"loguniform": [1e-4, 2e-2]},
        "discriminator.lr": {"times": "generator.lr", "loguniform": [0.5, 2]},
    }
    values = {
        "name": "small",
        "data": {"shards": shards.uri},
        "generator": {"width": 8, "latent_dim": 4, "lr": 5e-3},
        "discriminator": {"width": 8, "lr": 5e-3},
        "conditioning": {"name": "projection"},
        "turns": {"total_kimg": 0.256, "batch_size": 16},
        "tracking": {"tick_kimg": 0.032},
        "evaluate": {"images": 60, "every_kimg": 0.064},
        "cluster": {"storage": str(storage)},
        "search": {"trials": 6, "space": space, "reduction": 2, "warm_up": 0.5} | search,
    }
    return experiment_from_dict(values)


def drive(searched: Experiment, shards, *, dies_after: int = 10**6) -> Ledger:
    """Plays one trial after the other, as Ray Tune's process and the driver do together.

    The driver dies after so many moments; all that is left then is what lies on the disk.
    """
    moments = count(1)

    def moment() -> None:
        if next(moments) == dies_after:
            raise KilledError

    ledger = Ledger.open("small-search", searched, shards)
    space = search_space(searched)
    pbt = ledger.config.scheduler == "pbt"
    plan = Generations(ledger, space) if pbt else TrialByTrial(ledger, space)
    course = Course(ledger, shards, space, plan)
    while not course.finished:
        moment()
        trial = course.next()
        assert trial is not None, "nothing runs that could be waited for"
        moment()
        course.ended(trial.number, played(course, trial, shards, moment))
    assert course.complete
    return ledger


def played(course: Course, trial: Trial, shards, moment) -> Ending:
    run, every = course.ledger.run_of(trial), run_every(course)
    while True:
        nimg = max((line.nimg for line in run.journal()), default=trial.from_nimg)
        if nimg >= trial.until_nimg:
            return Ending("complete")
        if run.stop_requested:  # heard at the next tick
            play(run, shards, until_nimg=min(nimg + 32, trial.until_nimg))
            return Ending("stopped")
        play(run, shards, until_nimg=min(nimg + every, trial.until_nimg))
        moment()  # the journal has the evaluation, the driver has not heard of it
        course.heard(trial.number)
        moment()


def run_every(course: Course) -> int:
    return course.ledger.experiment.evaluate_nimg


def what_counts(ledger: Ledger) -> list[tuple]:
    return [
        (t.number, t.point, t.settings, t.origin, t.parent, t.state, t.reason, t.readings)
        for t in ledger.trials()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("search", [{"scheduler": "asha"}, {"scheduler": "pbt", "trials": 4,
                                                            "generations": 2}])  # fmt: skip
def test_a_driver_that_dies_at_any_moment_leaves_the_search_as_it_would_have_been(
    tmp_path, stripes, search
):
    calm = drive(experiment(tmp_path / "calm", stripes, **search), stripes)
    states = [trial.state for trial in calm.trials()]
    assert "complete" in states
    if search["scheduler"] == "asha":
        assert "stopped" in states  # else this would prove little
    died = 0
    for first in range(2, 60, 13):
        searched = experiment(tmp_path / f"killed-{first}", stripes, **search)
        try:
            drive(searched, stripes, dies_after=first)
        except KilledError:
            died += 1
        else:
            break  # it was over before it could die
        ledger = drive(searched, stripes)
        assert what_counts(ledger) == what_counts(calm)
        assert best_of(ledger.trials(), "fd")[0].number == best_of(calm.trials(), "fd")[0].number
    assert died >= 2


def test_more_trials_can_be_asked_for_and_the_first_ones_stay(tmp_path, stripes):
    few = drive(experiment(tmp_path, stripes, trials=2, scheduler="none"), stripes)
    before = what_counts(few)
    more = drive(experiment(tmp_path, stripes, trials=3, scheduler="none"), stripes)
    assert what_counts(more)[:2] == before
    assert len(more.trials()) == 3


def test_no_trial_begins_once_the_budget_is_spent(tmp_path, stripes):
    ledger = drive(experiment(tmp_path, stripes, scheduler="none", budget_kimg=0.6), stripes)
    assert [trial.state for trial in ledger.trials()] == ["complete"] * 3
    assert ledger.spent_all


def test_readings_that_a_rollback_may_take_back_are_heard_once_they_stand(
    tmp_path, stripes, monkeypatch
):
    """Stopped at 112 images: ticks to 96 are in the journal, the newest anchor is at 64."""
    searched = experiment(tmp_path, stripes).replace("watchdog.action", "rollback")
    ledger = Ledger.open("small-search", searched, stripes)
    space = search_space(searched)
    trial = Course(ledger, stripes, space, TrialByTrial(ledger, space)).next()
    assert trial is not None
    stop_after_rounds(monkeypatch, 7)
    assert play(ledger.run_of(trial), stripes).nimg == 112
    assert [line.nimg for line in ledger.catch_up(trial)] == [32, 64]
    assert [line.nimg for line in ledger.catch_up(trial, whole=True)] == [96]
