"""How far generated images are from real ones: Frechet distance and KID, from moments that add up.

Both are functions of sums over images, so that workers judge their own share and reduce once;
features are never gathered. Everything is float64: the sums cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gan.world import World

KID_DEGREE = 3
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
        self.second.addmm_(x.T, x)
        if self.third is not None:
            pairs = torch.einsum("na,nb->nab", x, x).flatten(1)
            self.third.addmm_(x.T, pairs)
        self.kernel_diagonal += _kernel(x.square().sum(1), self.dim).sum()

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


def frechet_distance(fake: FeatureMoments, real: FeatureMoments) -> float:
    """|m_f - m_r|^2 + tr(C_f + C_r - 2 (C_f C_r)^(1/2)), Dowson & Landau 1982; Heusel et al. 2017,
    eq. 6.

    The trace of the root is the sum of the roots of the eigenvalues of R' C_f R with C_r = R R',
    which stays symmetric and needs no invertible C_r. It is the plug-in value: biased upwards by
    O(1 / count), and by less for generators with little spread. Raises ValueError for fewer than
    two images a side, and where a feature was not finite (the sums tell, so every rank raises
    alike).
    """
    _check_countable(fake, real)
    cov_fake, cov_real = fake.covariance, real.covariance
    eigenvalues, eigenvectors = torch.linalg.eigh(cov_real)
    root = eigenvectors * eigenvalues.clamp(min=0).sqrt()
    inner = root.T @ cov_fake @ root
    trace_root = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    difference = fake.mean - real.mean
    distance = difference.square().sum() + cov_fake.trace() + cov_real.trace() - 2 * trace_root
    return distance.item()


def kid(fake: FeatureMoments, real: FeatureMoments) -> float | None:
    """Squared maximum mean discrepancy under k(x, y) = (x.y / d + 1)^3, unbiased over all pairs.

    Binkowski et al. 2018, section 4: the full U-statistic, not an average over subsets, since
    (x.y / d + 1)^3 expands into products of moments. None where the third was not taken: d is
    over MAX_KID_DIM, or a side is not `for_kid`.
    """
    if fake.third is None or real.third is None:
        return None
    _check_countable(fake, real)
    m, n = fake.count.item(), real.count.item()
    within_fake = (_kernel_sum(fake, fake) - fake.kernel_diagonal.item()) / (m * (m - 1))
    within_real = (_kernel_sum(real, real) - real.kernel_diagonal.item()) / (n * (n - 1))
    return within_fake + within_real - 2 * _kernel_sum(fake, real) / (m * n)


def _check_countable(*sides: FeatureMoments) -> None:
    for side in sides:
        if side.count.item() < 2:
            raise ValueError(
                f"a distance needs at least 2 images a side, got {side.count.item():.0f}"
            )
        if not torch.isfinite(side.kernel_diagonal):
            raise ValueError("features must be finite, got NaN or infinity from the extractor")


def _kernel(inner: Float64[Tensor, " n"], dim: int) -> Float64[Tensor, " n"]:
    return (inner / dim + 1) ** KID_DEGREE


def _kernel_sum(a: FeatureMoments, b: FeatureMoments) -> float:
    """Sum of k(x, y) over all x in a, y in b: the binomial theorem, term by term."""
    assert a.third is not None
    assert b.third is not None
    powers = ((a.count, b.count), (a.first, b.first), (a.second, b.second), (a.third, b.third))
    terms = [
        comb(KID_DEGREE, p) * (x * y).sum().item() / a.dim**p for p, (x, y) in enumerate(powers)
    ]
    return sum(terms)
