"""The core of a run in one process: journal, snapshots, stopping and going on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from gan.config import ConfigError
from pipeline.branch import fork_of
from pipeline.checkpoint import latest_checkpoint, newest_nimg
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_from_dict
from pipeline.find import find_generator
from pipeline.folder import Folder
from pipeline.journal import Segment
from pipeline.lease import take
from pipeline.play import DivergedError, play
from pipeline.run import Run, free_name
from pipeline.signals import Listener, Wish
from pipeline.snapshot import read_snapshot, write_snapshot


def small_experiment(stripes, tmp_path, **changes) -> Experiment:
    """A run of 256 images: 8 ticks, checkpoints at every other, judged three times."""
    values = {
        "name": "small",
        "data": {"shards": stripes.uri},
        "generator": {"width": 8, "latent_dim": 4, "lr": 1e-3},
        "discriminator": {"width": 8, "lr": 1e-3},
        "turns": {"total_kimg": 0.256, "batch_size": 16},
        "tracking": {"tick_kimg": 0.032},
        "checkpoint": {"every_kimg": 0.064},
        "evaluate": {"every_kimg": 0.1, "images": 50},
        "cluster": {"storage": str(tmp_path / "runs")},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values.get(section, {}), name: value} if name else value
    return experiment_from_dict(values)


def weights(run: Run) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(run.storage)
    assert found is not None
    return found.state


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def curve(run: Run) -> list:
    """What the journal says, without the clock."""
    return [
        (
            line.nimg,
            {k: v for k, v in line.metrics.items() if not k.startswith(("speed/", "host/"))},
            line.picture,
        )
        for line in run.journal()
    ]


@pytest.fixture
def undisturbed(stripes, tmp_path) -> Run:
    run = Run.open("whole", small_experiment(stripes, tmp_path, name="whole"), stripes)
    assert play(run, stripes).finished
    return run


def test_a_run_journals_every_tick_once_and_keeps_its_best_generator(undisturbed):
    lines = list(undisturbed.journal())
    assert [line.nimg for line in lines] == list(range(32, 257, 32))
    judged = [line for line in lines if line.picture]
    assert [line.nimg for line in judged] == [128, 224, 256]
    assert all("score/fd_pixels_50" in line.metrics for line in judged)
    best = undisturbed.best()
    assert best is not None
    scores = [line.metrics["score/fd_corrected_pixels_50"] for line in judged]
    assert best.card.score("fd_corrected") == min(scores)
    assert undisturbed.storage.path(judged[0].picture).read_bytes()[:4] == b"\x89PNG"
    generator = find_generator(undisturbed.storage.uri, storage="nowhere")
    assert generator.images([0, 1]).shape == (2, 1, 8, 8)
    assert generator.sha256 == best.sha256


def stop_after_rounds(monkeypatch, rounds: int, wish: Wish = Wish.STOP) -> None:
    """The listener hears `wish` before the round after so many; each play counts anew."""

    class Counting(Listener):
        asked = 0

        @property
        def wish(self) -> Wish:
            self.asked += 1
            return wish if self.asked > rounds else Wish.NOTHING

    monkeypatch.setattr("pipeline.play.Listener", Counting)


@pytest.mark.parametrize("rounds", [1, 2, 5, 6, 13, 15])
def test_a_run_stopped_at_any_round_and_resumed_ends_as_the_undisturbed_one(
    stripes, tmp_path, undisturbed, monkeypatch, rounds
):
    """16 images a round, 32 a tick: an odd number of rounds stops in the middle of a tick."""
    run = Run.open("cut", small_experiment(stripes, tmp_path, name="cut"), stripes)
    stop_after_rounds(monkeypatch, rounds)
    outcome = play(run, stripes)
    assert (outcome.nimg, outcome.finished) == (16 * rounds, False)
    monkeypatch.undo()

    again = Run.open("cut", small_experiment(stripes, tmp_path, name="cut"), stripes)
    assert again.id == run.id
    assert play(again, stripes).finished
    assert_same(weights(undisturbed), weights(again))
    assert curve(again) == curve(undisturbed)


def test_a_run_that_checkpoints_before_every_round_plays_the_same(
    stripes, tmp_path, undisturbed, monkeypatch
):
    run = Run.open("often", small_experiment(stripes, tmp_path, name="often"), stripes)
    stop_after_rounds(monkeypatch, 0, Wish.SAVE)
    assert play(run, stripes).finished
    assert_same(weights(undisturbed), weights(run))
    assert curve(run) == curve(undisturbed)


def test_a_stop_request_in_the_folder_is_heard_while_playing(stripes, tmp_path):
    run = Run.open("asked", small_experiment(stripes, tmp_path, turns__total_kimg=1000), stripes)
    asked = []

    def ask_once() -> None:
        if not asked:
            asked.append(run.request_stop())

    outcome = play(run, stripes, alive=ask_once)
    assert not outcome.finished
    assert 0 < outcome.nimg == newest_nimg(run.storage)


@pytest.mark.parametrize("pauses", [[64, 160], [40, 100, 144], [255]])
def test_a_run_paused_anywhere_ends_with_the_weights_of_the_undisturbed_one(
    stripes, tmp_path, undisturbed, pauses
):
    """16 images a round: a pause comes at the first multiple of 16 that reaches it."""
    run = Run.open("paused", small_experiment(stripes, tmp_path, name="paused"), stripes)
    for until in pauses:
        outcome = play(run, stripes, until_nimg=until)
        reached = -(-until // 16) * 16
        assert (outcome.nimg, outcome.finished) == (reached, reached >= 256)
        last = list(run.journal())[-1]
        assert last.nimg == reached
        assert last.picture is not None
        assert "score/fd_pixels_50" in last.metrics
        assert newest_nimg(run.storage) == reached
        assert play(run, stripes, until_nimg=until) == outcome  # it is there already
    assert play(run, stripes, until_nimg=10**9).finished
    a, b = weights(undisturbed), weights(run)
    assert all(torch.equal(a[name], b[name]) for name in a)
    if pauses == [64, 160]:  # where ticks are anyway: only judgements are added
        for ours, theirs in zip(curve(run), curve(undisturbed), strict=True):
            assert ours[0] == theirs[0]
            assert theirs[1].items() <= ours[1].items()


@pytest.mark.parametrize("rounds", [10, 11])
def test_a_run_that_died_between_checkpoints_replays_without_double_lines(
    stripes, tmp_path, undisturbed, monkeypatch, rounds
):
    """It dies at a tick that was journalled past a checkpoint, or in the middle of one."""
    run = Run.open("dead", small_experiment(stripes, tmp_path, name="dead"), stripes)

    class Deadly(Listener):
        asked = 0

        @property
        def wish(self) -> Wish:
            self.asked += 1
            if self.asked > rounds:
                raise SystemError("power cut")
            return Wish.NOTHING

    monkeypatch.setattr("pipeline.play.Listener", Deadly)
    with pytest.raises(SystemError):
        play(run, stripes)
    assert (newest_nimg(run.storage), run.journalled_nimg) == (128, 160)
    monkeypatch.undo()
    again = Run.open("dead", small_experiment(stripes, tmp_path, name="dead"), stripes)
    assert play(again, stripes).finished
    assert curve(again) == curve(undisturbed)
    assert_same(weights(undisturbed), weights(again))


@pytest.fixture
def overtaken(stripes, tmp_path, monkeypatch) -> Run:
    """A run whose first writer got to 128 images, and that another took over, who had found the
    journal at 96: the workers of a driver that died write on until Ray ends them.
    """
    run = Run.open("late", small_experiment(stripes, tmp_path, name="late"), stripes)

    class Deadly(Listener):
        asked = 0

        @property
        def wish(self) -> Wish:
            self.asked += 1
            if self.asked > 11:
                raise SystemError("power cut")
            return Wish.NOTHING

    monkeypatch.setattr("pipeline.play.Listener", Deadly)
    with (
        take(run.storage, who="first", note={"journalled": -1}) as first,
        pytest.raises(SystemError),
    ):
        play(run, stripes, token=first.token)
    monkeypatch.undo()
    assert newest_nimg(run.storage) == 128
    with take(run.storage, who="heir", note={"journalled": 96}):
        assert run.journalled_nimg == 96
    return run


def test_a_checkpoint_whose_ticks_came_after_another_writer_had_looked_does_not_count(
    stripes, tmp_path, undisturbed, overtaken
):
    """The lines past where the next driver found the journal are void, so a checkpoint that relies
    on them must be, too.
    """
    with take(overtaken.storage, who="heir", note={"journalled": 96}) as heir:
        again = Run.open("late", small_experiment(stripes, tmp_path, name="late"), stripes)
        assert play(again, stripes, token=heir.token).finished
    assert curve(again) == curve(undisturbed)
    assert_same(weights(undisturbed), weights(again))


def test_a_fork_passes_over_it_and_has_no_gap_in_its_curve(stripes, tmp_path, overtaken):
    experiment = small_experiment(stripes, tmp_path, name="late")
    fork = fork_of("late", "fork", experiment, stripes)
    begun = fork.lineage["branched"]["nimg"]
    assert 0 < begun <= 96
    assert [line.nimg for line in fork.journal()] == list(range(32, begun + 1, 32))


def test_a_changed_experiment_or_other_data_is_refused_with_what_changed(stripes, tmp_path):
    Run.open("small", small_experiment(stripes, tmp_path), stripes)
    with pytest.raises(ConfigError) as caught:
        Run.open("small", small_experiment(stripes, tmp_path, generator__lr=5e-4, seed=3), stripes)
    text = "\n".join(caught.value.mistakes)
    assert "generator.lr was 0.0002" in text or "generator.lr was 0.001" in text
    assert "seed was 0 when the run began and is 3 now" in text
    other = dataclasses.replace(stripes, digest="f" * 64)
    with pytest.raises(ConfigError, match="digest ffffffffffff"):
        Run.open("small", small_experiment(stripes, tmp_path), other)
    Run.open("small", small_experiment(stripes, tmp_path, cluster__workers=2), stripes)


def test_a_game_that_diverges_says_so_and_stops(stripes, tmp_path):
    wild = small_experiment(stripes, tmp_path, generator__lr=1e30, discriminator__lr=1e30)
    run = Run.open("small", wild, stripes)
    with pytest.raises(DivergedError, match=r"diverged at .* kimg: .*(nan|inf)"):
        play(run, stripes)


def test_a_new_run_beside_complete_ones_takes_the_next_name(undisturbed, stripes, tmp_path):
    from pipeline.folder import Folder

    storage = Folder(tmp_path / "runs")
    assert free_name(storage, "whole") == "whole"  # not complete: it can be resumed
    undisturbed.complete({})
    assert free_name(storage, "whole") == "whole-2"


def test_a_generator_with_batch_normalization_is_read_back(stripes, tmp_path):
    run = Run.open("small", small_experiment(stripes, tmp_path, generator__norm="batch"), stripes)
    assert play(run, stripes).finished
    first = find_generator(run.storage.uri, storage="nowhere")
    for _ in range(20):  # tensors come in no fixed order
        again = find_generator(run.storage.uri, storage="nowhere")
        assert torch.equal(again.images([3]), first.images([3]))


def test_snapshots_judged_otherwise_are_not_compared(stripes, tmp_path, monkeypatch):
    run = Run.open("small", small_experiment(stripes, tmp_path), stripes)
    stop_after_rounds(monkeypatch, 9)  # judged once, at 128 images
    play(run, stripes)
    monkeypatch.undo()
    early = run.best()
    assert early is not None
    changed = small_experiment(stripes, tmp_path, evaluate__images=60)
    again = Run.open("small", changed, stripes)
    play(again, stripes)
    best = again.best()
    assert best is not None
    assert "score/fd_pixels_60" in best.card.scores


def test_the_best_snapshot_is_chosen_without_bias_where_all_were_judged_so(undisturbed):
    """The plug-in distance prefers the second, which collapsed: its bias is less."""
    (kept,) = {best.folder for best in undisturbed.snapshots()[-1:]}
    template = read_snapshot(undisturbed.storage, kept)

    def judged(nimg: int, fd: float, corrected: float | None) -> None:
        scores = {"score/fd_pixels_50": fd}
        if corrected is not None:
            scores["score/fd_corrected_pixels_50"] = corrected
        card = dataclasses.replace(template.card, nimg=nimg, scores=scores)
        write_snapshot(undisturbed.storage, f"snapshots/{nimg:012d}", card, template.module)

    def best_nimg() -> int:
        best = undisturbed.best()
        assert best is not None
        return best.card.nimg

    for old in undisturbed.snapshots():
        undisturbed.storage.delete(f"{old.folder}/snapshot.json")
    judged(1000, fd=10.0, corrected=6.0)
    judged(2000, fd=9.5, corrected=9.0)
    assert best_nimg() == 1000
    judged(3000, fd=9.9, corrected=None)  # as runs did before: the plug-in is all they share
    assert best_nimg() == 2000


def test_of_two_commands_that_begin_one_run_the_first_one_makes_it(stripes, tmp_path, monkeypatch):
    """The second sees no run either; the first one publishes it before the second does."""
    mine = small_experiment(stripes, tmp_path, name="one")
    others = mine.replace("generator.lr", 1e-4)
    first: list[Run] = []

    def meanwhile() -> dict[str, Any]:
        monkeypatch.undo()
        first.append(Run.open("one", others, stripes))
        return {}

    monkeypatch.setattr("pipeline.run.code_and_packages", meanwhile)
    with pytest.raises(ConfigError, match=r"generator\.lr was 0\.0001"):
        Run.open("one", mine, stripes)
    assert Run.at(first[0].storage).experiment.flat()["generator.lr"] == 1e-4


def test_a_look_at_a_run_of_many_commands_reads_the_last_ones_files_alone(
    stripes, tmp_path, monkeypatch
):
    run = Run.open("often", small_experiment(stripes, tmp_path, name="often"), stripes)
    for number in range(1, 5):
        with take(run.storage, who="a command", note={"journalled": run.journalled_nimg}) as lease:
            play(run, stripes, until_nimg=32 * number, token=lease.token)
    seen = Run.at(run.storage)
    assert [line.nimg for line in seen.journal()] == [32, 64, 96, 128]
    read, names = seen.storage.read, []
    monkeypatch.setattr(Folder, "read", lambda self, name: (names.append(name), read(name))[1])
    assert [line.nimg for line in seen.journal()] == [32, 64, 96, 128]
    assert [Segment.of(name).token for name in names] == [4]


def test_another_versions_run_is_refused(stripes, tmp_path):
    run = Run.open("new", small_experiment(stripes, tmp_path, name="new"), stripes)
    run.storage.write(
        "run.json", run.storage.read("run.json").replace(b'"schema": 1', b'"schema": 9')
    )
    with pytest.raises(ConfigError, match=r"run\.json must have schema 1 to be read, got 9"):
        Run.at(run.storage)
