"""What a command and its workers say of each other, and how it ends where something failed."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from gan.config import ConfigError
from pipeline import fits
from pipeline.backend import Backend
from pipeline.checkpoint import CheckpointWriter, Standing
from pipeline.events import events_of, has_played, note_playing
from pipeline.fits import TrainingError
from pipeline.nodes import Left
from pipeline.run import Run, now_ms
from pipeline.storage import StorageError
from pipeline.train import Watcher, _Command, _Follower
from pipeline.worker import job_of, played
from tests.pipeline.test_play import small_experiment


@pytest.fixture
def run(stripes, tmp_path) -> Run:
    return Run.open("short", small_experiment(stripes, tmp_path, name="short"), stripes)


@pytest.fixture
def stopping(run, stripes, monkeypatch) -> tuple[fits._Attempts, list[str]]:
    """Attempts of a command that was asked to stop, without a cluster."""
    monkeypatch.setattr(fits, "clear_away", lambda *_, **__: Left((), {}))
    monkeypatch.setattr(fits, "free_reservations", lambda: None)
    said: list[str] = []
    events: Any = SimpleNamespace(add=lambda kind, **facts: None)
    heard: Any = SimpleNamespace(heard=1)
    attempts = fits._Attempts(
        run, stripes, 0, lambda: None, said.append, lambda: True, events, heard
    )
    attempts.stopping = True
    writer = CheckpointWriter(run.storage, keep=1)
    writer.publish(Standing(nimg=64), {})
    writer.wait()
    return attempts, said


def of_worker(error: Exception) -> Exception:
    """As Ray Train hands on what rank 0 raised."""
    failed = RuntimeError("workers failed")
    failed.worker_failures = {0: error}  # pyright: ignore[reportAttributeAccessIssue]
    return failed


def test_a_stop_whose_checkpoint_fails_is_an_error(stopping):
    attempts, said = stopping
    with pytest.raises(TrainingError, match="worker 0 failed: the disk is full"):
        attempts._failed(of_worker(StorageError("the disk is full")), number=1)
    assert said == []


def test_a_stop_that_loses_a_worker_says_where_the_run_stands(stopping):
    attempts, said = stopping
    attempts._failed(of_worker(ValueError("boom")), number=1)
    assert said == [
        "worker 0 failed: ValueError: boom; "
        "no checkpoint came of the stop, the last is at 0.1 kimg"
    ]


def test_a_command_has_played_once_its_own_workers_have(run):
    note_playing(run.storage, token=1, nimg=0)
    assert not has_played(run.storage, token=2)
    note_playing(run.storage, token=2, nimg=0)
    assert has_played(run.storage, token=2)


def test_what_workers_say_is_heard_whatever_their_clocks(run, monkeypatch):
    said: list[str] = []
    watcher = Watcher(begun=lambda *_: None, ticked=lambda line: None, said=said.append)
    shipper: Any = SimpleNamespace(nudge=lambda: None)
    run.tell("before")
    follower = _Follower(run, shipper, watcher)
    for hours, text in ((5, "ahead"), (-5, "behind")):
        clock = now_ms() + hours * 3_600_000
        monkeypatch.setattr("pipeline.run.now_ms", lambda clock=clock: clock)
        run.tell(text)
        follower.look()
        follower.look()
    assert said == ["ahead", "behind"]


def test_mlflow_hears_that_a_run_failed_whose_storage_does(run, stripes, monkeypatch):
    ends: list[str] = []

    class Shipper:
        url = ""

        def __init__(self, *_: Any, **__: Any): ...

        def finish(self, status: str, **_: Any) -> bool:
            ends.append(status)
            return True

        def nudge(self) -> None: ...

    def lost(*_: Any, **__: Any) -> None:
        raise StorageError("the store is gone")

    monkeypatch.setattr("pipeline.train.Shipper", Shipper)
    monkeypatch.setattr("pipeline.train.connected", lambda cluster: nullcontext())
    monkeypatch.setattr("pipeline.train.play_on_ray", lost)
    watcher = Watcher(begun=lambda *_: None, ticked=lambda line: None, said=lambda text: None)
    command = _Command(run, stripes, Backend("", None), watcher, token=1, fence=lambda: None)
    with pytest.raises(StorageError, match="the store is gone"):
        command._play(0, new=False)
    assert ends == ["FAILED"]
    assert [event.kind for event in events_of(run.storage)] == ["began", "failed"]


def test_a_worker_refuses_other_data_than_the_runs(stripes, tmp_path):
    run = Run.open("one", small_experiment(stripes, tmp_path, name="one"), stripes)
    job = job_of(run, stripes)
    record = json.loads(run.storage.read("run.json"))
    record["data_digest"] = "0" * 64
    run.storage.write("run.json", json.dumps(record).encode())
    with pytest.raises(ConfigError, match="the run was begun on 000000000000"):
        played(job, device="cpu")
