"""What a generator is measured by: values with errors and intervals, plain numbers for JSON."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats
from torch import Tensor

CONFIDENCE = 0.95  # of the intervals shown, two-sided
COPY_QUANTILE = 0.01  # the share of images that are no copies which a copy lies nearer than


@dataclass(frozen=True, slots=True)
class Measure:
    """A value, its standard error, and the two-sided interval at CONFIDENCE."""

    value: float
    standard_error: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, standard_error: float, *, num_groups: int | None = None) -> Measure:
        """By Student's t where the error rests on `num_groups` groups, else by the normal law."""
        tail = (1 + CONFIDENCE) / 2
        quantile = stats.t.ppf(tail, num_groups - 1) if num_groups else stats.norm.ppf(tail)
        reach = float(quantile) * standard_error
        return cls(value, standard_error, value - reach, value + reach)

    @classmethod
    def mean_of(cls, values: Tensor) -> Measure:
        """The mean over images, given the images of the other side."""
        values = values.double()
        return cls.of(values.mean().item(), (values.var() / len(values)).sqrt().item())


@dataclass(frozen=True, slots=True)
class Memorization:
    """How many generated images lie nearer to a training image than chance lets an image lie."""

    rate: float
    low: float  # Clopper & Pearson 1934, at CONFIDENCE
    high: float
    num_copies: int
    num_images: int
    calibrated: float  # the rate expected of images that are no copies, r / (m + 1)
    rank: int  # r: so many of the m calibration images lie as near
    num_calibration: int
    threshold: float  # of the distance to the nearest training image over the second nearest
    p_value: float  # of so many copies, were the images no copies


@dataclass(frozen=True, slots=True)
class ClassMeasures:
    """The measures of one class; None where there are too few images of it, or no labels."""

    label: int
    num_images: int
    num_reference: int
    fd: Measure | None
    kid: Measure | None
    coverage: Measure  # of the class's real images, by fakes of whatever label


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """All measures of one generator; plain numbers throughout, for JSON."""

    num_images: int
    num_reference: int
    fd_plug_in: Measure
    fd: Measure | None  # without first-order bias; None for too few images a feature
    kid: Measure
    precision: Measure
    recall: Measure
    density: Measure
    coverage: Measure
    diversity: Measure
    memorization: Memorization
    classes: tuple[ClassMeasures, ...]


def memorization(ratios: Tensor, calibration: Tensor) -> Memorization:
    """Counts the images as near to a training image as the nearest 1 % that are no copies.

    The threshold is the r-th smallest of m calibration ratios. The chance of an exchangeable
    image to fall below it is Beta(r, m + 1 - r), so their number among n is beta-binomial, exactly
    and whatever the distribution. Ties with the threshold count on both sides.
    """
    n, m = len(ratios), len(calibration)
    rank = max(1, int(COPY_QUANTILE * (m + 1)))
    threshold = calibration.sort().values[rank - 1]
    rank = int((calibration <= threshold).sum())
    copies = int((ratios <= threshold).sum())
    tail = (1 - CONFIDENCE) / 2
    low = stats.beta.ppf(tail, copies, n - copies + 1) if copies else 0.0
    high = stats.beta.isf(tail, copies + 1, n - copies) if copies < n else 1.0
    p_value = stats.betabinom.sf(copies - 1, n, rank, m + 1 - rank) if rank <= m else 1.0
    return Memorization(
        rate=copies / n,
        low=float(low),
        high=float(high),
        num_copies=copies,
        num_images=n,
        calibrated=rank / (m + 1),
        rank=rank,
        num_calibration=m,
        threshold=threshold.item(),
        p_value=float(p_value),
    )
