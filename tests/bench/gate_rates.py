"""How often the gate's Frechet check promotes: equals, a collapsed equal, and a better generator.

Features are simulated, so that the true distance of each generator is known: real ones have mean 0
and covariance 1, a generator's are scaled or shifted. A generator scaled by s is at distance
d (1 - s)^2, one shifted by m at |m|^2. Laws: normal; Student t with 6 degrees of freedom scaled to
the same moments, each feature for itself ("t6"), or whole images at once ("radial t6").
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.checks import frechet_check
from pipeline.evidence import FrechetEvidence, FrechetReference

ALPHA = 0.05
SHRUNK, INFLATED = 0.6, 1.4  # both at distance 0.16 d
PRIVATE = 0.1  # share of the variance that two generators at one latent do not have in common
DEGREES = 6

Law = Literal["normal", "t6", "radial t6"]
Play = Literal["equals", "trap", "better"]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    play: Play  # trap: an inflated champion, a collapsing challenger; better: 5 % nearer
    law: Law
    dim: int
    images_per_dim: int
    common: bool  # latents

    @property
    def images(self) -> int:
        """Images of each side."""
        return self.dim * self.images_per_dim


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares of repetitions that promote."""

    corrected: float
    plug_in: float
    repetitions: int


def rates(case: Case, repetitions: int, *, seed: int = 0) -> Rates:
    """Plays a case so many times, each with images of its own; one thread."""
    torch.set_num_threads(1)
    corrected = plug_in = 0
    for repetition in range(repetitions):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + repetition)
        champion, challenger, real = samples(case, rng)
        reference = FrechetReference.of(real)
        first, second = (FrechetEvidence.of(x, reference) for x in (champion, challenger))
        check = frechet_check(first, second, alpha=ALPHA, resolution=0.0, paired=case.common)
        corrected += check.passed is True
        plug_in += second.influence.value < first.influence.value
    return Rates(corrected / repetitions, plug_in / repetitions, repetitions)


def samples(case: Case, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Features of champion, challenger and reals."""
    z, own, real = (standard(case, rng) for _ in range(3))
    other = own
    if case.common:
        other = (1 - PRIVATE) ** 0.5 * z + PRIVATE**0.5 * own
    if case.play == "equals":
        return SHRUNK * z, SHRUNK * other, real
    if case.play == "trap":
        return INFLATED * z, SHRUNK * other, real
    return z + (0.16 * 1.05) ** 0.5, other + 0.16**0.5, real


def standard(case: Case, rng: torch.Generator) -> Tensor:
    """Features of mean 0 and covariance 1."""
    shape = (case.images, case.dim)
    x = torch.randn(shape, generator=rng, dtype=torch.float64)
    if case.law == "normal":
        return x
    chi_squared = torch.zeros(shape if case.law == "t6" else (case.images, 1))
    for _ in range(DEGREES):
        normals = torch.randn(chi_squared.shape, generator=rng, dtype=torch.float64)
        chi_squared = chi_squared + normals.square()
    return x * ((DEGREES - 2) / chi_squared).sqrt()


def cases() -> list[Case]:
    """The rows of the table: what the gate promises, then where it is strained."""
    laws: tuple[Law, ...] = ("normal", "t6")
    sizes = [(dim, per_dim) for per_dim in (5, 20) for dim in (64, 128)]
    return [
        *(Case("better", "normal", 64, 32, common) for common in (False, True)),
        *(
            Case("equals", law, *size, common)
            for size in sizes
            for law in laws
            for common in (False, True)
        ),
        *(Case("trap", law, *size, False) for size in sizes for law in laws),
        *(Case("equals", "radial t6", 64, per_dim, False) for per_dim in (5, 10, 20, 40)),
    ]


def main() -> None:
    """Prints every case as a row of a markdown table, with the plug-in comparison beside.

    1000 repetitions know a rate of 5 % to 0.7 points, the 500 of 128 features to a point.
    """
    print("| case | law | d | N | latents | repetitions | gate | plug-in | CPU seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases():
        repetitions = 1000 if case.dim <= 64 else 500
        start = time.process_time()
        found = rates(case, repetitions)
        latents = "common" if case.common else "fresh"
        print(
            f"| {case.play} | {case.law} | {case.dim} | {case.images} | {latents} | {repetitions} "
            f"| {found.corrected:.1%} | {found.plug_in:.1%} | {time.process_time() - start:.0f} |",
            flush=True,
        )
