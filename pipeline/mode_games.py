"""Games on mixtures whose modes are known: two in the plane, and stacks of three digits."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gan.config import GameConfig, Sample
from gan.game import Batch, Game
from gan.loop import training
from gan.modes import Modes, grid, of_classes, of_points, ring
from gan.randomness import generator, latents
from gan.sampling import to_uint8
from gan.transfer import sent
from pipeline.extractors import shipped
from pipeline.kept_course import kept_in
from pipeline.sources.embedded import open_embedded
from pipeline.sources.source import Scratch
from pipeline.trained_extractor import load_classifier

Mixture = Literal["ring", "grid", "stacked"]
SIGMA = {"ring": 0.01, "grid": 0.05}
NUM_POINTS, NUM_STACKS = 2_500, 26_000
NUM_DIGITS = 10
NUM_SHOWN = 64
BLOCK = 500  # stacks that are drawn and classified at once
Heard = Callable[[int, int], None]  # images that D saw, of how many
Looked = Callable[[int, Modes], None]  # images that D saw, and what was found then


@dataclass(frozen=True, slots=True)
class Played:
    """A game's end: what G_ema was found to draw, at every look, and samples to look at."""

    seed: int
    course: tuple[tuple[int, Modes], ...]  # nimg and what was found there
    samples: Tensor  # points (n, 2) float, or images (NUM_SHOWN, 3, 32, 32) uint8

    @property
    def end(self) -> Modes:
        """At the end of the game."""
        return self.course[-1][1]


class PointMixture:
    """Equal Gaussians around known centres of the plane."""

    def __init__(self, name: Literal["ring", "grid"]):
        self.centres, self.sigma = (ring if name == "ring" else grid)(), SIGMA[name]
        self.sample, self.num_samples = Sample((2,)), NUM_POINTS

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Points (count, 2) of the mixture itself."""
        which = torch.randint(len(self.centres), (count,), generator=rng)
        return self.centres[which] + self.sigma * torch.randn(count, 2, generator=rng)

    def modes(self, samples: Tensor) -> Modes:
        """What samples (n, 2) show."""
        return of_points(samples, self.centres, sigma=self.sigma)

    def shown(self, samples: Tensor) -> Tensor:
        """What a picture is made of: all of them."""
        return samples


class StackMixture:
    """Three digits at random as the channels of one image: 1,000 modes (Metz et al. 2017).

    The digits are the embedded ones, and so is the classifier that names them: a net that saw
    8,000 of the 10,000 and is right on 99.35 % of the others.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.digits = embedded_digits()
        self.sample, self.num_samples = Sample((3, 32, 32)), NUM_STACKS
        self.device = torch.device(device)
        classifier = load_classifier(shipped("digits")).to(self.device)
        self.classifier = classifier.eval().requires_grad_(False)

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Stacks (count, 3, 32, 32), uint8."""
        which = torch.randint(len(self.digits), (count, 3), generator=rng)
        return self.digits[which]

    @torch.no_grad()
    def modes(self, samples: Tensor) -> Modes:
        """What stacks (n, 3, 32, 32), uint8, show."""
        classes, sure = [], []
        for block in samples.split(BLOCK):
            digits = block.to(self.device).reshape(-1, 1, 32, 32).float() / 127.5 - 1
            confidence, digit = self.classifier(digits).softmax(dim=1).max(dim=1)
            digit = digit.view(-1, 3)
            classes.append((digit[:, 0] * 100 + digit[:, 1] * 10 + digit[:, 2]).cpu())
            sure.append(confidence.view(-1, 3).min(dim=1).values.cpu())
        return of_classes(torch.cat(classes), torch.cat(sure), num_modes=NUM_DIGITS**3)

    def shown(self, samples: Tensor) -> Tensor:
        """What a picture is made of: the first of them."""
        return samples[:NUM_SHOWN]


def mixture(name: Mixture, device: torch.device | str = "cpu") -> PointMixture | StackMixture:
    """The mixture of that name, drawn on the CPU; stacks are named on `device`."""
    return StackMixture(device) if name == "stacked" else PointMixture(name)


def floor(name: Mixture, device: torch.device | str = "cpu") -> Modes:
    """What as many samples of the mixture itself show: no generator can be held to more."""
    source = mixture(name, device)
    return source.modes(source.draw(source.num_samples, generator(0, "modes/floor", 0)))


def play(
    name: Mixture,
    config: GameConfig,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    looks: int = 1,
    heard: Heard = lambda nimg, total: None,
    looked: Looked = lambda nimg, modes: None,
    keep: str | None = None,
) -> Played:
    """Plays one game on the mixture in this process, and looks at G_ema `looks` times, evenly, the
    last time at its end; `looked` is told each time. Real samples are drawn anew for every batch,
    on the CPU whatever the device.

    In `keep`, a folder or s3:// prefix, the game goes on where a killed process left it; what was
    looked at before is told again. Raises ConfigError where it holds another game, or another
    process of this machine plays this one.
    """
    source = mixture(name, device)
    game = Game(config, source.sample, seed=seed, device=device)
    keeping = kept_in(keep, name, config, seed=seed, looks=looks) if keep else nullcontext()
    with keeping as kept:
        total = config.turns.total_nimg
        every = -(-total // looks)
        tick = max(1, min(every, total // 100))
        course = [] if kept is None else kept.take_up(game)
        for look in course:
            looked(*look)
        samples = None
        batches = _batches(source, game)
        for moment in training(game, batches, until_nimg=total, tick_nimg=tick):
            heard(moment.nimg, total)
            samples = None
            if moment.nimg >= min(total, every * (len(course) + 1)):
                samples = _forged(game, source.num_samples)
                course.append((moment.nimg, source.modes(samples)))
                looked(*course[-1])
            if kept is not None:
                kept.put(game, course, now=moment.nimg >= total)
        if samples is None:  # it had been played to its end before
            samples = _forged(game, source.num_samples)
        return Played(seed, tuple(course), source.shown(samples))


def _batches(source: PointMixture | StackMixture, game: Game) -> Iterator[Batch]:
    """Reals for where `game` stands, on its device."""
    for number in itertools.count(game.num_batches):
        drawn = source.draw(
            game.config.turns.batch_size, generator(game.seed, "modes/real", number)
        )
        yield Batch(sent(drawn, game.device))


@torch.no_grad()
def _forged(game: Game, count: int) -> Tensor:
    """Samples of G_ema on the CPU as the mixture has them: points as they are, images as bytes."""
    latent_dim = game.config.generator.latent_dim
    z = latents(0, "modes/forged", 0, batch_size=count, latent_dim=latent_dim).to(game.dtype)
    blocks = z.to(game.device).split(BLOCK)
    drawn = torch.cat([game.G_ema(block, None).cpu() for block in blocks])
    return to_uint8(drawn) if drawn.ndim == 4 else drawn


def embedded_digits() -> Tensor:
    """The 10,000 embedded digits, uint8 (n, 32, 32), padded as `forger prepare` pads them."""
    with tempfile.TemporaryDirectory() as folder:
        source = open_embedded("digits", Scratch(Path(folder)))
        images = np.stack([source.load(number) for number in range(len(source))])
    side = images.shape[1]
    margin = (32 - side) // 2
    return torch.nn.functional.pad(torch.from_numpy(images).view(-1, side, side), [margin] * 4)
