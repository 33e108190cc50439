"""Whether a challenger may take the champion's place: a decision from evidence, and nothing else.

A challenger is promoted where every check holds (an intersection-union test, Berger 1982): it is
never promoted more often than the Frechet check alone would, and that one has a stated level.
Nothing here reads files, draws images or talks to a registry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from scipy import stats

from gan.config import check
from gan.jackknife import MIN_GROUPS
from pipeline.checks import (
    Check,
    classes_check,
    coverage_check,
    distance_floor,
    floor,
    frechet_check,
    kid_check,
    memorization_check,
    student_quantile,
)
from pipeline.evidence import IMAGES_PER_DIM, NUM_GROUPS, Evidence, Reference

Outcome = Literal["promoted", "rejected", "unresolved"]
POWER = 0.8  # with which what is worth finding is found by `images_needed` images


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRules:
    """What a promotion demands. Margins say how much worse is not worse; floors are for a first
    champion, who has nobody to beat.

    The floors are wide on purpose. The best generator that knows one image only, the mean, is at
    a Frechet distance of the trace of the reals' covariance, with diversity and coverage 0. Of
    digits (MEASUREMENTS.md) noise, blank images, one class alone and two classes are at 0.8 of the
    trace and more; five classes of ten, or digits under noise of a third of the range, at 0.33 and
    less, with diversity over 0.33 and coverage over 0.07.
    """

    alpha: float = 0.05  # one-sided level of every check
    groups: int = NUM_GROUPS  # of the jackknife
    resolution: float = 0.02  # Frechet advantage worth finding, as a share of the champion's
    kid_margin: float = 0.05  # KID may be higher by this share of the champion's
    coverage_margin: float = 0.02  # coverage may be lower by less than this
    memorization_tolerance: float = 2.0  # copies may be this many times their calibrated rate
    class_margin: float = 0.5  # a class's KID may be higher by this share of the champion's
    class_coverage_margin: float = 0.1  # without labels: a class's coverage may be lower by this
    max_distance: float = 0.5  # floor: Frechet distance as a share of the trace of the reals'
    min_coverage: float = 0.05  # floor
    min_diversity: float = 0.25  # floor

    def __post_init__(self) -> None:
        check(
            (0 < self.alpha < 0.5, f"alpha must be in (0, 0.5), got {self.alpha}"),
            (
                MIN_GROUPS <= self.groups <= 1000,
                f"groups must be between {MIN_GROUPS} and 1000, got {self.groups}",
            ),
            (0 <= self.resolution < 1, f"resolution must be in [0, 1), got {self.resolution}"),
            (
                1 <= self.memorization_tolerance < math.inf,
                f"memorization_tolerance must be >= 1 and finite, "
                f"got {self.memorization_tolerance}",
            ),
            (
                0 < self.max_distance < math.inf,
                f"max_distance must be > 0 and finite, got {self.max_distance}",
            ),
            *(
                (0 <= value < math.inf, f"{name} must be >= 0 and finite, got {value}")
                for name, value in (
                    ("kid_margin", self.kid_margin),
                    ("class_margin", self.class_margin),
                )
            ),
            *(
                (0 <= value < 1, f"{name} must be in [0, 1), got {value}")
                for name, value in (
                    ("coverage_margin", self.coverage_margin),
                    ("class_coverage_margin", self.class_coverage_margin),
                    ("min_coverage", self.min_coverage),
                    ("min_diversity", self.min_diversity),
                )
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The decision with its evidence; plain numbers throughout, for JSON.

    `images_needed` is how many images would make the errors small enough to find what is worth
    finding. To judge again with more of them because the outcome is open is another look, and
    needs its own share of alpha.
    """

    outcome: Outcome
    reason: str
    checks: tuple[Check, ...]
    alpha: float  # of the Frechet check
    resolution: float  # the Frechet advantage worth finding
    num_images: int
    images_needed: int


def spent_alpha(alpha: float, attempt: int) -> float:
    """The level of the j-th attempt (from 1), alpha 6 / (pi j)^2.

    Over all attempts they add up to alpha, so that the chance of ever promoting an equal stays
    below it.
    """
    check((attempt >= 1, f"attempt must be >= 1, got {attempt}"))
    return alpha * 6 / (math.pi * attempt) ** 2


def compare(
    champion: Evidence,
    challenger: Evidence,
    reference: Reference,
    *,
    rules: GateRules,
    paired: bool,
    alpha: float | None = None,
) -> Comparison:
    """Decides between two generators that were judged against the same reference.

    `paired`: image i of both was made from the same latent and label. `alpha` is the level of the
    Frechet check for attempts that may not spend all of `rules.alpha`; the other checks keep
    theirs, or every attempt would look less hard at what a challenger breaks. Raises ConfigError
    for fewer than 5 images a feature and another number of groups than the rules'.
    """
    alpha = rules.alpha if alpha is None else alpha
    check((0 < alpha < 0.5, f"alpha must be in (0, 0.5), got {alpha}"))
    for evidence in (champion, challenger):
        _check_images(evidence, reference, rules=rules)
    resolution = rules.resolution * max(champion.frechet.corrected.value, 0.0)
    advantage = frechet_check(
        champion.frechet, challenger.frechet, alpha=alpha, resolution=resolution, paired=paired
    )
    count, least = challenger.measures.num_images, reference.frechet.images_for_tails
    if advantage.passed and count < least:
        remark = (
            f"; so far out do some images lie that {least} are needed to trust it, got {count}"
        )
        advantage = replace(advantage, passed=None, sentence=advantage.sentence + remark)
    coverage = coverage_check(
        champion, challenger, alpha=rules.alpha, margin=rules.coverage_margin
    )
    checks = (
        advantage,
        kid_check(
            champion.kid,
            challenger.kid,
            alpha=rules.alpha,
            margin=rules.kid_margin,
            paired=paired,
        ),
        coverage,
        memorization_check(
            challenger.measures.memorization,
            alpha=rules.alpha,
            tolerance=rules.memorization_tolerance,
            beside=champion.measures.memorization,
        ),
        *classes_check(
            champion,
            challenger,
            reference,
            alpha=rules.alpha,
            kid_margin=rules.class_margin,
            coverage_margin=rules.class_coverage_margin,
            paired=paired,
        ),
    )
    quantile = student_quantile(alpha, reference.num_groups)
    needed = max(
        least,
        _images_for(resolution, advantage.standard_error, quantile=quantile, count=count),
        _images_for(
            rules.coverage_margin,
            coverage.standard_error,
            quantile=float(stats.norm.isf(rules.alpha)),
            count=count,
        ),
    )
    return _decided(checks, alpha=alpha, resolution=resolution, count=count, needed=needed)


def qualify(challenger: Evidence, reference: Reference, *, rules: GateRules) -> Comparison:
    """Decides whether a generator may be the first champion, by absolute floors.

    It keeps out what is no generator of this data: collapsed, diverged, or a copy of it. How good
    a champion is, the next one has to say. Raises ConfigError as `compare` does.
    """
    _check_images(challenger, reference, rules=rules)
    measures, alpha = challenger.measures, rules.alpha
    checks = (
        distance_floor(
            challenger.frechet.corrected,
            trace=reference.frechet.side.trace,
            share=rules.max_distance,
            alpha=alpha,
            num_groups=reference.num_groups,
        ),
        floor("coverage", measures.coverage, limit=rules.min_coverage, alpha=alpha),
        floor("diversity", measures.diversity, limit=rules.min_diversity, alpha=alpha),
        memorization_check(
            measures.memorization, alpha=alpha, tolerance=rules.memorization_tolerance
        ),
    )
    # So near to a floor more images may tell; these floors hold no level, so a look costs none.
    open_ones = any(c.passed is None for c in checks)
    count = measures.num_images
    return _decided(
        checks, alpha=alpha, resolution=0.0, count=count, needed=count * (1 + open_ones)
    )


def _decided(
    checks: tuple[Check, ...], *, alpha: float, resolution: float, count: int, needed: int
) -> Comparison:
    failed = [c for c in checks if c.passed is False]
    unclear = [c for c in checks if c.passed is None]
    outcome: Outcome = "rejected" if failed else "unresolved" if unclear else "promoted"
    reason = "; ".join(c.sentence for c in failed or unclear) or "every check holds"
    return Comparison(
        outcome=outcome,
        reason=reason,
        checks=checks,
        alpha=alpha,
        resolution=resolution,
        num_images=count,
        images_needed=needed,
    )


def _images_for(worth: float, error: float, *, quantile: float, count: int) -> int:
    """Images with which a difference of `worth` is found with POWER, if `count` give `error`.

    Errors fall with the root of the number. Where nothing is worth finding, none are needed.
    """
    if worth == 0:
        return count
    wanted = worth / (quantile + float(stats.norm.ppf(POWER)))
    return max(1, math.ceil(count * (error / wanted) ** 2))


def _check_images(evidence: Evidence, reference: Reference, *, rules: GateRules) -> None:
    dim = reference.features.shape[1]
    least = IMAGES_PER_DIM * dim
    check(
        (
            reference.num_groups == rules.groups == len(evidence.frechet.groups),
            f"groups must be the {rules.groups} of the rules throughout, got "
            f"{reference.num_groups} of the real images and {len(evidence.frechet.groups)} of "
            f"the generated",
        ),
        *(
            (
                count >= least,
                f"a promotion needs at least {IMAGES_PER_DIM} {whose} images for each of the "
                f"{dim} features, {least}, got {count}",
            )
            for whose, count in (
                ("generated", evidence.measures.num_images),
                ("real", evidence.measures.num_reference),
            )
        ),
    )
