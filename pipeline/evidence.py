"""Generated images judged against real ones: all measures, and what a comparison of two takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gan.config import check
from gan.frechet import Side, frechet_influence, tail_weight
from gan.influence import Influence
from gan.jackknife import (
    MIN_GROUPS,
    RealDeletions,
    corrected_frechet,
    frechet_deletions,
    grouped,
    jackknife,
    relative_spread,
    sum_of,
)
from gan.kid import KernelReference, kid_influence
from gan.moments import FeatureMoments
from gan.neighbours import Manifold, Overlap, TrainingSet, coverage_error, overlap
from pipeline.measures import ClassMeasures, Measure, Measures, memorization

NUM_GROUPS = 20
IMAGES_PER_DIM = 5  # fewer, and the jackknife's correction of the Frechet distance is not tested
MIN_CLASS_IMAGES = 20  # of each side; fewer say nothing of a class


@dataclass(frozen=True, slots=True)
class FrechetReference:
    """Real images as the Frechet distances of several generators need them."""

    features: Tensor  # (m, d)
    groups: list[FeatureMoments]
    side: Side
    deletions: RealDeletions

    @classmethod
    def of(cls, features: Tensor, *, num_groups: int = NUM_GROUPS) -> FrechetReference:
        """Raises ValueError for too few images and features that are not finite."""
        groups = grouped(features, num_groups)
        return cls(features, groups, Side.of(sum_of(groups)), RealDeletions.of(groups))

    @property
    def images_for_tails(self) -> int:
        """Generated images with which the Frechet check keeps its level: 5 a feature, more where
        whole images lie far out.

        5 d times the square of the tail weight: with radial Student t tails (weight 2) the level
        of 5 % is 10 % at 5 d images and 6 % at 20 d (MEASUREMENTS.md).
        """
        weight = max(1.0, tail_weight(self.features, self.side))
        return math.ceil(IMAGES_PER_DIM * self.features.shape[1] * weight**2)


@dataclass(frozen=True, slots=True)
class FrechetEvidence:
    """A generator's distance with each group left out, and with each image's influence."""

    groups: list[FeatureMoments]
    deletions: Tensor
    influence: Influence

    @classmethod
    def of(cls, features: Tensor, real: FrechetReference) -> FrechetEvidence:
        """Raises ValueError for too few images and features that are not finite."""
        groups = grouped(features, len(real.groups))
        return cls(
            groups,
            frechet_deletions(groups, real.deletions),
            frechet_influence(features, real.features, real.side),
        )

    @property
    def corrected(self) -> Measure:
        """Without first-order bias; its error is the larger of jackknife's and influence's."""
        estimate = jackknife(self.deletions)
        error = max(estimate.standard_error, self.influence.standard_error)
        return Measure.of(estimate.value, error, num_groups=estimate.num_groups)


@dataclass(frozen=True, slots=True)
class Reference:
    """The real images with everything about them that all comparisons share; made once.

    `training` is what a generator may have copied. Where it is given, the real images are others,
    which no generator was trained on, and say what nearness is chance; else the real images are
    the training set and are compared with each other.
    """

    labels: Tensor | None
    frechet: FrechetReference
    kernel: KernelReference
    class_kernels: dict[int, KernelReference]
    manifold: Manifold
    training: TrainingSet

    @classmethod
    def of(
        cls,
        features: Tensor,
        labels: Tensor | None = None,
        *,
        training: Tensor | None = None,
        num_groups: int = NUM_GROUPS,
    ) -> Reference:
        """From features (m, d) and labels (m,), -1 for none; `training` is (t, d) features.

        Raises ConfigError for features that are not finite and for too few images.
        """
        check_features("real", features, labels, num_groups=num_groups)
        if training is not None:
            check_features("training", training, None, num_groups=num_groups)
        held_out = None if training is None else features
        return cls(
            labels,
            FrechetReference.of(features, num_groups=num_groups),
            KernelReference.of(features),
            {
                label: KernelReference.of(features[rows])
                for label, rows in class_rows(labels).items()
                if rows.sum() >= MIN_CLASS_IMAGES
            },
            Manifold.of(features),
            TrainingSet.of(features if training is None else training, held_out=held_out),
        )

    @property
    def features(self) -> Tensor:
        """Features of the real images (m, d)."""
        return self.frechet.features

    @property
    def num_groups(self) -> int:
        """Groups of the jackknife."""
        return len(self.frechet.groups)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A generator's measures, and image by image what a comparison of two generators needs."""

    measures: Measures
    labels: Tensor | None
    frechet: FrechetEvidence
    kid: Influence
    class_kids: dict[int, Influence]
    overlap: Overlap
    ratios: Tensor  # (n,): distance to the nearest training image over the second nearest


def judge(features: Tensor, labels: Tensor | None, reference: Reference) -> Evidence:
    """Measures a generator's images, given as features (n, d) and labels (n,), -1 for none.

    Raises ConfigError for features that are not finite, of another length than the reals', and
    for too few images.
    """
    check_features("generated", features, labels, num_groups=reference.num_groups)
    dim, expected = features.shape[1], reference.features.shape[1]
    check((dim == expected, f"generated images must have {expected} features each, got {dim}"))
    frechet = FrechetEvidence.of(features, reference.frechet)
    found = overlap(Manifold.of(features), reference.manifold)
    kid = kid_influence(features, reference.kernel)
    class_kids = {
        label: kid_influence(features[rows], reference.class_kernels[label])
        for label, rows in class_rows(labels).items()
        if label in reference.class_kernels and rows.sum() >= MIN_CLASS_IMAGES
    }
    ratios = reference.training.copied(features)
    spread = relative_spread(frechet.groups, reference.frechet.groups)
    covered = Measure.of(found.covered.double().mean().item(), coverage_error(found))
    influence = frechet.influence
    measures = Measures(
        num_images=len(features),
        num_reference=len(reference.features),
        fd_plug_in=Measure.of(influence.value, influence.standard_error),
        fd=frechet.corrected if _enough(features, reference.features) else None,
        kid=Measure.of(kid.value, kid.standard_error),
        precision=Measure.mean_of(found.precise),
        recall=Measure.mean_of(found.recalled),
        density=Measure.mean_of(found.density),
        coverage=covered,
        diversity=Measure.of(spread.value, spread.standard_error, num_groups=reference.num_groups),
        memorization=memorization(ratios, reference.training.calibration),
        classes=_classes(features, labels, reference, found=found, kids=class_kids),
    )
    return Evidence(measures, labels, frechet, kid, class_kids, found, ratios)


def measure(features: Tensor, labels: Tensor | None, reference: Reference) -> Measures:
    """Every measure of a generator's images with its error; raises ConfigError as `judge` does."""
    return judge(features, labels, reference).measures


def class_rows(labels: Tensor | None) -> dict[int, Tensor]:
    """For each label which images have it, as a mask; nothing for images without labels."""
    if labels is None:
        return {}
    return {int(c): labels == c for c in labels.unique() if c >= 0}


def _classes(
    features: Tensor,
    labels: Tensor | None,
    reference: Reference,
    *,
    found: Overlap,
    kids: dict[int, Influence],
) -> tuple[ClassMeasures, ...]:
    fakes = class_rows(labels)
    rows = []
    for label, real in class_rows(reference.labels).items():
        fake = fakes.get(label, torch.zeros(len(features), dtype=torch.bool))
        fd = None
        if _enough(features[fake], reference.features[real]):
            groups = [
                grouped(x, reference.num_groups)
                for x in (features[fake], reference.features[real])
            ]
            estimate = corrected_frechet(*groups)
            fd = Measure.of(
                estimate.value, estimate.standard_error, num_groups=estimate.num_groups
            )
        kid = kids.get(label)
        rows.append(
            ClassMeasures(
                label,
                int(fake.sum()),
                int(real.sum()),
                fd,
                Measure.of(kid.value, kid.standard_error) if kid else None,
                Measure.mean_of(found.covered[real]),
            )
        )
    return tuple(rows)


def _enough(*sides: Tensor) -> bool:
    """Whether the corrected Frechet distance of these features means something."""
    return all(len(x) >= max(IMAGES_PER_DIM * x.shape[1], 2 * NUM_GROUPS) for x in sides)


def check_features(
    whose: str, features: Tensor, labels: Tensor | None, *, num_groups: int
) -> None:
    """Raises one ConfigError where nothing can be measured on these features."""
    check(
        (
            features.ndim == 2,
            f"features of {whose} images must be a matrix, got {features.ndim} dimensions",
        ),
        (
            num_groups >= MIN_GROUPS,
            f"groups of the jackknife must be >= {MIN_GROUPS}, got {num_groups}",
        ),
        (
            len(features) >= 2 * num_groups,
            f"{num_groups} groups need at least {2 * num_groups} {whose} images, "
            f"got {len(features)}",
        ),
        (
            bool(torch.isfinite(features).all()),
            f"features of {whose} images must be finite, got NaN or infinity in "
            f"{int((~torch.isfinite(features)).reshape(len(features), -1).any(1).sum())} of "
            f"{len(features)}: the generator or the extractor diverged",
        ),
        (
            labels is None or len(labels) == len(features),
            f"labels must be one for each of the {len(features)} {whose} images, "
            f"got {0 if labels is None else len(labels)}",
        ),
    )
