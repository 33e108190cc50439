"""Frechet distances without their bias, and with an error: the delete-a-group jackknife.

The plug-in distance of N samples is too large by about c / N, and c depends on the generator: one
with little spread has a small c. So a plug-in comparison of two generators prefers the one that
collapsed (Chong & Forsyth 2020). The jackknife takes the first-order bias away and says how far
the rest may be off. Moments of groups add up, so each deletion costs one subtraction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gan.metrics import FeatureMoments, frechet_distance

MIN_GROUPS = 5


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value without first-order bias, its standard error, and the groups that they rest on."""

    value: float
    standard_error: float
    num_groups: int


def corrected_frechet(fake: Sequence[FeatureMoments], real: Sequence[FeatureMoments]) -> Estimate:
    """The Frechet distance of generated images, given as moments of groups, to real ones.

    Group k is left out of both sides at once; groups should be of equal size. Near equality the
    estimate may fall below 0, as an unbiased one must. Raises ValueError for fewer than MIN_GROUPS
    groups, sides of different numbers of groups, and features that are not finite.
    """
    return _jackknife(frechet_distance, fake, real)


def frechet_advantage(
    champion: Sequence[FeatureMoments],
    challenger: Sequence[FeatureMoments],
    real: Sequence[FeatureMoments],
) -> Estimate:
    """How much nearer to the real images the challenger is than the champion, in Frechet distance.

    Both are judged against the same real images. Where both were drawn from the same latents,
    group by group, what they have in common cancels and the error shrinks. Raises ValueError as
    `corrected_frechet` does.
    """
    return _jackknife(
        lambda a, b, r: frechet_distance(a, r) - frechet_distance(b, r),
        champion,
        challenger,
        real,
    )


def _jackknife(statistic: Callable[..., float], *samples: Sequence[FeatureMoments]) -> Estimate:
    """Quenouille's estimate and Tukey's error, one group deleted from every sample at a time.

    With K groups, theta of everything and theta_k without group k (Efron & Tibshirani 1993,
    chapter 11): K theta - (K - 1) mean theta_k, and ((K - 1) / K sum (theta_k - mean)^2)^(1/2).
    """
    counts = {len(groups) for groups in samples}
    if len(counts) > 1 or min(counts) < MIN_GROUPS:
        raise ValueError(
            f"a jackknife needs at least {MIN_GROUPS} groups, as many of each sample, "
            f"got {', '.join(str(len(groups)) for groups in samples)}"
        )
    num_groups = counts.pop()
    totals = [sum_of(groups) for groups in samples]
    whole = statistic(*totals)
    without = [
        statistic(
            *(total.without(groups[k]) for total, groups in zip(totals, samples, strict=True))
        )
        for k in range(num_groups)
    ]
    mean = sum(without) / num_groups
    variance = (num_groups - 1) / num_groups * sum((value - mean) ** 2 for value in without)
    value = num_groups * whole - (num_groups - 1) * mean
    return Estimate(value, math.sqrt(variance), num_groups)


def sum_of(groups: Sequence[FeatureMoments]) -> FeatureMoments:
    """The moments of all groups' images together."""
    total = groups[0]
    for group in groups[1:]:
        total = total.together_with(group)
    return total
