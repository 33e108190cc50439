"""Kernel inception distance: unbiased at any count, with each image's influence and an error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import comb

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gan.frechet import check_images
from gan.influence import Influence
from gan.moments import KID_DEGREE, FeatureMoments, check_countable, kernel

BLOCK_VALUES = 2**21  # of a kernel matrix held at once: 16 MiB


def kid(fake: FeatureMoments, real: FeatureMoments) -> float | None:
    """Squared maximum mean discrepancy under k(x, y) = (x.y / d + 1)^3, unbiased over all pairs.

    Binkowski et al. 2018, section 4: the full U-statistic, not an average over subsets, since
    (x.y / d + 1)^3 expands into products of moments. None where the third was not taken: d is
    over MAX_KID_DIM, or a side is not `for_kid`.
    """
    if fake.third is None or real.third is None:
        return None
    check_countable(fake, real)
    m, n = fake.count.item(), real.count.item()
    within_fake = (_kernel_sum(fake, fake) - fake.kernel_diagonal.item()) / (m * (m - 1))
    within_real = (_kernel_sum(real, real) - real.kernel_diagonal.item()) / (n * (n - 1))
    return within_fake + within_real - 2 * _kernel_sum(fake, real) / (m * n)


def _kernel_sum(a: FeatureMoments, b: FeatureMoments) -> float:
    """Sum of k(x, y) over all x in a, y in b: the binomial theorem, term by term."""
    assert a.third is not None
    assert b.third is not None
    powers = ((a.count, b.count), (a.first, b.first), (a.second, b.second), (a.third, b.third))
    terms = [
        comb(KID_DEGREE, p) * (x * y).sum().item() / a.dim**p for p, (x, y) in enumerate(powers)
    ]
    return sum(terms)


@dataclass(frozen=True, slots=True)
class KernelReference:
    """Real images and how like the others each is under the kernel, made once for many fakes."""

    features: Float64[Tensor, "m d"]
    likeness: Float64[Tensor, " m"]  # mean of k(y, y') over the other images y'

    @classmethod
    def of(cls, features: Float[Tensor, "m d"]) -> KernelReference:
        """Raises ValueError for fewer than two images and features that are not finite."""
        check_images(features)
        y = features.double()
        return cls(y, _likeness_within(y))


def kid_influence(fake: Float[Tensor, "n d"], real: KernelReference) -> Influence:
    """The full U-statistic of KID from feature matrices, and its influence values.

    An image x moves mean k(x, x') - 2 mean k(x, y) + mean k(y, y') by twice its own mean kernel
    value with its kind less that with the other kind: the first term of Hoeffding's decomposition
    (Serfling 1980, section 5.3; Bounliphone et al. 2015, eq. 3, for the covariance of two such).
    For equal distributions that term vanishes and the stated error is too large: safe for a test.
    Raises ValueError as KernelReference.of does.
    """
    check_images(fake)
    x, y = fake.double(), real.features
    within = _likeness_within(x)
    to_real, to_fake = torch.zeros_like(x[:, 0]), torch.zeros_like(y[:, 0])
    for rows in _row_blocks(len(x), len(y)):
        values = _kernel_matrix(x[rows], y)
        to_real[rows] = values.mean(1)
        to_fake += values.sum(0)
    to_fake /= len(x)
    value = within.mean() + real.likeness.mean() - 2 * to_real.mean()
    by_fake, by_real = 2 * (within - to_real), 2 * (real.likeness - to_fake)
    return Influence(value.item(), by_fake - by_fake.mean(), by_real - by_real.mean())


def fake_influence(
    x: Float[Tensor, "n d"], fake: FeatureMoments, real: FeatureMoments
) -> Float64[Tensor, " n"]:
    """How much each generated image x moves KID, as `kid_influence` has it, but from moments.

    `fake` holds x and all other generated images. Up to the constant that makes the mean 0. The
    products are taken in x's own precision: it is for a standard error.
    """
    assert fake.third is not None
    assert real.third is not None
    dim, others = fake.dim, fake.count - 1

    # Mean k(x, x') - mean k(x, y) is sum_p (3 over p) / d^p <M_p, x^p>, less that of x' = x.
    def term(p: int, of_fake: Tensor, of_real: Tensor) -> Tensor:
        difference = of_fake / others - of_real / real.count
        return (comb(KID_DEGREE, p) / dim**p * difference).to(x)

    linear = term(1, fake.first, real.first)
    square = term(2, fake.second, real.second)
    cube = term(3, fake.third, real.third)
    mean = torch.empty_like(x[:, 0], dtype=torch.float64)
    for rows in _row_blocks(len(x), dim**2):
        part = x[rows]
        # <M_3, x^3> = x' (M_3 x) x, and Horner's rule for the rest.
        quadratic = square + (part @ cube).view(-1, dim, dim)
        vector = linear + (quadratic @ part[:, :, None]).squeeze(2)
        mean[rows] = (vector * part).sum(1)
    own = kernel(x.double().square().sum(1), dim) / others
    return 2 * (mean - own)


def _likeness_within(x: Float64[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Mean of k(x, x') over all other x', for each x; each pair is computed once."""
    sums = -kernel(x.square().sum(1), x.shape[1])  # k(x, x) is no pair
    for rows in _row_blocks(len(x), len(x)):
        values = _kernel_matrix(x[rows], x[rows.start :])
        sums[rows] += values.sum(1)
        sums[rows.stop :] += values[:, rows.stop - rows.start :].sum(0)
    return sums / (len(x) - 1)


def _kernel_matrix(x: Float64[Tensor, "a d"], y: Float64[Tensor, "b d"]) -> Tensor:
    one = torch.ones((), dtype=x.dtype, device=x.device)
    return torch.addmm(one, x, y.T, alpha=1 / x.shape[1]).pow_(KID_DEGREE)


def _row_blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices of rows, of which a matrix holds no more than BLOCK_VALUES at once."""
    step = max(1, BLOCK_VALUES // num_columns)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
