"""A measure, how much each image moves it, and the standard errors that follow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Influence:
    """A measure of generated against real images, and its influence function at each of them.

    The influence of an image is the derivative of the measure by that image's weight (Hampel
    1974); it has mean 0 over the images. A measure of n generated and m real images then has, to
    first order, the variance var(fake) / n + var(real) / m.
    """

    value: float
    fake: Float64[Tensor, " n"]
    real: Float64[Tensor, " m"]

    @property
    def standard_error(self) -> float:
        """First-order standard error of `value` over fresh images on both sides."""
        return math.sqrt(_variance_of_mean(self.fake) + _variance_of_mean(self.real))

    def times(self, factor: float) -> Influence:
        """This measure multiplied by a constant."""
        return Influence(factor * self.value, factor * self.fake, factor * self.real)


def difference_error(first: Influence, second: Influence, *, paired: bool) -> float:
    """First-order standard error of first.value - second.value against the same real images.

    `paired`: image i of both was made from the same latent, so that what they share cancels
    (common random numbers). Only then may images be paired by number. Raises ValueError where the
    real sides differ, and where a pair is incomplete.
    """
    if len(first.real) != len(second.real):
        raise ValueError(
            f"both must be measured against the same real images, got {len(first.real)} and "
            f"{len(second.real)}"
        )
    variance = _variance_of_mean(first.real - second.real)
    if not paired:
        variance += _variance_of_mean(first.fake) + _variance_of_mean(second.fake)
        return math.sqrt(variance)
    if len(first.fake) != len(second.fake):
        raise ValueError(
            f"pairs need as many images of each, got {len(first.fake)} and {len(second.fake)}"
        )
    return math.sqrt(variance + _variance_of_mean(first.fake - second.fake))


def _variance_of_mean(values: Float64[Tensor, " n"]) -> float:
    return values.var().item() / len(values)
