"""Checkpoints: whole or not there, and the one before where the newest is damaged."""

from __future__ import annotations

import pytest
import torch

from gan.config import ConfigError
from pipeline.checkpoint import (
    CheckpointWriter,
    Standing,
    all_nimg,
    checkpoint_at,
    clear_up,
    latest_checkpoint,
    newest_nimg,
    retained,
)
from pipeline.folder import Folder
from pipeline.storage import StorageError
from tests.conftest import small_game
from tests.gan.play import new_game, play_rounds


def publish(storage: Folder, *nimgs: int, keep: int = 2) -> None:
    writer = CheckpointWriter(storage, keep=keep)
    for nimg in nimgs:
        state = {"weight": torch.full((3,), float(nimg)), "turns": torch.tensor(nimg)}
        writer.publish(Standing(nimg=nimg), state)
    writer.wait()


def test_the_newest_is_read_back_and_old_ones_go(tmp_path):
    storage = Folder(tmp_path)
    assert latest_checkpoint(storage) is None
    assert newest_nimg(storage) == 0
    publish(storage, 10, 20, 30)
    found = latest_checkpoint(storage)
    assert found is not None
    assert found.nimg == newest_nimg(storage) == 30
    assert found.state["weight"].tolist() == [30, 30, 30]
    assert {name.split("/")[1] for name in storage.names()} == {"000000000020", "000000000030"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
    ],
    ids=["cut", "flipped", "deleted", "empty"],
)
@pytest.mark.parametrize("file", ["game-*.safetensors", "checkpoint.json"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, file, damage):
    storage = Folder(tmp_path)
    publish(storage, 10, 20)
    damage(next(storage.path("checkpoints/000000000020").glob(file)))
    found = latest_checkpoint(storage)
    assert found is not None
    assert found.nimg == 10
    if storage.exists("checkpoints/000000000020/checkpoint.json"):
        assert "000000000020" in caplog.text
        goes_on, (said,) = clear_up(storage, abandoned=lambda standing: False)
        assert goes_on is not None
        assert goes_on.nimg == 10
        assert "20 images is damaged" in said
    clear_up(storage, abandoned=lambda standing: False)
    assert {name.split("/")[1] for name in storage.names("checkpoints")} == {"000000000010"}


class Garbling(Folder):
    """Storage whose reads of tensors come wrong, the first `times` of them."""

    def __init__(self, root, times: int):
        super().__init__(root)
        self.times = times

    def read(self, name: str) -> bytes:
        data = super().read(name)
        if name.endswith(".safetensors") and self.times > 0:
            self.times -= 1
            return data[:-1] + bytes([data[-1] ^ 1])
        return data


def test_where_none_of_several_can_be_read_nothing_is_removed(tmp_path):
    publish(Folder(tmp_path), 10, 20)
    before = Folder(tmp_path).names()
    with pytest.raises(ConfigError, match=r"none of the 2 in .* nothing was removed"):
        clear_up(Garbling(tmp_path, times=99), abandoned=lambda standing: False)
    assert Folder(tmp_path).names() == before
    goes_on, said = clear_up(Garbling(tmp_path, times=1), abandoned=lambda standing: False)
    assert goes_on is not None
    assert (goes_on.nimg, said) == (20, [])


def test_a_first_checkpoint_that_is_damaged_means_to_begin_anew(tmp_path):
    publish(Folder(tmp_path), 10)
    goes_on, (said,) = clear_up(Garbling(tmp_path, times=99), abandoned=lambda standing: False)
    assert goes_on is None
    assert "10 images is damaged" in said
    assert Folder(tmp_path).names() == []


def test_another_versions_checkpoint_is_left_alone(tmp_path):
    storage = Folder(tmp_path)
    publish(storage, 10, 20)
    name = "checkpoints/000000000020/checkpoint.json"
    storage.write(name, storage.read(name).replace(b'"schema": 2', b'"schema": 3'))
    before = storage.names()
    for look in (clear_up, latest_checkpoint):
        with pytest.raises(ConfigError, match=r"000000000020 must have schema 2 .* got 3"):
            look(storage, abandoned=lambda standing: False)
    assert storage.names() == before


def test_what_a_fenced_off_writer_left_takes_no_place_of_one_that_counts(tmp_path):
    storage = Folder(tmp_path)
    publish(storage, 10, 99, keep=2)
    writer = CheckpointWriter(storage, keep=1, abandoned=lambda: lambda found: found.nimg == 99)
    writer.publish(Standing(nimg=20, anchor=False), {"weight": torch.ones(1)})
    writer.wait()
    assert all_nimg(storage) == [10, 20]


def test_a_checkpoint_is_a_copy_of_the_moment(tmp_path):
    storage = Folder(tmp_path)
    weight = torch.ones(3)
    writer = CheckpointWriter(storage, keep=1)
    writer.publish(Standing(nimg=1), {"weight": weight})
    weight.zero_()
    writer.wait()
    found = latest_checkpoint(storage)
    assert found is not None
    assert found.state["weight"].tolist() == [1, 1, 1]


def test_a_game_goes_through_files_bit_for_bit(tmp_path):
    game = play_rounds(new_game(small_game()), 3)
    writer = CheckpointWriter(Folder(tmp_path), keep=1)
    writer.publish(Standing(nimg=game.nimg), game.state_dict())
    writer.wait()
    found = latest_checkpoint(Folder(tmp_path))
    assert found is not None
    resumed = new_game(small_game())
    resumed.load_state_dict(found.state)
    play_rounds(game, 3)
    play_rounds(resumed, 3)
    a, b = game.state_dict(), resumed.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_failed_write_is_raised_at_the_next_chance(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    writer = CheckpointWriter(Folder(tmp_path), keep=1)
    writer.publish(Standing(nimg=1), {"weight": torch.ones(1)})
    with pytest.raises(StorageError, match="checkpoints"):
        writer.wait()


def test_the_newest_the_newest_anchor_and_the_best_anchor_stay():
    def at(nimg: int, *, anchor: bool, score: float | None = None) -> Standing:
        return Standing(nimg=nimg, anchor=anchor, score=score)

    here = [
        at(10, anchor=True, score=3.0),
        at(20, anchor=True, score=2.0),
        at(30, anchor=True, score=2.0),
        at(40, anchor=True),
        at(50, anchor=False),
        at(60, anchor=False),
        at(70, anchor=False),
    ]
    assert retained(here, keep=2) == {20, 40, 60, 70}
    assert retained(here[:1], keep=1) == {10}
    assert retained([], keep=1) == set()


def test_a_write_that_was_killed_leaves_no_checkpoint_and_is_cleared_up(tmp_path):
    storage = Folder(tmp_path)
    publish(storage, 10)
    storage.write("checkpoints/000000000020/game-0123.safetensors", b"half of it")
    assert newest_nimg(storage) == 10
    assert clear_up(storage, abandoned=lambda standing: False)[1] == []
    assert {name.split("/")[1] for name in storage.names()} == {"000000000010"}


def test_checkpoints_of_a_game_that_was_given_up_are_cleared_up(tmp_path):
    storage = Folder(tmp_path)
    publish(storage, 10, 20)
    goes_on, said = clear_up(storage, abandoned=lambda standing: standing.nimg > 15)
    assert goes_on is not None
    assert (goes_on.nimg, said) == (10, [])
    assert all_nimg(storage) == [10]


def test_tensors_that_another_writer_wrote_at_the_same_place_are_not_mixed(tmp_path):
    """Two writers at one nimg: whose record came last counts, with that writer's own tensors."""
    storage = Folder(tmp_path)
    for value in (1.0, 2.0):
        writer = CheckpointWriter(storage, keep=1)
        writer.publish(Standing(nimg=5), {"weight": torch.full((2,), value)})
        writer.wait()
    found = latest_checkpoint(storage)
    assert found is not None
    assert found.state["weight"].tolist() == [2.0, 2.0]
    publish(storage, 6, keep=1)
    assert all(name.startswith("checkpoints/000000000006/") for name in storage.names())


@pytest.mark.parametrize("late_nimg", [20, 30])
def test_a_late_writer_takes_no_tensors_whose_record_is_still_to_come(tmp_path, late_nimg):
    """An attempt that was given up may still be publishing as the next one is."""
    storage = Folder(tmp_path)

    def fence() -> None:  # the next attempt's tensors stand, its record does not
        publish(storage, late_nimg, keep=1)

    writer = CheckpointWriter(storage, keep=2, fence=fence)
    writer.publish(Standing(nimg=20), {"weight": torch.full((2,), 7.0)})
    writer.wait()
    assert checkpoint_at(storage, 20).state["weight"].tolist() == [7.0, 7.0]


def test_a_writer_that_was_fenced_off_publishes_no_checkpoint(tmp_path):
    def fence() -> None:
        raise RuntimeError("fenced off")

    writer = CheckpointWriter(Folder(tmp_path), keep=1, fence=fence)
    writer.publish(Standing(nimg=1), {"weight": torch.ones(1)})
    with pytest.raises(RuntimeError, match="fenced off"):
        writer.wait()
    assert latest_checkpoint(Folder(tmp_path)) is None
