"""Scores in training, against closed forms, brute force and repeated draws."""

from __future__ import annotations

import pytest
import torch

from gan.frechet import frechet_distance
from gan.jackknife import grouped
from gan.kid import KernelReference, fake_influence, kid, kid_influence
from gan.tally import NUM_GROUPS, WIDE, RealSide, Tally
from gan.world import World
from tests.gan.features import moments_of, normal

DIM, COUNT, SCALE = 12, 200, 0.6


def tallied(x: torch.Tensor, *, block: int = 100) -> Tally:
    tally = Tally(x.shape[1], num_images=len(x))
    for start in range(0, len(x), block):
        tally.add(x[start : start + block], first=start)
    return tally


@pytest.fixture(scope="module")
def real() -> RealSide:
    mixed = normal(150, DIM, seed=1) @ torch.linspace(0.2, 1.5, DIM).double().diag()
    return RealSide.of(moments_of(mixed + 0.3))


@pytest.fixture(scope="module")
def repeated(real) -> dict[str, torch.Tensor]:
    """Every measure of 200 images of N(0, SCALE^2 I), for 150 draws of them."""
    found = [
        tallied(SCALE * normal(COUNT, DIM, seed=100 + k)).measures(real, World())
        for k in range(150)
    ]
    return {name: torch.tensor([one[name] for one in found]) for name in found[0]}


def test_the_corrected_distance_is_the_closed_form_given_the_reals(real, repeated):
    """W2^2 of N(0, s^2 I) and N(m, C): |m|^2 + s^2 d + tr C - 2 s tr C^(1/2)."""
    m, c = real.moments.mean, real.moments.covariance
    root = torch.linalg.eigvalsh(c).sqrt().sum()
    expected = (m.square().sum() + SCALE**2 * DIM + c.trace() - 2 * SCALE * root).item()
    error = repeated["fd_corrected"].std().item() / 150**0.5
    assert abs(repeated["fd_corrected"].mean().item() - expected) < 4 * error
    assert repeated["fd"].mean().item() - expected > 10 * error  # the plug-in one is far off


def test_diversity_is_the_ratio_of_the_spreads(real, repeated):
    expected = SCALE**2 * DIM / real.moments.covariance.trace().item()
    error = repeated["diversity"].std().item() / 150**0.5
    assert abs(repeated["diversity"].mean().item() - expected) < 4 * error


@pytest.mark.parametrize(
    ("value", "error"),
    [("fd_corrected", "fd_error"), ("kid", "kid_error"), ("diversity", "diversity_error")],
)
def test_stated_errors_are_those_of_repeated_draws(repeated, value, error):
    """150 draws know theirs to 6 %; the jackknife errs to the safe side (Efron & Stein 1981)."""
    stated = repeated[error].square().mean().sqrt().item()
    assert 0.9 < stated / repeated[value].std().item() < 1.25


def test_the_plug_in_values_are_those_of_all_images_at_once(real):
    x = SCALE * normal(COUNT, DIM, seed=5)
    found = tallied(x, block=33).measures(real, World())
    assert found["fd"] == pytest.approx(frechet_distance(moments_of(x), real.moments), rel=1e-12)
    assert found["kid"] == pytest.approx(kid(moments_of(x), real.moments), rel=1e-12)


@pytest.mark.parametrize(("count", "block"), [(20, 100), (203, 7), (200, 100), (1234, 100)])
def test_an_image_belongs_to_the_group_of_its_number_however_the_blocks_fall(real, count, block):
    x = normal(count, DIM, seed=6)
    tally = tallied(x, block=block)
    tally.measures(real, World())
    for ours, theirs in zip(tally.groups, grouped(x, NUM_GROUPS), strict=True):
        assert ours.count == theirs.count
        torch.testing.assert_close(ours.first, theirs.first)
        torch.testing.assert_close(ours.second, theirs.second)


def test_wide_features_are_judged_without_kid_and_in_fewer_groups():
    wide = WIDE + 8
    real = RealSide.of(moments_of(normal(700, wide, seed=7), for_kid=False))
    x = normal(1000, wide, seed=8)
    found = tallied(x).measures(real, World())
    assert found.keys() == {"fd", "fd_corrected", "fd_error", "diversity", "diversity_error"}
    assert found["fd"] == pytest.approx(frechet_distance(moments_of(x), real.moments), rel=1e-9)
    assert found["fd_corrected"] < found["fd"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_influence_on_kid_from_moments_is_that_from_all_pairs(dtype):
    x, y = normal(60, 7, seed=0) + 1, normal(50, 7, seed=1)
    h = fake_influence(x.to(dtype), moments_of(x), moments_of(y))
    expected = kid_influence(x, KernelReference.of(y)).fake
    rounding = 1e-10 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(h - h.mean(), expected, rtol=rounding, atol=rounding)


def test_the_error_of_kid_is_that_of_its_influence_and_a_thousand_images_know_it():
    y = normal(20, DIM, seed=1)
    for count, precision in ((500, 1e-9), (3000, 0.1)):
        x = normal(count, DIM, seed=9)
        h = kid_influence(x, KernelReference.of(y)).fake
        found = tallied(x).measures(RealSide.of(moments_of(y)), World())
        expected = (h.var() / count).sqrt().item()
        assert found["kid_error"] == pytest.approx(expected, rel=precision)


def test_reals_that_are_all_one_image_have_no_diversity_to_compare_with():
    real = RealSide.of(moments_of(torch.ones(30, DIM, dtype=torch.float64)))
    found = tallied(normal(40, DIM, seed=3)).measures(real, World())
    assert "diversity" not in found
    assert all(torch.tensor(list(found.values())).isfinite())
