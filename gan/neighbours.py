"""What nearest neighbours tell: precision, recall, density, coverage; copies of training images.

Distances are Euclidean between feature vectors, in float64, in blocks: no whole matrix is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from gan.frechet import check_images

PRECISION_K = 3  # Kynkaanniemi et al. 2019, section 3
COVERAGE_K = 5  # Naeem et al. 2020, section 4
BLOCK_VALUES = 2**21  # of a distance matrix held at once: 16 MiB


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The k nearest images of each image, nearest first."""

    index: Int64[Tensor, "n k"]
    distance: Float64[Tensor, "n k"]


def nearest(
    queries: Float[Tensor, "n d"], images: Float[Tensor, "m d"], *, count: int = 1
) -> Neighbours:
    """The `count` nearest of `images` to each query. Copies are at distance exactly 0."""
    x, y = queries.double(), images.double()
    index = torch.cat([_smallest(block, count) for _, block in _squared_distances(x, y)])
    return _measured(x, y, index)


def nearest_others(images: Float[Tensor, "m d"], *, count: int) -> Neighbours:
    """The `count` nearest other images of each image; a second copy is another image."""
    if len(images) <= count:
        raise ValueError(f"{count} neighbours need more than {count} images, got {len(images)}")
    y = images.double()
    blocks = []
    for rows, block in _squared_distances(y, y):
        block.diagonal(rows.start).fill_(torch.inf)
        blocks.append(_smallest(block, count))
    return _measured(y, y, torch.cat(blocks))


def _measured(x: Tensor, y: Tensor, index: Int64[Tensor, "n k"]) -> Neighbours:
    """Neighbours by their numbers; differences are taken anew, since |x|^2 + |y|^2 - 2 x.y rounds
    what should be 0.
    """
    distance = torch.stack([(x - y[column]).norm(dim=1) for column in index.T], 1)
    distance, order = distance.sort(1)
    return Neighbours(index.gather(1, order), distance)


def _smallest(squared: Float64[Tensor, "n m"], count: int) -> Int64[Tensor, "n k"]:
    if count == 1:
        return squared.argmin(1, keepdim=True)
    return squared.topk(count, dim=1, largest=False).indices


def _squared_distances(
    x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]
) -> Iterator[tuple[slice, Float64[Tensor, "rows m"]]]:
    """Squared distances of all y to a block of x at a time, but for rounding."""
    lengths_x, lengths_y = x.square().sum(1, keepdim=True), y.square().sum(1)
    step = max(1, BLOCK_VALUES // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        along = lengths_y.expand(rows.stop - rows.start, -1)
        yield rows, torch.addmm(along, x[rows], y.T, alpha=-2).add_(lengths_x[rows])


@dataclass(frozen=True, slots=True)
class Manifold:
    """Images, and around each a ball that reaches its k-th nearest other image."""

    features: Float64[Tensor, "m d"]
    others: Neighbours

    @classmethod
    def of(cls, features: Float[Tensor, "m d"]) -> Manifold:
        """Raises ValueError for too few images and features that are not finite."""
        check_images(features)
        return cls(features.double(), nearest_others(features, count=max(PRECISION_K, COVERAGE_K)))

    def radius(self, k: int) -> Float64[Tensor, " m"]:
        """Distance of each image to its k-th nearest other one."""
        return self.others.distance[:, k - 1]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Where generated and real images lie among each other: one indicator an image.

    Means of the first two are improved precision and recall with k = 3 (Kynkaanniemi et al. 2019,
    eq. 1), of the next two density and coverage with k = 5 (Naeem et al. 2020, eq. 3 and 4).
    """

    precise: Bool[Tensor, " n"]  # the fake lies in the ball of some real image
    recalled: Bool[Tensor, " m"]  # the real image lies in the ball of some fake
    density: Float64[Tensor, " n"]  # how many real balls hold the fake, over k; may exceed 1
    covered: Bool[Tensor, " m"]  # some fake lies in the real image's ball
    nearest_fake: Int64[Tensor, " m"]  # number of the fake that is nearest to the real image


def overlap(fake: Manifold, real: Manifold) -> Overlap:
    """Precision, recall, density and coverage, image by image, in one pass over all pairs."""
    n, m = len(fake.features), len(real.features)
    # A ball holds what lies on its rim; distances come with the rounding of their expansion.
    longest = max(side.features.square().sum(1).max().item() for side in (fake, real))
    slack = 8 * torch.finfo(torch.float64).eps * longest
    thin, wide, own = (
        manifold.radius(k).square() + slack
        for manifold, k in ((real, PRECISION_K), (real, COVERAGE_K), (fake, PRECISION_K))
    )
    precise, recalled = torch.zeros(n, dtype=torch.bool), torch.zeros(m, dtype=torch.bool)
    density = torch.zeros(n, dtype=torch.float64)
    closest = torch.full((m,), torch.inf, dtype=torch.float64)
    nearest_fake = torch.zeros(m, dtype=torch.int64)
    for rows, squared in _squared_distances(fake.features, real.features):
        precise[rows] = (squared <= thin).any(1)
        density[rows] = (squared <= wide).sum(1).double() / COVERAGE_K
        recalled |= (squared <= own[rows, None]).any(0)
        here, number = squared.min(0)
        nearest_fake = torch.where(here < closest, number + rows.start, nearest_fake)
        closest = torch.minimum(closest, here)
    return Overlap(precise, recalled, density, closest <= wide, nearest_fake)


def coverage_error(first: Overlap, *, less: Overlap | None = None) -> float:
    """Standard error of a coverage, or of one `less` another in pairs by real image.

    Real images that have their nearest fake in common are covered or missed together, so that
    they count as one observation, as a cluster (Liang & Zeger 1986); for a difference there are
    clusters of both fakes (Cameron, Gelbach & Miller 2011, eq. 2.6). Never below McNemar's error,
    which takes pairs as independent and is too small by up to a third; a jackknife, whose
    deletions move every ball, is too large by a factor of two (MEASUREMENTS.md).
    """
    gain = first.covered.double()
    if less is None:
        return _clustered_variance(gain, first.nearest_fake) ** 0.5
    gain = gain - less.covered.double()
    independent = gain.var(correction=0).item() / len(gain)
    clustered = (
        _clustered_variance(gain, first.nearest_fake)
        + _clustered_variance(gain, less.nearest_fake)
        - independent
    )
    return max(clustered, independent) ** 0.5


def _clustered_variance(values: Float64[Tensor, " m"], cluster: Int64[Tensor, " m"]) -> float:
    """Variance of the mean of `values`, of which those of a cluster hang together."""
    sums = torch.zeros(int(cluster.max()) + 1, dtype=values.dtype)
    sums.index_add_(0, cluster, values - values.mean())
    return sums.square().sum().item() / len(values) ** 2


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Training images as something to copy: what nearness is chance, and what is memory.

    The measure of an image is its distance to the nearest training image over that to the second
    nearest (Yoon et al. 2023; Lowe 2004, section 7.1, for matches): near 0 for a copy, near 1 for
    an image of its own. Dividing by how far the neighbour itself is from its own kind would accuse
    generators of smooth, typical images, which are nearer to everything; this ratio does not
    (MEASUREMENTS.md). `calibration` holds the ratios of images that are no copies.
    """

    features: Float64[Tensor, "m d"]  # distinct ones: a second copy would hide what copies both
    number: Int64[Tensor, " m"]  # of each among the images given
    calibration: Float64[Tensor, " c"]

    @classmethod
    def of(
        cls, features: Float[Tensor, "all d"], *, held_out: Float[Tensor, "h d"] | None = None
    ) -> TrainingSet:
        """Calibrated by `held_out` images that no generator was trained on; without them by the
        training images themselves, each against all others, which is how a fresh image of the
        same distribution lies to the set.

        Raises ValueError for fewer than three distinct images and features that are not finite.
        """
        check_images(features)
        distinct, number = _distinct(features.double())
        if held_out is None:
            known = nearest_others(distinct, count=2)
        else:
            check_images(held_out)
            known = nearest(held_out, distinct, count=2)
        return cls(distinct, number, _ratio(known))

    def copied(self, fakes: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
        """The ratio of each fake, in [0, 1]; 0 is an exact copy."""
        return _ratio(nearest(fakes, self.features, count=2))


def _ratio(known: Neighbours) -> Float64[Tensor, " n"]:
    first, second = known.distance.unbind(1)
    return torch.where(first == 0, 0.0, first / second)


def _distinct(features: Float64[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
    """The distinct rows in their order, and where each first stood."""
    rows, inverse = torch.unique(features, dim=0, return_inverse=True)
    count = torch.arange(len(features))
    first = torch.full((len(rows),), len(features)).scatter_reduce(0, inverse, count, "amin")
    number = first.sort().values
    return features[number], number
