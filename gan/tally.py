"""Generated images as they are counted for scores in training: moments, in groups, on every rank.

All ranks' tallies add up, so a score does not depend on who looked at which image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gan.frechet import Side, frechet_distance
from gan.jackknife import (
    MIN_GROUPS,
    RealDeletions,
    frechet_deletions,
    jackknife,
    spread_deletions,
)
from gan.kid import fake_influence, kid
from gan.moments import FeatureMoments
from gan.world import World

NUM_GROUPS = 10
KID_ERROR_IMAGES = 1000  # know a standard error to 2 %; more would cost as much as KID itself
WIDE = 512  # features from which a deletion is dear, so that MIN_GROUPS must do


@dataclass(frozen=True, slots=True)
class RealSide:
    """The real images that all generators are held against, as far as scores need them."""

    moments: FeatureMoments
    side: Side
    deletions: RealDeletions

    @classmethod
    def of(cls, moments: FeatureMoments) -> RealSide:
        """Raises ValueError for fewer than two images and features that are not finite."""
        side = Side.of(moments)
        return cls(moments, side, RealDeletions.fixed(side, _num_groups(moments.dim)))


class Tally:
    """`num_images` generated images, of which this rank adds its own.

    Image i belongs to group i modulo the number of groups; with fewer than two images for each
    there are no groups, and no errors.
    """

    def __init__(self, dim: int, *, num_images: int, device: torch.device | str = "cpu"):
        self.whole = FeatureMoments.zeros(dim, device=device)
        count = _num_groups(dim)
        self.groups = [
            FeatureMoments.zeros(dim, device=device, for_kid=False)
            for _ in range(count if num_images >= 2 * count else 0)
        ]
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._stride = max(1, num_images // KID_ERROR_IMAGES)
        self._features: list[Tensor] = []  # this rank's of every so many images

    def add(self, features: Float[Tensor, "n d"], *, first: int) -> None:
        """Adds images number `first`, `first` + 1, ... by their features."""
        self.whole.add(features)
        if not self.groups:
            return
        numbers = torch.arange(first, first + len(features), device=features.device)
        if self.whole.third is not None:
            self._features.append(features[numbers % self._stride == 0])
        self._waiting.append((features, numbers % len(self.groups)))
        # A group of a block is a few rows; of several blocks it is as many as a block.
        if len(self._waiting) == len(self.groups):
            self._deal()

    def _deal(self) -> None:
        if self._waiting:
            features, numbers = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            self._waiting = []
            for number, group in enumerate(self.groups):
                group.add(features[numbers == number])

    def measures(self, real: RealSide, world: World) -> dict[str, float]:
        """What is found of all ranks' images. Every rank must call this, once, at the end.

        fd and kid: as they are (`frechet_distance`, `kid`; no kid of wide features).
        fd_corrected: fd without first-order bias. diversity: tr C_f / tr C_r, 1 at best.
        fd_error (of the corrected one), kid_error, diversity_error: standard errors over fresh
        generated images, given the real ones, which all generators have in common. Raises
        ValueError for fewer than two images and features that are not finite.
        """
        self._deal()
        self.whole = self.whole.reduce(world)
        self.groups = [group.reduce(world) for group in self.groups]
        found = {"fd": frechet_distance(self.whole, real.side)}
        distance = kid(self.whole, real.moments)
        if distance is not None:
            found["kid"] = distance
        spread = self.whole.covariance.trace().item()
        if real.side.trace > 0:
            found["diversity"] = spread / real.side.trace
        if not self.groups:
            return found
        corrected = jackknife(frechet_deletions(self.groups, real.deletions))
        found |= {"fd_corrected": corrected.value, "fd_error": corrected.standard_error}
        if distance is not None:
            found["kid_error"] = self._kid_error(real, world)
        if real.side.trace > 0:
            error = jackknife(spread_deletions(self.groups)).standard_error
            found["diversity_error"] = error / real.side.trace
        return found

    def _kid_error(self, real: RealSide, world: World) -> float:
        """(var h / n)^(1/2) for the influence h of an image."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.whole.first.device)
        if self._features:  # a rank may have none
            h = fake_influence(torch.cat(self._features), self.whole, real.moments)
            sums += torch.stack([torch.ones_like(h).sum(), h.sum(), h.square().sum()])
        count, total, squares = world.sum(sums).tolist()
        variance = (squares - total**2 / count) / (count - 1)
        return math.sqrt(max(variance, 0.0) / self.whole.count.item())


def _num_groups(dim: int) -> int:
    return NUM_GROUPS if dim <= WIDE else MIN_GROUPS
