"""The loops that are compared: the textbook's, and ours without anything around it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from gan.config import (
    DiscriminatorConfig,
    GameConfig,
    GeneratorConfig,
    Network,
    ObjectiveConfig,
    Precision,
    Sample,
    TurnsConfig,
)
from gan.game import Batch, Game
from gan.loop import play_round
from gan.networks import build_discriminator, build_generator
from gan.world import World

SHAPE = (1, 32, 32)


def digits_game(
    *,
    network: Network = "dcgan",
    width: int = 16,
    batch_size: int = 64,
    plain: bool = False,
    precision: Precision = "float32",
    compiled: bool = False,
    reuse_fakes: bool = False,
) -> GameConfig:
    """The digits recipe; `plain` is the classic game: non-saturating and without penalties."""
    objective = (
        ObjectiveConfig(name="nonsaturating", r1_gamma=0, r2_gamma=0)
        if plain
        else ObjectiveConfig(penalty_interval=4)
    )
    return GameConfig(
        generator=GeneratorConfig(network=network, width=width, lr=1e-3),
        discriminator=DiscriminatorConfig(network=network, width=width, lr=1e-3),
        objective=objective,
        turns=TurnsConfig(
            batch_size=batch_size,
            precision=precision,
            compile=compiled,
            reuse_fakes=reuse_fakes,
        ),
    )


def synthetic(config: GameConfig, world: World) -> Iterator[Batch]:
    """Batches that lie in memory: eight of noise, again and again."""
    share = world.share(config.turns.batch_size)
    count = share.stop - share.start
    kept = [Batch(torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8)) for _ in range(8)]
    return itertools.cycle(kept)


def bare_rounds(config: GameConfig) -> Callable[[int], None]:
    """Our two players on synthetic batches: plays the given number of rounds."""
    game = Game(config, Sample(SHAPE), seed=0)
    batches = synthetic(config, game.world)

    def rounds(count: int) -> None:
        for _ in range(count):
            play_round(game, batches)

    return rounds


def textbook_rounds(config: GameConfig) -> Callable[[int], None]:
    """The DCGAN tutorials' loop: one G forward reused, `.item()` in each step; our networks."""
    how = {"conditioning": "none", "sample": Sample(SHAPE), "seed": 0}
    G, D = (
        build_generator(config.generator, **how),
        build_discriminator(config.discriminator, **how),
    )
    for parameter in [*G.parameters(), *D.parameters()]:
        parameter.data = parameter.data.contiguous()  # the tutorials leave the layout alone
    G_optimizer = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.0, 0.99))
    D_optimizer = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.0, 0.99))
    size = config.turns.batch_size
    batches = synthetic(config, World())
    ones, zeros = torch.ones(size), torch.zeros(size)

    def rounds(count: int) -> None:
        for _ in range(count):
            real = next(batches).samples.float() / 127.5 - 1
            D.zero_grad()
            real_loss = binary_cross_entropy_with_logits(D(real, None), ones)
            real_loss.backward()
            fake = G(torch.randn(size, config.generator.latent_dim), None)
            fake_loss = binary_cross_entropy_with_logits(D(fake.detach(), None), zeros)
            fake_loss.backward()
            D_optimizer.step()
            G.zero_grad()
            g_loss = binary_cross_entropy_with_logits(D(fake, None), ones)
            g_loss.backward()
            G_optimizer.step()
            _ = (real_loss + fake_loss).item(), g_loss.item()

    return rounds


def seconds(rounds: Callable[[int], None], count: int) -> float:
    """Wall time of `count` rounds."""
    started = time.perf_counter()
    rounds(count)
    return time.perf_counter() - started


def compare(
    ours: Callable[[int], None], theirs: Callable[[int], None], *, pairs: int = 15, count: int = 15
) -> tuple[float, float, float]:
    """How many times faster ours is: median over pairs taken in turns, and the quartiles."""
    for warm_up in (ours, theirs):
        warm_up(5)
    ratios = sorted(seconds(theirs, count) / seconds(ours, count) for _ in range(pairs))
    return median(ratios), ratios[pairs // 4], ratios[-1 - pairs // 4]


def images_per_second(batch_size: int, width: int = 16) -> list[float]:
    """Of the bare loop on this rank's process group, five times."""
    config = digits_game(batch_size=batch_size, width=width)
    rounds = bare_rounds(config)
    rounds(8)
    count = max(8, 40 * 64 // batch_size)
    return [count * batch_size / seconds(rounds, count) for _ in range(5)]
