"""How many modes of a known mixture a generator has found, and how evenly it draws from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Points = Float[Tensor, "n 2"]
HIGH_QUALITY_SIGMAS = 3.0
CONFIDENT = 0.9  # probability of the class named; below, a sample may be no image of any class


def ring(*, num_modes: int = 8, radius: float = 1.0) -> Float[Tensor, "k 2"]:
    """The centres of the 2-D ring (Srivastava et al. 2017; Lin et al. 2018)."""
    angle = torch.arange(num_modes) * (2 * math.pi / num_modes)
    return radius * torch.stack([angle.cos(), angle.sin()], dim=1)


def grid(*, side: int = 5, spacing: float = 2.0) -> Float[Tensor, "k 2"]:
    """The centres of the 2-D grid, around the origin (Srivastava et al. 2017; Lin et al. 2018)."""
    line = (torch.arange(side) - (side - 1) / 2) * spacing
    return torch.cartesian_prod(line, line)


@dataclass(frozen=True, slots=True)
class Modes:
    """What a set of samples shows of a mixture's modes."""

    found: int
    of: int
    reverse_kl: float  # KL(samples' modes || uniform) in nats; infinite without a good sample
    good: float  # the share of samples that are close to a mode, or surely of a class


def of_points(samples: Points, centres: Float[Tensor, "k 2"], *, sigma: float) -> Modes:
    """By distance: a sample within 3 sigma of a centre is of high quality and counts for it (Lin
    et al. 2018, section 4.1).
    """
    distance, nearest = torch.cdist(samples.double(), centres.double()).min(dim=1)
    good = distance < HIGH_QUALITY_SIGMAS * sigma
    return _modes(nearest[good], len(centres), good=float(good.double().mean()))


def of_classes(
    classes: Int64[Tensor, " n"], confidence: Float[Tensor, " n"], *, num_modes: int
) -> Modes:
    """By a classifier: every sample counts for the class it is given, sure or not, as published
    tables have it; `good` is the share that it is sure of.
    """
    good = float((confidence > CONFIDENT).double().mean())
    return _modes(classes, num_modes, good=good)


def _modes(assigned: Int64[Tensor, " n"], count: int, *, good: float) -> Modes:
    counts = torch.bincount(assigned, minlength=count).double()
    if not len(assigned):
        return Modes(0, count, math.inf, good)
    share = counts / counts.sum()
    kl = float((torch.xlogy(share, share)).sum()) + math.log(count)
    # Rounding may leave an even split a hair below 0.
    return Modes(int((counts > 0).sum()), count, max(kl, 0.0), good)
