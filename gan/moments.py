"""Moments of feature vectors that add up, so that workers judge their share and reduce once.

Frechet distance and KID are functions of them; features are never gathered. Everything is
float64: the sums cancel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gan.world import World

KID_DEGREE = 3
GRAM_BLOCK = 256  # features whose products are taken at once
MAX_KID_DIM = 256  # the third moment holds dim^3 numbers


@dataclass(slots=True)
class FeatureMoments:
    """Sums over images of the powers of their features x: 1, x, x x', x x' x', and the kernel's
    k(x, x).
    """

    count: Float64[Tensor, ""]
    first: Float64[Tensor, " d"]
    second: Float64[Tensor, "d d"]
    third: Float64[Tensor, "d dd"] | None  # only where KID is wanted and d is small enough
    kernel_diagonal: Float64[Tensor, ""]

    @classmethod
    def zeros(
        cls, dim: int, *, device: torch.device | str = "cpu", for_kid: bool = True
    ) -> FeatureMoments:
        """Moments of no images yet; without `for_kid` the costly third one is left out."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        third = empty(dim, dim * dim) if for_kid and dim <= MAX_KID_DIM else None
        return cls(empty(), empty(dim), empty(dim, dim), third, empty())

    @property
    def dim(self) -> int:
        """Length of a feature vector."""
        return self.first.shape[0]

    def add(self, features: Float[Tensor, "n d"]) -> None:
        """Adds images by their features."""
        x = features.double()
        self.count += len(x)
        self.first += x.sum(0)
        _add_gram(self.second, x)
        if self.third is not None:
            pairs = torch.einsum("na,nb->nab", x, x).flatten(1)
            self.third.addmm_(x.T, pairs)
        self.kernel_diagonal += kernel(x.square().sum(1), self.dim).sum()

    def reduce(self, world: World) -> FeatureMoments:
        """The moments of all ranks' images together. Every rank must call this."""
        parts = [p for p in self._parts() if p is not None]
        flat = world.sum(torch.cat([p.flatten() for p in parts]))
        whole = FeatureMoments.zeros(self.dim, device=flat.device, for_kid=self.third is not None)
        start = 0
        for part in [p for p in whole._parts() if p is not None]:
            part.copy_(flat[start : start + part.numel()].view(part.shape))
            start += part.numel()
        return whole

    def together_with(self, other: FeatureMoments) -> FeatureMoments:
        """The moments of these images and the other's."""
        return self._combined(other, 1)

    def without(self, other: FeatureMoments) -> FeatureMoments:
        """The moments of these images less the other's, which must be among them."""
        return self._combined(other, -1)

    def _combined(self, other: FeatureMoments, sign: int) -> FeatureMoments:
        third = None
        if self.third is not None and other.third is not None:
            third = self.third + sign * other.third
        return FeatureMoments(
            self.count + sign * other.count,
            self.first + sign * other.first,
            self.second + sign * other.second,
            third,
            self.kernel_diagonal + sign * other.kernel_diagonal,
        )

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        """Mean feature vector."""
        return self.first / self.count

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """Unbiased covariance (divided by n - 1)."""
        centred = self.second - torch.outer(self.first, self.first) / self.count
        return centred / (self.count - 1)

    def _parts(self) -> tuple[Tensor | None, ...]:
        return (self.count, self.first, self.second, self.third, self.kernel_diagonal)


def _add_gram(total: Float64[Tensor, "d d"], x: Float64[Tensor, "n d"]) -> None:
    """Adds x'x in place, each pair of features once: wide ones cost little more than half."""
    for start in range(0, x.shape[1], GRAM_BLOCK):
        later = start + GRAM_BLOCK
        part = x[:, start:later].T @ x[:, start:]
        total[start:later, start:] += part
        total[later:, start:later] += part[:, GRAM_BLOCK:].T


def check_countable(*sides: FeatureMoments) -> None:
    """Raises ValueError for fewer than two images, and for features that are not finite."""
    for side in sides:
        if side.count.item() < 2:
            raise ValueError(
                f"a distance needs at least 2 images a side, got {side.count.item():.0f}"
            )
        if not torch.isfinite(side.kernel_diagonal):
            raise ValueError("features must be finite, got NaN or infinity from the extractor")


def kernel(inner: Float64[Tensor, "*b"], dim: int) -> Float64[Tensor, "*b"]:
    """KID's kernel k(x, y) = (x.y / d + 1)^3 from inner products x.y."""
    return (inner / dim + 1) ** KID_DEGREE
