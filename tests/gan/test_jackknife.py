"""Bias-corrected Frechet distances and their errors, against closed forms and recomputation.

How often comparing two of them errs is in tests/pipeline/test_gate_rates.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gan.frechet import frechet_distance
from gan.jackknife import (
    MIN_GROUPS,
    corrected_frechet,
    frechet_advantage,
    grouped,
    jackknife,
    relative_spread,
    sum_of,
)
from gan.moments import FeatureMoments

GROUPS = 10
# A generator at a known distance from N(0, I): one that is collapsing.
DISTANCE, DIM, COUNT = 4.0, 16, 160
SHRUNK = 1 - (DISTANCE / DIM) ** 0.5


def groups_of(x: torch.Tensor, count: int = GROUPS) -> list[FeatureMoments]:
    groups = []
    for rows in x.chunk(count):
        moments = FeatureMoments.zeros(x.shape[1], for_kid=False)
        moments.add(rows)
        groups.append(moments)
    return groups


def normal(rng: torch.Generator, scale: float = 1.0) -> list[FeatureMoments]:
    return groups_of(scale * torch.randn(COUNT, DIM, generator=rng, dtype=torch.float64))


def test_groups_add_up_and_are_taken_out_again():
    x = torch.randn(60, 4, dtype=torch.float64)
    parts = groups_of(x)
    whole, rest = sum_of(groups_of(x, 1)), sum_of(groups_of(x[6:], 1))
    left = sum_of(parts).without(parts[0])
    torch.testing.assert_close(sum_of(parts).covariance, whole.covariance)
    torch.testing.assert_close(left.covariance, rest.covariance)
    assert left.count == 54


def test_the_correction_leaves_the_closed_form_where_the_plug_in_is_far_off():
    """W2^2 of N(0, s^2 I) and N(0, I) is d (s - 1)^2; both sides are finite samples."""
    rng = torch.Generator().manual_seed(0)
    pairs = [(normal(rng, SHRUNK), normal(rng)) for _ in range(60)]
    plug_in = np.array([frechet_distance(sum_of(a), sum_of(b)) for a, b in pairs])
    corrected = [corrected_frechet(a, b) for a, b in pairs]
    values = np.array([estimate.value for estimate in corrected])
    error_of_mean = values.std(ddof=1) / len(values) ** 0.5
    assert abs(values.mean() - DISTANCE) < 4 * error_of_mean
    assert plug_in.mean() - DISTANCE > 8 * error_of_mean
    # The stated error is that of repeated draws (60 of them know it to about a tenth).
    stated = np.mean([estimate.standard_error for estimate in corrected])
    assert stated == pytest.approx(values.std(ddof=1), rel=0.35)


def test_deletions_agree_with_recomputing_each_distance_from_the_images_left():
    rng = torch.Generator().manual_seed(4)
    x, y = (torch.randn(n, 5, generator=rng, dtype=torch.float64) + 3 for n in (103, 120))
    values = [frechet_distance(sum_of(grouped(x, 10)), sum_of(grouped(y, 10)))]
    for k in range(10):
        kept = [side[torch.arange(len(side)) % 10 != k] for side in (x, y)]
        values.append(frechet_distance(*(sum_of(groups_of(side, 1)) for side in kept)))
    expected = jackknife(torch.tensor(values, dtype=torch.float64))
    estimate = corrected_frechet(grouped(x, 10), grouped(y, 10))
    assert estimate.value == pytest.approx(expected.value, rel=1e-8)
    assert estimate.standard_error == pytest.approx(expected.standard_error, rel=1e-8)


def test_the_advantage_is_the_difference_of_corrected_distances():
    rng = torch.Generator().manual_seed(5)
    a, b, real = normal(rng, 1.2), normal(rng, 0.9), normal(rng)
    difference = corrected_frechet(a, real).value - corrected_frechet(b, real).value
    assert frechet_advantage(a, b, real).value == pytest.approx(difference, rel=1e-9)


def test_images_at_one_latent_fall_in_one_group():
    x = torch.arange(46, dtype=torch.float64)[:, None].expand(-1, 2)
    groups = grouped(x, 10)
    assert [g.count.item() for g in groups] == [5] * 6 + [4] * 4
    assert groups[3].first[0] == 3 + 13 + 23 + 33 + 43


def test_the_jackknife_of_a_mean_is_the_mean_and_its_usual_error():
    x = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    without = [x[torch.arange(30) != k].mean() for k in range(30)]
    estimate = jackknife(torch.stack([x.mean(), *without]))
    assert estimate.value == pytest.approx(x.mean().item())
    assert estimate.standard_error == pytest.approx(x.std().item() / 30**0.5)


def test_diversity_is_the_ratio_of_mean_squared_pairwise_distances():
    rng = torch.Generator().manual_seed(7)
    x, y = (scale * torch.randn(200, 6, generator=rng).double() for scale in (0.5, 1.0))
    ratio = torch.pdist(x).square().mean() / torch.pdist(y).square().mean()
    estimate = relative_spread(grouped(x, 20), grouped(y, 20))
    assert estimate.value == pytest.approx(ratio.item(), rel=0.01)  # less its small bias
    assert abs(estimate.value - 0.25) < 4 * estimate.standard_error
    # Var of a sample variance is 2 s^4 / (n - 1) for a normal law, over d independent features.
    expected = 0.25 * (2 / (199 * 6) * 2) ** 0.5
    assert estimate.standard_error == pytest.approx(expected, rel=0.4)


def test_too_few_or_unequal_groups_are_refused():
    rng = torch.Generator().manual_seed(3)
    a = normal(rng)
    with pytest.raises(ValueError, match=f"at least {MIN_GROUPS} groups"):
        corrected_frechet(a[: MIN_GROUPS - 1], a[: MIN_GROUPS - 1])
    with pytest.raises(ValueError, match="got 10 of the generated and 9 of the real"):
        corrected_frechet(a, a[1:])


def test_too_few_images_for_the_groups_and_features_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="20 groups need at least 40 images, got 39"):
        grouped(torch.zeros(39, 2), 20)
    bad = torch.zeros(40, 2)
    bad[5, 1] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        grouped(bad, 20)
