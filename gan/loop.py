"""training(): plays the game round by round and yields a Tick every so many images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gan.game import Batch, Game


@dataclass(frozen=True, slots=True)
class Tick:
    """A report of the game: means over the images since the last one."""

    nimg: int
    # This process's time of play since the last tick; what the host does between ticks is not in
    # it, nor what was played before a resume.
    seconds: float
    scalars: dict[str, float] = field(default_factory=dict)


def play_round(game: Game, batches: Iterator[Batch]) -> None:
    """`d_steps` turns of D, then `g_steps` turns of G. Every rank must call this.

    What changes in steps keeps the value that it has at the start of the round.
    """
    game.begin_round()
    for _ in range(game.d_steps):
        game.d_turn(next(batches))
    for _ in range(game.config.turns.g_steps):
        game.g_turn(next(batches) if game.config.reals_in_g_turn else None)


def training(
    game: Game,
    batches: Iterator[Batch],
    *,
    until_nimg: int,
    tick_nimg: int,
    pause: Callable[[Game], bool] | None = None,
) -> Iterator[Tick]:
    """Plays until D has seen `until_nimg` images, and yields at every multiple of `tick_nimg`
    passed.

    The host acts between ticks: logs, saves, stops. `pause` is asked before each round, and may
    save too; where it says True, the game ends there without a tick, and what it has to report of
    the rounds since the last one stays in its state. Where the ticks fall and what they report
    depends on nimg alone, so a game resumed from any round ticks as the undisturbed one would
    have. `batches` must stand at `game.num_batches`. Every rank must run this, take every tick and
    give the same answer to `pause`.
    """
    while game.nimg < until_nimg:
        started, first_nimg = time.perf_counter(), game.nimg
        due = min((first_nimg // tick_nimg + 1) * tick_nimg, until_nimg)
        while game.nimg < due:
            if pause is not None and pause(game):
                return
            play_round(game, batches)
        scalars = game.means.take(game.world)
        seconds = time.perf_counter() - started
        scalars["speed/img_per_sec"] = (game.nimg - first_nimg) / seconds
        yield Tick(game.nimg, seconds, scalars)
