"""A game that is lost goes back to where it was well, the same way however often it is killed."""

from __future__ import annotations

import pytest

from gan.world import World
from pipeline.branch import fork_of
from pipeline.checkpoint import CheckpointWriter, checkpoint_at, latest_checkpoint, standings
from pipeline.experiment import Experiment
from pipeline.host import DivergedError
from pipeline.play import _Match, play
from pipeline.rollbacks import rollbacks
from pipeline.run import Run
from pipeline.signals import Wish
from pipeline.storage import StorageError
from tests.pipeline.test_play import (
    assert_same,
    curve,
    small_experiment,
    stop_after_rounds,
    weights,
)

# The learning rates explode at 160 images, an anchor stands at 128; 1e-33 of them is sane.
WILD = {"at_kimg": [0, 0.16], "values": [1e-3, 1e30]}


def wild(stripes, tmp_path, **changes) -> Experiment:
    settings = {
        "generator__lr": WILD,
        "discriminator__lr": WILD,
        "watchdog": {"action": "rollback", "lr_factor": 1e-33, "max_rollbacks": 3},
        "evaluate__every_kimg": 0.064,
    }
    return small_experiment(stripes, tmp_path, **(settings | changes))


@pytest.fixture
def rolled_back(stripes, tmp_path) -> Run:
    run = Run.open("whole", wild(stripes, tmp_path, name="whole"), stripes)
    assert play(run, stripes).finished
    return run


def test_a_lost_game_is_played_again_from_its_last_anchor_with_the_remedies(rolled_back):
    (back,) = rollbacks(rolled_back.storage)
    assert (back.number, back.to_nimg) == (1, 128)
    assert 160 < back.from_nimg <= 224
    assert [line.nimg for line in rolled_back.journal()] == list(range(32, 257, 32))
    assert all(line.metrics["health/verdict"] < 2 for line in rolled_back.journal())
    (name, text), *_ = rolled_back.told()
    assert name
    assert "back to 0.1 kimg, rollback 1 of 3" in text
    assert [kept.nimg for kept in standings(rolled_back.storage) if kept.rollbacks == 0] <= [128]
    assert rolled_back.released_nimg == 256


@pytest.mark.parametrize("every", [1, 3, 5])
def test_a_rollback_happens_the_same_way_however_often_the_run_is_stopped(
    stripes, tmp_path, rolled_back, monkeypatch, every
):
    run = Run.open("cut", wild(stripes, tmp_path, name="cut"), stripes)
    stop_after_rounds(monkeypatch, every)
    for _ in range(40):
        if play(run, stripes).finished:
            break
    assert len(rollbacks(run.storage)) == 1
    assert_same(weights(rolled_back), weights(run))
    assert curve(run) == curve(rolled_back)


def test_the_remedies_hold_from_the_anchor_on_wherever_the_game_is_taken_up(
    stripes, tmp_path, rolled_back
):
    """All checkpoints but the one before the anchor are gone: it is passed again, then cured."""
    run = Run.open("early", wild(stripes, tmp_path, name="early"), stripes)
    play(run, stripes, until_nimg=96)
    for name in rolled_back.storage.names("rollbacks"):
        run.storage.write(name, rolled_back.storage.read(name))
    assert play(run, stripes).finished
    assert len(rollbacks(run.storage)) == 1
    assert_same(weights(rolled_back), weights(run))


def test_a_fork_that_is_lost_before_it_was_judged_goes_back_to_where_it_began(
    stripes, tmp_path, monkeypatch
):
    parent = Run.open("parent", wild(stripes, tmp_path, name="parent"), stripes)
    stop_after_rounds(monkeypatch, 9)
    assert play(parent, stripes).nimg == 144  # past the anchor at 128: by the stop, unjudged
    monkeypatch.undo()
    experiment = wild(stripes, tmp_path, name="parent", evaluate__every_kimg=0.256)
    fork = fork_of("parent", "fork", experiment, stripes)
    assert play(fork, stripes).finished
    assert [back.to_nimg for back in rollbacks(fork.storage)] == [144]
    assert [line.nimg for line in fork.journal() if line.nimg <= 144] == [32, 64, 96, 128]


def test_a_game_that_no_rollback_helps_ends_with_the_reason(stripes, tmp_path):
    settings = {"action": "rollback", "lr_factor": 1.0, "max_rollbacks": 2}
    run = Run.open("lost", wild(stripes, tmp_path, name="lost", watchdog=settings), stripes)
    with pytest.raises(DivergedError, match="2 rollbacks did not help"):
        play(run, stripes)
    assert [back.to_nimg for back in rollbacks(run.storage)] == [128, 128]
    assert latest_checkpoint(run.storage) is not None


def test_ticks_are_told_only_once_they_cannot_be_taken_back(stripes, tmp_path, monkeypatch):
    run = Run.open("held", wild(stripes, tmp_path, name="held"), stripes)
    stop_after_rounds(monkeypatch, 7)
    assert play(run, stripes).nimg == 112
    assert run.journalled_nimg == 96
    assert run.released_nimg == 64


def test_only_a_judged_game_is_an_anchor_and_the_end_has_a_checkpoint_whatever_it_is(
    stripes, tmp_path
):
    """Checkpoints every 32 images, judged every 96: what was not judged may have collapsed."""
    experiment = small_experiment(
        stripes, tmp_path, name="judged", evaluate__every_kimg=0.096, checkpoint__keep=20
    )
    run = Run.open("judged", experiment, stripes)
    assert play(run, stripes).finished
    standing = standings(run.storage)
    assert [kept.nimg for kept in standing if kept.anchor] == [96, 192, 256]
    assert {kept.nimg for kept in standing} > {96, 192, 256}


def test_no_checkpoint_by_the_clock_holds_a_number_that_is_not_finite(
    stripes, tmp_path, monkeypatch
):
    """The clock asks before every round, and no checkpoint is left out for the one before it."""
    stop_after_rounds(monkeypatch, 0, Wish.SAVE)
    monkeypatch.setattr(CheckpointWriter, "busy", property(lambda self: False))
    settings = {"checkpoint__keep": 50, "tracking__tick_kimg": 0.256}
    run = Run.open("nan", wild(stripes, tmp_path, name="nan", watchdog={}, **settings), stripes)
    with pytest.raises(DivergedError):
        play(run, stripes)
    kept = standings(run.storage)
    assert [standing.nimg for standing in kept] == list(range(16, 161, 16))
    for standing in kept:
        state = checkpoint_at(run.storage, standing.nimg).state
        assert all(value.isfinite().all() for value in state.values())


def test_a_rank_whose_view_of_the_folder_lags_waits_for_what_rank_0_found(
    rolled_back, monkeypatch
):
    """As on NFS, where another node may see a new file a minute later."""
    (back,) = rollbacks(rolled_back.storage)
    views, waits = [[], [], [back, back]], []
    match = object.__new__(_Match)
    match.run, match.world, match.alive = rolled_back, World(1, 2), lambda: waits.append(1)
    monkeypatch.setattr(World, "sum_number", lambda world, value: value + 1.0)  # rank 0 found one
    monkeypatch.setattr("pipeline.play.rollbacks", lambda storage: views.pop(0))
    monkeypatch.setattr("pipeline.play.time.sleep", lambda seconds: None)
    assert match._agreed_rollbacks() == [back]
    assert len(waits) == 2
    views[:] = [[]]
    monkeypatch.setattr("pipeline.play.LAG_SEC", -1.0)
    with pytest.raises(StorageError, match="0 of 1 rollbacks"):
        match._agreed_rollbacks()
