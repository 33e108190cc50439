"""What rank 0 hears, all ranks do before the same round."""

from __future__ import annotations

import pytest

from gan.world import World
from pipeline.signals import Signals, Wish
from tests.ranks import run_ranks


class Script:
    """A listener that hears what is written down, round by round."""

    def __init__(self, wishes: list[Wish]):
        self.wishes, self.saves = list(wishes), 0

    @property
    def wish(self) -> Wish:
        return self.wishes.pop(0) if self.wishes else Wish.NOTHING

    def saved(self) -> None:
        self.saves += 1


def heard(wishes: list[int], rounds: int) -> list[int]:
    world = World.current()
    listener = Script([Wish(w) for w in wishes]) if world.is_first else None
    signals = Signals(world, listener)  # pyright: ignore[reportArgumentType]
    found = []
    for _ in range(rounds):
        found.append(int(signals.before_round()))
        if found[-1] == Wish.STOP:
            break
    signals.close()
    return found


def test_alone_a_wish_is_heard_at_once():
    assert heard([0, 1, 0, 2], 10) == [0, 1, 0, 2]


@pytest.mark.slow
def test_all_ranks_act_before_the_same_round_one_after_it_was_heard():
    first, second, third = run_ranks(heard, 3, [0, 1, 0, 2], 10)
    assert first == second == third == [0, 0, 1, 0, 0, 2]
