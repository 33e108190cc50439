"""Games on handwritten digits of 8 px that are played and judged in seconds, well or badly."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gan.config import (
    DiscriminatorConfig,
    EmaConfig,
    GameConfig,
    GeneratorConfig,
    ObjectiveConfig,
    Sample,
    Steps,
    TurnsConfig,
)
from gan.game import Batch, Game
from gan.loop import training
from gan.moments import FeatureMoments
from gan.randomness import generator, latents
from gan.tally import RealSide, Tally

ARCHIVE = Path(__file__).parents[2] / "pipeline" / "embedded" / "t10k-images-idx3-ubyte.gz"
SHAPE = (1, 8, 8)
JUDGED_IMAGES = 500
Line = tuple[int, dict[str, float]]


@functools.cache
def digits(count: int = 10_000) -> Tensor:
    """The first `count` embedded digits, uint8, each pixel the mean of 4 x 4."""
    pixels = np.frombuffer(gzip.decompress(ARCHIVE.read_bytes()), np.uint8, offset=16)
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).copy()).float()
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    return torch.nn.functional.avg_pool2d(padded, 4).round().to(torch.uint8)[:count]


def digits_game(
    *,
    objective: ObjectiveConfig | None = None,
    total_kimg: float = 4,
    g_lr: float | Steps = 2e-3,
    d_lr: float | Steps = 2e-3,
    g_width: int = 64,
    d_width: int = 64,
) -> GameConfig:
    """A game of small mlps."""
    return GameConfig(
        generator=GeneratorConfig(network="mlp", width=g_width, latent_dim=16, lr=g_lr),
        discriminator=DiscriminatorConfig(network="mlp", width=d_width, lr=d_lr),
        objective=objective or ObjectiveConfig(),
        turns=TurnsConfig(batch_size=32, total_kimg=total_kimg),
        ema=EmaConfig(half_life_kimg=0.5),
    )


def stream(data: Tensor, *, batch_size: int, seed: int, first: int = 0) -> Iterator[Batch]:
    """Batches of images drawn at random, each batch by its number."""
    while True:
        rng = generator(seed, "order", first)
        yield Batch(data[torch.randint(len(data), (batch_size,), generator=rng)])
        first += 1


class SmallJudge:
    """Judges a generator by its pixels, as `pipeline.judge` does, on few images."""

    def __init__(self, data: Tensor):
        moments = FeatureMoments.zeros(64)
        moments.add(self._features(data.float() / 127.5 - 1))
        self.real = RealSide.of(moments)

    def __call__(self, game: Game) -> dict[str, float]:
        z = latents(0, "evaluate", 0, batch_size=JUDGED_IMAGES, latent_dim=16)
        with torch.no_grad():
            features = self._features(game.G_ema(z, None))
        tally = Tally(64, num_images=JUDGED_IMAGES)
        tally.add(features, first=0)
        return {
            f"score/{name}_pixels_500": value
            for name, value in tally.measures(self.real, game.world).items()
        }

    @staticmethod
    def _features(images: Tensor) -> Tensor:
        return images.flatten(1)


@functools.cache
def judge_of(num_images: int) -> SmallJudge:
    """The judge that holds generators against the first digits."""
    return SmallJudge(digits(num_images))


def journal(
    config: GameConfig,
    *,
    seed: int = 0,
    num_images: int = 10_000,
    tick_nimg: int = 160,
    judged_ticks: int = 8,
    after=None,
) -> Iterator[Line]:
    """A game's ticks, every `judged_ticks`-th judged, as a run's journal would hold them.

    `after(game)` may break the game once a tick is over.
    """
    data, judge = digits(num_images), judge_of(num_images)
    game = Game(config, Sample(SHAPE), seed=seed)
    batches = stream(data, batch_size=config.turns.batch_size, seed=seed)
    total = config.turns.total_nimg
    ticks = training(game, batches, until_nimg=total, tick_nimg=tick_nimg)
    for number, tick in enumerate(ticks, 1):
        metrics = dict(tick.scalars)
        if number % judged_ticks == 0 or tick.nimg >= total:
            try:
                metrics |= judge(game)
            except ValueError:  # features that are not finite: the run stops there
                yield tick.nimg, metrics
                return
        yield tick.nimg, metrics
        if after is not None:
            after(game)
