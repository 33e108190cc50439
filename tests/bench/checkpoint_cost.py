"""What a checkpoint costs the game: `python -m tests.bench.checkpoint_cost` plays the same rounds
with and without a checkpoint at their start, in pairs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from statistics import median

import torch

from gan.config import DiscriminatorConfig, GameConfig, GeneratorConfig, Sample, TurnsConfig
from gan.game import Batch, Game
from gan.loop import play_round
from pipeline.checkpoint import CheckpointWriter, Standing
from pipeline.storage import open_storage
from tests.bench.rounds import SHAPE, digits_game

EVERY_SEC = (30, 60)  # the issue's own, and the default
PAIRS, SEGMENT_SEC = 15, 4.0
MIB = 2**20
WIDE = GameConfig(  # 100 MB of state, most of it in matrices, so that a round stays short
    generator=GeneratorConfig(width=142, lr=1e-4),
    discriminator=DiscriminatorConfig(width=142, lr=1e-4),
    turns=TurnsConfig(batch_size=8),
)


def costs(config: GameConfig) -> tuple[float, float, list[float], float]:
    """MiB of state, median seconds that the copy holds the game up, seconds that each checkpoint
    costs in all (sorted, over pairs), seconds until it stands.
    """
    game = Game(config, Sample(SHAPE), seed=0)
    size = config.turns.batch_size
    batch = Batch(torch.randint(0, 256, (size, *SHAPE), dtype=torch.uint8))

    def rounds(count: int) -> None:
        for _ in range(count):
            play_round(game, iter([batch, batch]))

    rounds(3)
    started = time.perf_counter()
    rounds(5)
    count = max(2, round(SEGMENT_SEC / ((time.perf_counter() - started) / 5)))
    state = game.state_dict()
    mib = sum(value.numel() * value.element_size() for value in state.values()) / MIB
    stalls: list[float] = []
    standing: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(open_storage(folder), keep=2)

        def with_one() -> float:
            begun = time.perf_counter()
            writer.publish(Standing(nimg=game.nimg), game.state_dict())
            stalls.append(time.perf_counter() - begun)
            rounds(count)
            played = time.perf_counter() - begun
            writer.wait()  # what is left of it would lengthen the next rounds: count it here
            standing.append(time.perf_counter() - begun)
            return max(played, standing[-1])

        def without() -> float:
            begun = time.perf_counter()
            rounds(count)
            return time.perf_counter() - begun

        differences = [_pair(with_one, without, swap=number % 2 == 1) for number in range(PAIRS)]
    return mib, median(stalls), sorted(differences), median(standing)


def _pair(one: Callable[[], float], other: Callable[[], float], *, swap: bool) -> float:
    if swap:
        second = other()
        return one() - second
    return one() - other()


def checkpoints() -> None:
    """One line a size."""
    torch.set_num_threads(1)
    for name, config in (("the demo", digits_game()), ("100 MB", WIDE)):
        mib, stall, differences, _ = costs(config)
        middle, low, high = (
            median(differences), differences[PAIRS // 4], differences[-1 - PAIRS // 4],
        )  # fmt: skip
        shares = ", ".join(
            f"{100 * middle / every:.2f} % ({100 * low / every:.2f} to {100 * high / every:.2f}) "
            f"every {every} s"
            for every in EVERY_SEC
        )
        print(
            f"{name}: {mib:.1f} MiB of state; the copy holds the game up {1000 * stall:.0f} ms; "
            f"a checkpoint costs {1000 * middle:.0f} ms in all: {shares}",
            flush=True,
        )


if __name__ == "__main__":
    checkpoints()
