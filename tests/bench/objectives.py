"""Objectives on the digits at one budget of images: Fréchet distance over seeds, and CPU seconds.

`python -m tests.bench.objectives [KIMG] [SEEDS]` plays every objective with what usually goes with
it, at two learning rates, and prints the better one: a rate that suits one loss does not suit all.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from statistics import mean, stdev
from typing import Any

import torch

from gan.config import (
    ConditioningConfig,
    DiscriminatorConfig,
    EmaConfig,
    GameConfig,
    GeneratorConfig,
    ObjectiveConfig,
    Sample,
    TurnsConfig,
)
from gan.game import Batch, Game
from gan.loop import training
from gan.moments import FeatureMoments
from gan.randomness import generator, latents
from gan.sampling import to_uint8
from gan.tally import RealSide, Tally
from pipeline.extractors import load_extractor
from pipeline.mode_games import embedded_digits

RATES = (5e-4, 2e-3)
IMAGES, BLOCK = 5000, 100
SHAPE = (1, 32, 32)
FAILED = 100.0  # a distance that no digit-like images have: noise is above 300, one digit 150


@dataclass(frozen=True, slots=True)
class Rules:
    """An objective with its companions, as they are usually met."""

    objective: ObjectiveConfig
    of_d: dict[str, Any]
    d_steps: int = 1


BARE: dict[str, Any] = {"r1_gamma": 0.0, "r2_gamma": 0.0}
RULES = {
    "relativistic, R1 + R2 (the default)": Rules(ObjectiveConfig(penalty_interval=4), {}),
    "relativistic average, R1 + R2": Rules(
        ObjectiveConfig(name="relativistic-average", penalty_interval=4), {}
    ),
    "non-saturating, R1": Rules(
        ObjectiveConfig(name="nonsaturating", r2_gamma=0.0, penalty_interval=4), {}
    ),
    "non-saturating": Rules(ObjectiveConfig(name="nonsaturating", **BARE), {}),
    "minimax (saturating)": Rules(ObjectiveConfig(name="minimax", **BARE), {}),
    "least squares": Rules(ObjectiveConfig(name="least-squares", **BARE), {}),
    "hinge, spectral norms": Rules(
        ObjectiveConfig(name="hinge", **BARE), {"norm": "spectral"}
    ),
    "Wasserstein, GP, 5 turns of D": Rules(
        ObjectiveConfig(name="wasserstein", gp_lambda=10.0, **BARE), {}, d_steps=5
    ),
}  # fmt: skip


@cache
def real_side() -> RealSide:
    """All 10,000 digits on the digits' own extractor."""
    moments = FeatureMoments.zeros(64)
    for block in embedded_digits().split(BLOCK):
        moments.add(extractor()(block[:, None]))
    return RealSide.of(moments)


@cache
def extractor():
    """The classifier of these digits; its distances compare with its own only."""
    return load_extractor("digits", SHAPE)


def played(name: str, lr: float, seed: int, kimg: float) -> tuple[float, float]:
    """Fréchet distance of 5,000 samples of G_ema (plug-in), and seconds of one thread's CPU."""
    torch.set_num_threads(1)
    rules = RULES[name]
    config = GameConfig(
        generator=GeneratorConfig(width=16, lr=lr),
        discriminator=DiscriminatorConfig(width=16, lr=lr, **rules.of_d),
        objective=rules.objective,
        conditioning=ConditioningConfig(name="none"),
        turns=TurnsConfig(batch_size=64, total_kimg=kimg, d_steps=rules.d_steps),
        ema=EmaConfig(half_life_kimg=2.0),
    )
    game, digits = Game(config, Sample(SHAPE), seed=seed), embedded_digits()

    def batches():
        number = 0
        while True:
            rng = generator(seed, "bench/order", number)
            yield Batch(digits[torch.randint(len(digits), (64,), generator=rng)][:, None])
            number += 1

    started = time.process_time()  # one thread: other work on the machine costs no seconds here
    total = config.turns.total_nimg
    for _ in training(game, batches(), until_nimg=total, tick_nimg=total):
        pass
    seconds = time.process_time() - started
    tally = Tally(64, num_images=IMAGES)
    z = latents(0, "bench/evaluate", 0, batch_size=IMAGES, latent_dim=64)
    with torch.no_grad():
        for first in range(0, IMAGES, BLOCK):
            images = game.G_ema(z[first : first + BLOCK], None)
            if not images.isfinite().all():
                return float("inf"), seconds
            tally.add(extractor()(to_uint8(images)), first=first)
    return tally.measures(real_side(), game.world)["fd"], seconds


def main(kimg: float, seeds: int) -> None:
    """Prints a Markdown table."""
    print(f"fd_digits_5k (plug-in) after {kimg:g} kimg, {seeds} seeds, better of lr {RATES}\n")
    print("| objective | lr | fd, mean ± standard deviation | of each seed | failed | CPU s |")
    print("|---|---|---|---|---|---|")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = {
            (name, lr): [pool.submit(played, name, lr, seed, kimg) for seed in range(seeds)]
            for name in RULES
            for lr in RATES
        }
        for name in RULES:
            found = {lr: [job.result() for job in jobs[name, lr]] for lr in RATES}
            lr = min(RATES, key=lambda rate: mean(fd for fd, _ in found[rate]))
            distances, seconds = zip(*found[lr], strict=True)
            failed = sum(distance > FAILED for distance in distances)
            shown = ", ".join(f"{distance:.1f}" for distance in distances)
            spread = f"{mean(distances):.1f} ± {stdev(distances):.1f}" if seeds > 1 else shown
            print(
                f"| {name} | {lr:g} | {spread} | {shown} | {failed} of {seeds} "
                f"| {mean(seconds):.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    given = [float(word) for word in sys.argv[1:]]
    main(given[0] if given else 30.0, int(given[1]) if len(given) > 1 else 3)
