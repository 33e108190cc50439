"""The Frechet distance between two sets of features, and how much each image moves it.

d^2 = |m_f - m_r|^2 + tr C_f + tr C_r - 2 tr (C_f C_r)^(1/2) (Dowson & Landau 1982; Heusel et al.
2017, eq. 6). No matrix root is taken: with C = F F' the trace of the root is the sum of the
singular values of F_f' F_r, or of the roots of the eigenvalues of F_r' C_f F_r, which is symmetric
(C_f C_r is not, which is why its root comes out complex elsewhere).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gan.influence import Influence
from gan.moments import FeatureMoments, check_countable

BLOCK = 256  # columns that wide factors are multiplied by at once


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a Frechet distance, made once and compared with many others.

    `of` is for moments, the usual case. `of_features` is for a feature matrix where it is exact
    and a covariance would not be: fewer images than features, or float32.
    """

    count: int
    mean: Float[Tensor, " d"]
    trace: float  # of the covariance
    factor: Float[Tensor, "d r"]  # F with covariance F F'

    @classmethod
    def of(cls, moments: FeatureMoments) -> Side:
        """The side that these moments make: F is the Cholesky factor, or where the covariance is
        singular its root by eigenvectors. Raises ValueError for fewer than two images and
        features that are not finite.
        """
        check_countable(moments)
        covariance = moments.covariance
        return cls(
            int(moments.count.item()),
            moments.mean,
            covariance.trace().item(),
            factor_of(covariance),
        )

    @classmethod
    def of_features(
        cls, features: Float[Tensor, "n d"], *, dtype: torch.dtype = torch.float64
    ) -> Side:
        """The side that these images make; no product of features is formed, so that float32
        loses no more than its own rounding.

        F is the centred matrix itself for n <= d, and the triangle of its QR decomposition for
        more.
        """
        count, dim = features.shape
        check_images(features)
        x = features.to(dtype)
        mean = x.mean(0)
        spread = (x - mean) / math.sqrt(count - 1)
        factor = spread if count <= dim else torch.linalg.qr(spread, mode="r").R
        return cls(count, mean, spread.square().sum().item(), factor.T)


def check_images(features: Float[Tensor, "n d"]) -> None:
    """Raises ValueError for fewer than two images, and for features that are not finite."""
    if len(features) < 2:
        raise ValueError(f"a distance needs at least 2 images a side, got {len(features)}")
    if not torch.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity from the extractor")


def factor_of(covariance: Float64[Tensor, "*b d d"]) -> Float64[Tensor, "*b d r"]:
    """F with F F' = covariance: Cholesky's, or the root by eigenvectors where that fails.

    Cholesky costs a tenth of the eigenvectors. A batch is factored in one way throughout.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed.any():
        return factor
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    return eigenvectors * _without_rounding(eigenvalues).sqrt().unsqueeze(-2)


def frechet_distance(fake: FeatureMoments | Side, real: FeatureMoments | Side) -> float:
    """The plug-in Frechet distance, from moments (float64) or from sides.

    It is biased upwards by O(1 / count), and by less for generators with little spread: see
    `gan.jackknife` before comparing two. Raises ValueError for fewer than two images a side, and
    where a feature was not finite (the sums tell, so every rank raises alike).
    """
    side = real if isinstance(real, Side) else Side.of(real)
    if isinstance(fake, Side):
        trace_root = torch.linalg.svdvals(fake.factor.T @ side.factor).sum().item()
        return _distance(fake.mean - side.mean, fake.trace, side.trace, trace_root)
    check_countable(fake)
    covariance = fake.covariance
    trace_root = root_traces(covariance, side.factor).item()
    return _distance(fake.mean - side.mean, covariance.trace().item(), side.trace, trace_root)


def _distance(difference: Tensor, trace_fake: float, trace_real: float, trace_root: float):
    return difference.square().sum().item() + trace_fake + trace_real - 2 * trace_root


def root_traces(
    covariance: Float64[Tensor, "*b d d"], factor: Float64[Tensor, "*b d r"]
) -> Float64[Tensor, "*b"]:
    """tr (C F F')^(1/2) as the sum of the roots of the eigenvalues of F' C F."""
    eigenvalues = torch.linalg.eigvalsh(_inner(covariance, factor))
    return _without_rounding(eigenvalues).sqrt().sum(-1)


def _inner(
    covariance: Float64[Tensor, "*b d d"], factor: Float64[Tensor, "*b d r"]
) -> Float64[Tensor, "*b r r"]:
    """F' C F, of which only the lower triangle is meant.

    Wide Cholesky factors are multiplied in blocks that leave out F's zeros and the upper triangle:
    two fifths of the work.
    """
    dim = covariance.shape[-1]
    if dim <= BLOCK or not _is_triangular(factor):
        return factor.mT @ covariance @ factor
    product, inner = torch.empty_like(factor), torch.zeros_like(factor)
    for start in range(0, dim, BLOCK):
        block = slice(start, start + BLOCK)
        product[..., block] = covariance[..., start:] @ factor[..., start:, block]
    for start in range(0, dim, BLOCK):
        block, columns = slice(start, start + BLOCK), slice(0, start + BLOCK)
        inner[..., block, columns] = factor[..., start:, block].mT @ product[..., start:, columns]
    return inner


def _is_triangular(factor: Float[Tensor, "*b d r"]) -> bool:
    """Whether this is a whole lower triangle, as Cholesky's."""
    if factor.shape[-1] != factor.shape[-2]:
        return False
    return bool(factor.diagonal(dim1=-2, dim2=-1).all()) and not factor.triu(1).any()


def _without_rounding(eigenvalues: Float64[Tensor, "*b d"]) -> Float64[Tensor, "*b d"]:
    """Eigenvalues of a matrix without negative ones; what only rounding made is 0.

    Its root would not be small: a rounding error of 1e-16 has a root of 1e-8.
    """
    dim = eigenvalues.shape[-1]
    threshold = dim * torch.finfo(eigenvalues.dtype).eps * eigenvalues.amax(-1, keepdim=True)
    return torch.where(eigenvalues > threshold, eigenvalues, 0.0)


def frechet_influence(
    fake: Float[Tensor, "n d"], real: Float[Tensor, "m d"], side: Side
) -> Influence:
    """The plug-in distance of feature matrices and its influence values; `side` is the real one.

    The derivatives of W2^2 between Gaussians are 2 (m_f - m_r) by the mean m_f and I - T by the
    covariance C_f, where T = F (F' C_f F)^(-1/2) F' is the optimal map from the fakes to the reals
    (Rippl, Munk & Sturm 2016, section 2); the other way round its inverse takes T's place. Where a
    covariance is singular, so is the map: directions without images have no derivative and no
    image needs one.
    """
    check_images(fake)
    x, y = fake.double(), real.double()
    mean = x.mean(0)
    x, y = x - mean, y - side.mean
    covariance = x.T @ x / (len(x) - 1)
    eigenvalues, eigenvectors = torch.linalg.eigh(_inner(covariance, side.factor))
    roots = _without_rounding(eigenvalues).sqrt()
    shift = mean - side.mean
    value = _distance(shift, covariance.trace().item(), side.trace, roots.sum().item())

    # x' T x: x along the eigenvectors, over the roots.
    along = x @ (side.factor @ eigenvectors)
    carried = along.square() @ torch.where(roots > 0, 1 / roots, 0.0)
    by_fake = 2 * x @ shift + x.square().sum(1) - carried
    # y' T^-1 y: whitened y along the eigenvectors, times the roots.
    whitened = _whitened(y, side.factor)
    carried = (whitened @ eigenvectors).square() @ roots
    by_real = -2 * y @ shift + y.square().sum(1) - carried
    return Influence(value, by_fake - by_fake.mean(), by_real - by_real.mean())


def tail_weight(features: Float[Tensor, "m d"], side: Side) -> float:
    """Mardia's (1970) multivariate kurtosis over that of a normal law, d (d + 2).

    1 for normal features and, nearly, for independent heavy-tailed ones; more where whole images
    lie far out, as few images then carry the covariance. `side` is that of the features.
    """
    dim = side.factor.shape[1]
    squares = _whitened(features.double() - side.mean, side.factor).square().sum(1)
    return (squares.square().mean() / squares.mean() ** 2).item() * dim / (dim + 2)


def _whitened(y: Float64[Tensor, "m d"], factor: Float64[Tensor, "d r"]) -> Tensor:
    """F^-1 y for each row y, by substitution; F's pseudo-inverse where F is no full triangle."""
    if _is_triangular(factor):
        return torch.linalg.solve_triangular(factor, y.T, upper=False).T
    return y @ torch.linalg.pinv(factor).T
