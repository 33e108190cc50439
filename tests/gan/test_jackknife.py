"""Bias-corrected Frechet distances against closed forms, and how often comparing them errs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from gan.jackknife import MIN_GROUPS, corrected_frechet, frechet_advantage, sum_of
from gan.metrics import FeatureMoments, frechet_distance

GROUPS = 10
# Two generators of equal true distance from N(0, I): one shrunk (collapsing), one too wide.
DISTANCE, DIM, COUNT = 4.0, 16, 160
SHRUNK = 1 - (DISTANCE / DIM) ** 0.5
INFLATED = 1 + (DISTANCE / DIM) ** 0.5


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


def promoted_share(scale_champion: float, scale_challenger: float, *, shared: bool, seed: int):
    """Shares of 400 comparisons that promote: corrected at one-sided 5 %, and plug-in."""
    rng = torch.Generator().manual_seed(seed)
    quantile = stats.t.ppf(0.95, GROUPS - 1)
    corrected = plug_in = 0
    for _ in range(400):
        z = torch.randn(COUNT, DIM, generator=rng, dtype=torch.float64)
        fresh = torch.randn(COUNT, DIM, generator=rng, dtype=torch.float64)
        # A tenth of the noise stays private, as two generators at one latent would have it.
        other = 0.9**0.5 * z + 0.1**0.5 * fresh if shared else fresh
        a, b = groups_of(scale_champion * z), groups_of(scale_challenger * other)
        real = normal(rng)
        estimate = frechet_advantage(a, b, real)
        corrected += estimate.value > quantile * estimate.standard_error
        plug_in += frechet_distance(sum_of(b), sum_of(real)) < frechet_distance(
            sum_of(a), sum_of(real)
        )
    return corrected / 400, plug_in / 400


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True], ids=["fresh latents", "common latents"])
def test_a_generator_against_its_equal_is_promoted_about_one_time_in_twenty(shared):
    corrected, _ = promoted_share(SHRUNK, SHRUNK, shared=shared, seed=1)
    assert 0.025 <= corrected <= 0.08  # 400 draws know a true 5 % to 1.1 %


@pytest.mark.slow
def test_a_collapsed_generator_of_equal_distance_is_no_better_by_the_corrected_test():
    corrected, plug_in = promoted_share(INFLATED, SHRUNK, shared=False, seed=2)
    assert corrected <= 0.08
    assert plug_in > 0.8  # the trap that a comparison of plug-in values falls into


def test_too_few_or_unequal_groups_are_refused():
    rng = torch.Generator().manual_seed(3)
    a = normal(rng)
    with pytest.raises(ValueError, match=f"at least {MIN_GROUPS} groups"):
        corrected_frechet(a[: MIN_GROUPS - 1], a[: MIN_GROUPS - 1])
    with pytest.raises(ValueError, match="as many of each sample, got 10, 9"):
        corrected_frechet(a, a[1:])
