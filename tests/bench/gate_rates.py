"""How often the gate's Frechet check promotes: equals, a collapsed equal, and a better generator.

Features are simulated, so that the true distance of each generator is known: real ones are
standard (normal, or Student t with 6 degrees of freedom scaled to the same moments), a generator's
are scaled or shifted. A generator scaled by s is at distance d (1 - s)^2, one shifted by |m|^2.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pipeline.checks import frechet_check
from pipeline.evidence import FrechetEvidence, FrechetReference

ALPHA = 0.05
SHRUNK, INFLATED = 0.6, 1.4  # both at distance 0.16 d
PRIVATE = 0.1  # share of the variance that two generators at one latent do not have in common
DEGREES = 6

Law = Literal["normal", "t6"]
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
    """Features of mean 0 and covariance 1; under t6 whole images lie far out."""
    x = torch.randn(case.images, case.dim, generator=rng, dtype=torch.float64)
    if case.law == "normal":
        return x
    normals = torch.randn(case.images, DEGREES, generator=rng, dtype=torch.float64)
    chi_squared = normals.square().sum(1, keepdim=True)
    return x * ((DEGREES - 2) / chi_squared).sqrt()


def table(repetitions: int) -> None:
    """Prints every case as a row of a markdown table, with the plug-in comparison beside."""
    print("| case | law | d | N | latents | repetitions | gate | plug-in | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    plays: tuple[Play, ...] = ("equals", "trap")
    laws: tuple[Law, ...] = ("normal", "t6")
    cases = [
        Case(play, law, dim, per_dim, common)
        for per_dim in (5, 20)
        for dim in (64, 128)
        for play in plays
        for law in laws
        for common in (False, True)
    ]
    better = Case("better", "normal", 64, 32, False)
    cases[:0] = [better, replace(better, common=True)]
    for case in cases:
        # The widest cases get half: they know their rate to a point instead of 0.7.
        count = repetitions // (1 + (case.images > 2000))
        start = time.process_time()
        found = rates(case, count)
        latents = "common" if case.common else "fresh"
        print(
            f"| {case.play} | {case.law} | {case.dim} | {case.images} | {latents} | {count} | "
            f"{found.corrected:.1%} | {found.plug_in:.1%} | {time.process_time() - start:.0f} |",
            flush=True,
        )


def main() -> None:
    """1000 repetitions where N is at most 2000, half as many above."""
    table(1000)
