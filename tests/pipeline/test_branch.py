"""Branches: a life continued with other settings is the life that its schedule replays."""

from __future__ import annotations

import dataclasses
import re
import shutil

import pytest
import torch

from gan.config import ConfigError, Steps
from pipeline.branch import branch
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_toml, load_experiment
from pipeline.folder import Folder
from pipeline.play import play
from pipeline.run import RECORD, Run
from pipeline.snapshot import read_snapshot
from tests.pipeline.test_play import curve, small_experiment, weights

AT = (0, 0.096, 0.192)  # kimg at which the life changes
LIFE = {
    "generator.lr": (1e-3, 2e-3, 5e-4),
    "discriminator.lr": (1e-3, 1e-3, 3e-3),
    "objective.r1_gamma": (1.0, 0.0, 0.5),
    "turns.d_steps": (1, 2, 1),
    "ema.half_life_kimg": (0.1, 5.0, 0.0),
}


def lived(stripes: ShardSet, tmp_path, generations: int) -> Experiment:
    """An experiment of this many of the life's generations, as a schedule."""
    experiment = small_experiment(stripes, tmp_path, evaluate__every_kimg=0.032)
    for key, values in LIFE.items():
        steps = Steps(at_kimg=AT[:generations], values=values[:generations])
        experiment = experiment.replace(key, steps)
    return experiment


@pytest.fixture
def parent(stripes, tmp_path) -> Run:
    """A run of 256 images, paused at 96."""
    first = small_experiment(stripes, tmp_path, evaluate__every_kimg=0.032)
    for key, values in LIFE.items():
        first = first.replace(key, values[0])
    run = Run.open("first", first, stripes)
    assert play(run, stripes, until_nimg=96).nimg == 96
    return run


def test_a_life_of_branches_and_its_schedule_from_scratch_are_the_same_bits(
    stripes, tmp_path, parent
):
    second = branch(parent, "second", lived(stripes, tmp_path, 2), stripes, nimg=96)
    assert play(second, stripes, until_nimg=192).nimg == 192
    third = branch(second, "third", lived(stripes, tmp_path, 3), stripes, nimg=192)
    assert play(third, stripes).finished

    file = tmp_path / "replay.toml"
    file.write_text(experiment_toml(lived(stripes, tmp_path, 3)))
    replay = Run.open("replay", load_experiment(file).experiment, stripes)
    assert play(replay, stripes).finished

    ours, theirs = weights(third), weights(replay)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert curve(third) == curve(replay)
    (a, b) = (read_snapshot(run.storage, run.snapshots()[-1].folder) for run in (third, replay))
    assert a.sha256 == b.sha256
    assert a.card.scores == b.card.scores


def test_a_branch_has_the_history_up_to_its_beginning_and_leaves_the_parent_alone(
    stripes, tmp_path, parent
):
    assert play(parent, stripes, until_nimg=128).nimg == 128
    before = {name: parent.storage.read(name) for name in parent.storage.names()}
    run = branch(parent, "second", lived(stripes, tmp_path, 2), stripes, nimg=96)
    assert [line.nimg for line in run.journal()] == [32, 64, 96]
    assert list(run.journal()) == [line for line in parent.journal() if line.nimg <= 96]
    for line in run.journal():
        assert line.picture is not None
        assert run.storage.read(line.picture) == parent.storage.read(line.picture)
    kept = [best for best in parent.snapshots() if best.card.nimg <= 96]
    assert run.snapshots() == kept
    assert run.id != parent.id
    assert run.lineage["branched"] == {
        "run_id": parent.id,
        "run_name": "first",
        "nimg": 96,
    }
    assert [stretch["from_nimg"] for stretch in run.lineage["played"]] == [0]
    play(run, stripes, until_nimg=160)
    assert {name: parent.storage.read(name) for name in parent.storage.names()} == before


def files(run: Run) -> dict[str, bytes]:
    """All but the record; a segment's writer, in its name, is another one each time."""
    names = [name for name in run.storage.names() if name != RECORD]
    return {re.sub(r"-\w{8}\.jsonl$", "", name): run.storage.read(name) for name in names}


def test_a_branch_cut_short_anywhere_is_made_again(stripes, tmp_path, parent, monkeypatch):
    experiment = lived(stripes, tmp_path, 2)
    whole = branch(parent, "whole", experiment, stripes, nimg=96)
    write, number = Folder.write, 0
    while True:
        shutil.rmtree(tmp_path / "runs/cut", ignore_errors=True)
        left = number

        def failing(self, name, data):
            nonlocal left
            if left == 0:
                raise SystemError("power cut")
            left -= 1
            write(self, name, data)

        monkeypatch.setattr(Folder, "write", failing)
        try:
            branch(parent, "cut", experiment, stripes, nimg=96)
        except SystemError:
            assert not (tmp_path / "runs/cut" / RECORD).exists()
        else:
            break
        finally:
            monkeypatch.undo()
        (tmp_path / "runs/cut/journal").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/cut/journal/000000000200.jsonl").write_text("of another branch\n")
        run = branch(parent, "cut", experiment, stripes, nimg=96)
        assert files(run) == files(whole)
        number += 1
    assert number > 5


def test_a_branch_that_is_there_is_opened(stripes, tmp_path, parent):
    experiment = lived(stripes, tmp_path, 2)
    run = branch(parent, "second", experiment, stripes, nimg=96)
    play(run, stripes, until_nimg=160)
    again = branch(parent, "second", experiment, stripes, nimg=96)
    assert again.id == run.id
    assert [line.nimg for line in again.journal()] == [32, 64, 96, 128, 160]
    with pytest.raises(ConfigError, match="seed was 0 when the run began and is 1 now"):
        branch(parent, "second", experiment.replace("seed", 1), stripes, nimg=96)
    with pytest.raises(ConfigError, match="got a run that began from first at 96 images"):
        branch(parent, "second", experiment, stripes, nimg=64)
    with pytest.raises(ConfigError, match="got a run that began afresh"):
        branch(run, "first", experiment, stripes, nimg=96)


def test_what_cannot_be_branched_is_refused_with_every_reason(stripes, tmp_path, parent):
    other = dataclasses.replace(stripes, digest="f" * 64)
    experiment = lived(stripes, tmp_path, 2).replace("turns.batch_size", 8)
    with pytest.raises(ConfigError) as caught:
        branch(parent, "no", experiment.replace("generator.width", 16), other, nimg=80)
    assert list(caught.value.mistakes) == [
        "turns.batch_size must stay 16 in a branch of first, got 8",
        "generator.width must stay 8 in a branch of first, got 16",
        f"the data at {stripes.uri} has digest ffffffffffff, "
        f"the run was begun on {stripes.digest[:12]}",
        "first must have a whole checkpoint at 80 images to branch there, "
        "got checkpoints at: 64, 96",
    ]
    assert not (tmp_path / "runs/no").exists()
    (path,) = parent.storage.path("checkpoints/000000000096").glob("game-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="whole checkpoint at 96"):
        branch(parent, "no", lived(stripes, tmp_path, 2), stripes, nimg=96)
