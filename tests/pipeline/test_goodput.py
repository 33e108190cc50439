"""Where a run's seconds went, against accounts written by hand."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest

from pipeline.events import Event, Events, events_of, note_playing
from pipeline.folder import Folder
from pipeline.goodput import Goodput, account
from pipeline.journal import JournalLine
from pipeline.storage import StorageError


def event(sec: float, kind: str, **facts: float) -> Event:
    return Event(kind, int(sec * 1000), facts)


def tick(sec: float, nimg: int, seconds: float, **spent: float) -> JournalLine:
    metrics = {f"host/{name}": value for name, value in spent.items()}
    return JournalLine(nimg, int(sec * 1000), seconds, metrics | {"speed/img_per_sec": 100.0})


def seconds_of(found: Goodput) -> dict[str, float]:
    names = ("useful", "startup", "checkpoints", "evaluation", "recovery", "replayed", "other")
    return {name: round(getattr(found, f"{name}_sec"), 6) for name in names}


def test_an_undisturbed_run_is_useful_but_for_start_evaluation_and_checkpoints():
    events = [event(0, "began"), event(1, "attempt"), event(10, "playing", nimg=0),
              event(53, "finished", nimg=4000)]  # fmt: skip
    lines = [tick(20, 1000, 10), tick(33, 2000, 10, evaluate_sec=2, checkpoint_sec=1),
             tick(43, 3000, 10, checkpoint_sec=0.5), tick(53, 4000, 10)]  # fmt: skip
    assert seconds_of(account(events, lines)) == {
        "useful": 39.5, "startup": 10, "checkpoints": 1.5, "evaluation": 2, "recovery": 0,
        "replayed": 0, "other": 0,
    }  # fmt: skip


def test_a_lost_worker_costs_recovery_and_the_images_since_the_checkpoint():
    events = [
        event(0, "began"), event(10, "playing", nimg=0),
        event(27, "lost"), event(28, "attempt"), event(35, "playing", nimg=500),
        event(50, "finished", nimg=2000),
    ]  # fmt: skip
    lines = [tick(20, 1000, 10), tick(50, 2000, 10)]
    # 7 s after the tick at 1000 and 5 s from 500 back to it were played for nothing.
    assert seconds_of(account(events, lines)) == {
        "useful": 20, "startup": 10, "checkpoints": 0, "evaluation": 0, "recovery": 8,
        "replayed": 12, "other": 0,
    }  # fmt: skip


def test_a_stop_in_the_middle_of_a_tick_loses_nothing_and_the_night_between_is_not_counted():
    events = [
        event(0, "began"), event(10, "playing", nimg=0), event(26, "stopped", nimg=1600),
        event(9000, "began"), event(9010, "playing", nimg=1600),
        event(9014, "finished", nimg=2000),
    ]  # fmt: skip
    lines = [tick(20, 1000, 10), tick(9014, 2000, 4)]
    found = account(events, lines)
    assert seconds_of(found) == {
        "useful": 20, "startup": 20, "checkpoints": 0, "evaluation": 0, "recovery": 0,
        "replayed": 0, "other": 0,
    }  # fmt: skip
    assert found.all_sec == 40
    assert str(found) == "goodput 50 % of 40 s: 50 % start-up"
    assert found.metrics()["goodput/share"] == 0.5


def test_a_regroup_costs_the_change_and_a_rollback_the_game_that_was_given_up():
    events = [
        event(0, "began"), event(10, "playing", nimg=0),
        event(21, "regroup"), event(24, "attempt"), event(30, "playing", nimg=1200),
        event(58, "playing", nimg=2000), event(68, "finished", nimg=3000),
    ]  # fmt: skip
    lines = [tick(20, 1000, 10), tick(38, 2000, 8), tick(68, 3000, 10)]
    assert seconds_of(account(events, lines)) == {
        "useful": 30, "startup": 10, "checkpoints": 0, "evaluation": 0, "recovery": 8,
        "replayed": 20, "other": 0,
    }  # fmt: skip


def test_a_killed_command_counts_up_to_its_last_sign_of_life():
    events = [event(0, "began"), event(10, "playing", nimg=0),
              event(500, "began"), event(510, "playing", nimg=1000),
              event(520, "finished", nimg=2000)]  # fmt: skip
    found = account(events, [tick(20, 1000, 10), tick(520, 2000, 10)])
    assert (found.all_sec, found.useful_sec, found.startup_sec) == (40, 20, 20)


def test_shares_add_up_whatever_is_missing_from_the_account():
    events = [event(0, "began"), event(30, "lost"), event(31, "attempt"), event(70, "failed")]
    found = account(events, [tick(20, 1000, 10), tick(60, 2000, 10)])
    assert found.all_sec == pytest.approx(70)
    assert account([], [tick(20, 1000, 10)]).all_sec == 0
    assert str(Goodput()) == "goodput unknown"


def test_drivers_and_workers_note_side_by_side_and_a_second_command_adds(tmp_path, monkeypatch):
    seconds = itertools.count()  # no two notes at the same moment
    monkeypatch.setattr("pipeline.events.time", SimpleNamespace(time=lambda: next(seconds)))
    storage = Folder(tmp_path)
    Events(storage, 1).add("began")
    note_playing(storage, token=1, nimg=16)
    Events(storage, 1).add("lost", why="worker 0 died")
    assert [(e.kind, e.facts) for e in events_of(storage)] == [
        ("began", {}), ("playing", {"nimg": 16}), ("lost", {"why": "worker 0 died"}),
    ]  # fmt: skip


def test_a_note_that_storage_does_not_take_is_lost_without_an_error(tmp_path):
    class Full(Folder):
        def write(self, name: str, data: bytes) -> None:
            raise StorageError("the disk is full")

    events = Events(Full(tmp_path), 1)
    events.add("began")
    note_playing(Full(tmp_path), token=1, nimg=0)
    assert events_of(Folder(tmp_path)) == []


@pytest.mark.parametrize("seed", range(20))
def test_of_a_simulated_run_useful_is_what_its_images_took_and_the_parts_are_the_whole(seed):
    """Workers and drivers that fail at random moments, with a checkpoint every 30 images."""
    dice, sec_per_img, now, saved, reached = random.Random(seed), 0.1, 0.0, 0, 0
    events, lines, began, wall = [event(0, "began")], [], 0.0, 0.0
    while True:
        now += dice.uniform(1, 9)
        events.append(event(now, "playing", nimg=saved))
        fails, nimg, since = now + dice.expovariate(1 / 60), saved, now
        while nimg < 2000 and now + sec_per_img <= fails:
            now, nimg = now + sec_per_img, nimg + 1
            if nimg % 100 == 0:
                if nimg > reached:  # a tick that is replayed is not journalled again
                    metrics = {"speed/img_per_sec": 1 / sec_per_img}
                    lines.append(JournalLine(nimg, round(now * 1000), now - since, metrics))
                    reached = nimg
                since = now
            if nimg % 30 == 0:
                saved = nimg
        if nimg == 2000:
            break
        now += 0.5
        if dice.random() < 0.3:  # the driver ends too, and the next one does not come at once
            events.append(event(now, "stopped", nimg=saved))
            wall, now = wall + now - began, now + 1000
            events.append(event(now, "began"))
            began = now
        else:
            events.append(event(now, "lost"))
    events.append(event(now, "finished", nimg=2000))
    spent = account(events, lines)
    assert spent.all_sec == pytest.approx(wall + now - began, rel=0.01)
    assert spent.useful_sec == pytest.approx(2000 * sec_per_img, rel=0.02)
