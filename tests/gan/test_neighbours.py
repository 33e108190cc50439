"""Nearest neighbours against brute force over all pairs, known cases and exchangeable draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan import neighbours
from gan.neighbours import (
    COVERAGE_K,
    PRECISION_K,
    Manifold,
    TrainingSet,
    coverage_error,
    nearest,
    nearest_others,
    overlap,
)
from tests.gan.features import normal


def kth_nearest(x, k):
    """Distance of each to its k-th nearest other, by sorting all."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.fill_diagonal_(torch.inf).sort(1).values[:, k - 1]


@settings(deadline=None, max_examples=25)
@given(n=st.integers(7, 40), m=st.integers(7, 40), seed=st.integers(0, 99))
def test_indicators_equal_brute_force_over_all_pairs(n, m, seed):
    fake, real = normal(n, 3, seed=seed), 1.2 * normal(m, 3, seed=seed + 1)
    found = overlap(Manifold.of(fake), Manifold.of(real))
    distances = torch.cdist(fake, real, compute_mode="donot_use_mm_for_euclid_dist")
    in_real = distances <= kth_nearest(real, COVERAGE_K)
    assert torch.equal(found.precise, (distances <= kth_nearest(real, PRECISION_K)).any(1))
    beyond_fake = (distances > kth_nearest(fake, PRECISION_K)[:, None]).T
    assert torch.equal(found.recalled, ~beyond_fake.all(1))
    assert torch.equal(found.nearest_fake, distances.argmin(0))
    torch.testing.assert_close(found.density, in_real.sum(1).double() / COVERAGE_K)
    assert torch.equal(found.covered, in_real.any(0))


def test_blocks_of_any_size_find_the_same(monkeypatch):
    x, y = normal(50, 4, seed=0), normal(60, 4, seed=1)
    whole = nearest(x, y, count=3), nearest_others(y, count=4)
    monkeypatch.setattr(neighbours, "BLOCK_VALUES", 130)
    blocked = nearest(x, y, count=3), nearest_others(y, count=4)
    for a, b in zip(whole, blocked, strict=True):
        assert torch.equal(a.index, b.index)
        torch.testing.assert_close(a.distance, b.distance)
    distances = torch.cdist(x, y)
    assert torch.equal(whole[0].index, distances.sort(1).indices[:, :3])


def test_a_set_lies_wholly_in_itself_and_nowhere_in_a_far_one():
    x = normal(300, 5, seed=2)
    same = overlap(Manifold.of(x), Manifold.of(x.clone()))
    assert same.precise.all()
    assert same.recalled.all()
    assert same.covered.all()
    # Every point lies in its own ball, and in those of the points whose 5 nearest it is among.
    assert same.density.mean().item() == pytest.approx((COVERAGE_K + 1) / COVERAGE_K)
    far = overlap(Manifold.of(x + 100), Manifold.of(x))
    assert not far.precise.any()
    assert not far.recalled.any()
    assert not far.covered.any()
    assert far.density.sum() == 0


def test_equal_distributions_are_covered_as_often_as_naeem_et_al_derive():
    """Their eq. 9: coverage of equal distributions is 1 - C(n - 1, k) / C(n + m - 1, k) at most,
    about 1 - 2^-k; density is 1.
    """
    found = overlap(Manifold.of(normal(2000, 6, seed=3)), Manifold.of(normal(2000, 6, seed=4)))
    assert found.covered.double().mean().item() == pytest.approx(1 - 2**-COVERAGE_K, abs=0.015)
    assert found.density.mean().item() == pytest.approx(1, abs=0.06)


def test_a_collapsed_generator_is_precise_but_covers_little():
    real = normal(1000, 4, seed=5)
    found = overlap(Manifold.of(0.05 * normal(1000, 4, seed=6)), Manifold.of(real))
    assert found.precise.double().mean() > 0.95
    assert found.recalled.double().mean() < 0.05
    assert found.covered.double().mean() < 0.2


def test_the_error_of_coverage_is_that_of_repeated_draws_where_pairs_alone_understate_it():
    values, stated, by_pairs, single, stated_single = [], [], [], [], []
    for seed in range(100):
        z, other, y = (normal(400, 3, seed=3 * seed + k) for k in range(3))
        real = Manifold.of(y)
        first, second = (overlap(Manifold.of(x), real) for x in (0.8 * z, 0.7 * other))
        gain = first.covered.double() - second.covered.double()
        values.append(gain.mean().item())
        by_pairs.append(gain.std().item() / 20)
        stated.append(coverage_error(first, less=second))
        single.append(first.covered.double().mean().item())
        stated_single.append(coverage_error(first))
    # 100 draws know a deviation to 7 %.
    assert np.mean(stated) == pytest.approx(np.std(values), rel=0.25)
    assert np.mean(stated_single) == pytest.approx(np.std(single), rel=0.3)
    assert np.mean(by_pairs) < 0.85 * np.mean(stated)


def test_copies_lie_at_distance_zero_and_have_the_copied_image_as_nearest():
    train = normal(500, 16, seed=7) + 50  # far from the origin, where |x|^2 + |y|^2 - 2 x.y rounds
    found = nearest(train[100:120], train)
    assert found.index[:, 0].tolist() == list(range(100, 120))
    assert (found.distance == 0).all()


def test_a_fresh_image_is_called_a_copy_as_often_as_a_training_image_that_lies_no_nearer():
    """Exchangeable images: with or without held-out ones the 1 % quantile holds about 1 %."""
    for scale, dim in ((1.0, 8), (3.0, 32)):
        train, held_out, fresh = (
            scale * normal(3000, dim, seed=8 + k) ** 3 for k in range(3)
        )  # heavy tails: density differs from place to place
        for known in (TrainingSet.of(train), TrainingSet.of(train, held_out=held_out)):
            threshold = known.calibration.quantile(0.1)
            share = (known.copied(fresh) <= threshold).double().mean().item()
            assert share == pytest.approx(0.1, abs=4 * (2 * 0.1 * 0.9 / 3000) ** 0.5)


def test_copied_training_images_are_found_with_a_little_noise_too():
    train = normal(2000, 16, seed=11)
    known = TrainingSet.of(train)
    threshold = known.calibration.quantile(0.01)
    assert (known.copied(train[:100]) == 0).all()
    noisy = train[:200] + 0.1 * normal(200, 16, seed=12)
    assert (known.copied(noisy) <= threshold).double().mean() > 0.95


def test_smooth_typical_images_are_no_copies():
    """Drawn half as wide as the data: nearer to everything, nearest to nothing in particular."""
    known = TrainingSet.of(normal(2000, 64, seed=13))
    typical = 0.5 * normal(1000, 64, seed=14)
    share = (known.copied(typical) <= known.calibration.quantile(0.01)).double().mean()
    assert share < 0.04


def test_second_copies_in_the_training_set_hide_nothing():
    train = normal(300, 8, seed=15)
    doubled = TrainingSet.of(torch.cat([train, train[:150], train[:10]]))
    assert torch.equal(doubled.features, train)
    assert doubled.number.tolist() == list(range(300))
    assert (doubled.copied(train[:150]) == 0).all()
    torch.testing.assert_close(doubled.calibration, TrainingSet.of(train).calibration)


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="5 neighbours need more than 5 images, got 5"):
        Manifold.of(torch.randn(5, 2))
    with pytest.raises(ValueError, match="must be finite"):
        Manifold.of(torch.full((20, 2), float("nan")))
