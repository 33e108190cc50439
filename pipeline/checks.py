"""The single demands of the gate: each a test at a stated level, with a sentence that says it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from gan.influence import Influence, difference_error
from gan.jackknife import jackknife
from gan.neighbours import coverage_error
from pipeline.evidence import Evidence, FrechetEvidence, Reference, class_rows
from pipeline.measures import Measure, Memorization

BETA_GRID = 2000  # points of the mixture over Beta; three digits of a p-value need a hundred


@dataclass(frozen=True, slots=True)
class Check:
    """One demand, and how the evidence meets it.

    `low` and `high` are one-sided bounds of `value` at the check's level, each for itself.
    """

    name: str
    passed: bool | None  # None: the images do not tell
    value: float
    standard_error: float
    low: float
    high: float
    limit: float
    sentence: str


def frechet_check(
    champion: FrechetEvidence,
    challenger: FrechetEvidence,
    *,
    alpha: float,
    resolution: float,
    paired: bool,
) -> Check:
    """The challenger is nearer to the real images in Frechet distance.

    The advantage without first-order bias must exceed 0 by Student's t at `alpha` with one degree
    of freedom less than there are groups; its error is the larger of jackknife's and influence's.
    Failed where it is not even `resolution`, an absolute difference, at the upper bound. `paired`:
    image i of both was made from the same latent.
    """
    estimate = jackknife(champion.deletions - challenger.deletions)
    by_influence = difference_error(champion.influence, challenger.influence, paired=paired)
    error = max(estimate.standard_error, by_influence)
    reach = student_quantile(alpha, estimate.num_groups) * error
    low, high = estimate.value - reach, estimate.value + reach
    passed = True if low > 0 else False if high < resolution else None
    sentence = (
        f"Frechet distance {champion.corrected.value:.4g} to {challenger.corrected.value:.4g}: "
        f"nearer by {estimate.value:.3g} (+- {error:.2g}), at least {low:.3g} and at most "
        f"{high:.3g} at level {alpha:.2g}; must be above 0, and {resolution:.3g} is worth finding"
    )
    return Check("frechet", passed, estimate.value, error, low, high, 0.0, sentence)


def student_quantile(alpha: float, num_groups: int) -> float:
    """Upper quantile of Student's t for a jackknife of so many groups."""
    return float(stats.t.isf(alpha, num_groups - 1))


def kid_check(
    champion: Influence, challenger: Influence, *, alpha: float, margin: float, paired: bool
) -> Check:
    """The challenger's KID is not significantly above the champion's by more than the share
    `margin` of it: the relative test of Bounliphone et al. 2015.
    """
    value, error, low, high, limit = _relative_kid(
        champion, challenger, alpha=alpha, margin=margin, paired=paired
    )
    sentence = (
        f"KID {champion.value:.4g} to {challenger.value:.4g}: higher by {value:.3g} "
        f"(+- {error:.2g}), at least {low:.3g}; more than {limit:.3g} would be worse"
    )
    return Check("kid", low <= limit, value, error, low, high, limit, sentence)


def _relative_kid(
    champion: Influence, challenger: Influence, *, alpha: float, margin: float, paired: bool
) -> tuple[float, float, float, float, float]:
    """Difference, its error and bounds, and the limit; the limit's own error is in the error."""
    error = difference_error(challenger, champion.times(1 + margin), paired=paired)
    value, limit = challenger.value - champion.value, margin * champion.value
    reach = float(stats.norm.isf(alpha)) * error
    return value, error, value - reach, value + reach, limit


def coverage_check(
    champion: Evidence, challenger: Evidence, *, alpha: float, margin: float
) -> Check:
    """The challenger covers at least as many real images as the champion, less `margin`: shown,
    not only not refuted. Real images are compared in pairs.
    """
    first, second = challenger.measures.coverage.value, champion.measures.coverage.value
    error = coverage_error(challenger.overlap, less=champion.overlap)
    value, reach = first - second, float(stats.norm.isf(alpha)) * error
    low, high = value - reach, value + reach
    passed = True if low > -margin else False if high < -margin else None
    sentence = (
        f"coverage {second:.1%} to {first:.1%}: {value:+.2%} (+- {error:.2%}), at least "
        f"{low:+.2%}; must be above {-margin:+.2%}"
    )
    return Check("coverage", passed, value, error, low, high, -margin, sentence)


def memorization_check(
    found: Memorization, *, alpha: float, tolerance: float, beside: Memorization | None = None
) -> Check:
    """No evidence that generated images are copies of training images.

    Failed where significantly more than `tolerance` times the calibrated rate lie as near as
    copies: a generator is not the data's distribution, and may be somewhat nearer without copying.
    Beside a champion also failed where the rate is significantly above the calibrated one and
    above the champion's (Fisher's exact test): memory that grows is caught within the tolerance.
    """
    beyond = excess_p_value(found, tolerance=tolerance) < alpha
    grown = False
    against = ""
    if beside is not None:
        table = [[m.num_copies, m.num_images - m.num_copies] for m in (found, beside)]
        p_value = float(stats.fisher_exact(table, alternative="greater").pvalue)  # type: ignore
        grown = found.p_value < alpha and p_value < alpha
        against = f"; the champion's are {beside.rate:.2%}"
    limit = tolerance * found.calibrated
    error = (found.rate * (1 - found.rate) / found.num_images) ** 0.5
    low = stats.beta.ppf(alpha, found.num_copies, found.num_images - found.num_copies + 1)
    high = stats.beta.isf(alpha, found.num_copies + 1, found.num_images - found.num_copies)
    sentence = (
        f"{found.num_copies} of {found.num_images} images ({found.rate:.2%}) lie as near to a "
        f"training image as {found.calibrated:.2%} of images that are no copies; evidence of "
        f"more than {limit:.2%} would be memory{against}"
    )
    return Check(
        "memorization",
        not (beyond or grown),
        found.rate,
        error,
        float(low) if found.num_copies else 0.0,
        float(high) if found.num_copies < found.num_images else 1.0,
        limit,
        sentence,
    )


def excess_p_value(found: Memorization, *, tolerance: float) -> float:
    """Chance of so many copies where the rate is `tolerance` times that of images that are none.

    Binomial(n, tolerance p) mixed over the threshold's own chance p, Beta(r, m + 1 - r), by
    midpoints of its quantiles; with tolerance 1 it is beta-binomial.
    """
    if found.rank > found.num_calibration - 1:
        return 1.0  # every calibration image lies as near: nothing can be an excess
    levels = (np.arange(BETA_GRID) + 0.5) / BETA_GRID
    chance = stats.beta.ppf(levels, found.rank, found.num_calibration + 1 - found.rank)
    tails = stats.binom.sf(
        found.num_copies - 1, found.num_images, np.minimum(1.0, tolerance * chance)
    )
    return float(tails.mean())


def classes_check(
    champion: Evidence,
    challenger: Evidence,
    reference: Reference,
    *,
    alpha: float,
    kid_margin: float,
    coverage_margin: float,
    paired: bool,
) -> tuple[Check, ...]:
    """No class is much worse: one check of the worst class, or none where data has no classes.

    By the classes' KID where both generators were asked for labels, else by the share of each
    class's real images that are covered. One-sided, at alpha over the number of classes.
    """
    labels = sorted(champion.class_kids.keys() & challenger.class_kids.keys())
    if labels:
        same = _same_labels(champion, challenger)
        rows = [
            (
                label,
                *_relative_kid(
                    champion.class_kids[label],
                    challenger.class_kids[label],
                    alpha=alpha / len(labels),
                    margin=kid_margin,
                    paired=paired and same,
                ),
            )
            for label in labels
        ]
        what = "KID"
    else:
        masks = class_rows(reference.labels)
        if not masks:
            return ()
        quantile = float(stats.norm.isf(alpha / len(masks)))
        rows, what = [], "share of images not covered"
        for label, mask in masks.items():
            covered = [e.overlap.covered[mask].double() for e in (champion, challenger)]
            measured = Measure.mean_of(covered[0] - covered[1])
            reach = quantile * measured.standard_error
            value = measured.value
            rows.append(
                (
                    label,
                    value,
                    measured.standard_error,
                    value - reach,
                    value + reach,
                    coverage_margin,
                )
            )
    label, value, error, low, high, limit = max(rows, key=lambda row: row[3] - row[5])
    sentence = (
        f"of {len(rows)} classes, {label} fares worst: {what} higher by {value:.3g} "
        f"(+- {error:.2g}), at least {low:.3g}; more than {limit:.3g} would be much worse"
    )
    return (Check("classes", low <= limit, value, error, low, high, limit, sentence),)


def _same_labels(champion: Evidence, challenger: Evidence) -> bool:
    first, second = champion.labels, challenger.labels
    if first is None or second is None:
        return False
    return first.shape == second.shape and bool((first == second).all())


def distance_floor(
    measured: Measure, *, trace: float, share: float, alpha: float, num_groups: int
) -> Check:
    """The Frechet distance is below a share of the trace of the reals' covariance."""
    reach = student_quantile(alpha, num_groups) * measured.standard_error
    low, high, limit = measured.value - reach, measured.value + reach, share * trace
    passed = True if high < limit else False if low > limit else None
    sentence = (
        f"Frechet distance {measured.value:.4g} (+- {measured.standard_error:.2g}), at most "
        f"{high:.4g}; must be below {limit:.4g}, {share:.0%} of what the best single image has"
    )
    return Check(
        "frechet", passed, measured.value, measured.standard_error, low, high, limit, sentence
    )


def floor(name: str, measured: Measure, *, limit: float, alpha: float) -> Check:
    """A share is above its floor."""
    reach = float(stats.norm.isf(alpha)) * measured.standard_error
    low, high = measured.value - reach, measured.value + reach
    passed = True if low > limit else False if high < limit else None
    sentence = (
        f"{name} {measured.value:.1%} (+- {measured.standard_error:.2%}), at least {low:.1%}; "
        f"must be above {limit:.0%}"
    )
    return Check(name, passed, measured.value, measured.standard_error, low, high, limit, sentence)
