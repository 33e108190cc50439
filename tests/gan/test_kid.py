"""KID against brute force, and its stated error against repeated draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gan import kid as kid_module
from gan.influence import difference_error
from gan.kid import KernelReference, kid, kid_influence
from tests.gan.features import moments_of, normal


def kernel(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3


def u_statistic(x, y) -> float:
    """The definition: means over all pairs of different images."""
    m, n = len(x), len(y)
    return float(
        (kernel(x, x).sum() - kernel(x, x).trace()) / (m * (m - 1))
        + (kernel(y, y).sum() - kernel(y, y).trace()) / (n * (n - 1))
        - 2 * kernel(x, y).mean()
    )


def test_both_forms_equal_the_u_statistic_over_all_pairs():
    x, y = normal(40, 7, seed=0), normal(30, 7, seed=1) + 0.5
    expected = u_statistic(x, y)
    assert kid(moments_of(x), moments_of(y)) == pytest.approx(expected, rel=1e-10)
    assert kid_influence(x, KernelReference.of(y)).value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("block_values", [1, 100, 450])
def test_blocks_of_any_size_give_the_same(block_values, monkeypatch):
    x, y = normal(40, 7, seed=0), normal(30, 7, seed=1) + 0.5
    whole = kid_influence(x, KernelReference.of(y))
    monkeypatch.setattr(kid_module, "BLOCK_VALUES", block_values)
    blocked = kid_influence(x, KernelReference.of(y))
    assert blocked.value == pytest.approx(whole.value, rel=1e-12)
    torch.testing.assert_close(blocked.fake, whole.fake, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(blocked.real, whole.real, rtol=1e-10, atol=1e-12)


def test_the_influence_of_an_image_is_what_leaving_it_out_changes():
    x, y = normal(200, 4, seed=2), normal(150, 4, seed=3) + 0.3
    influence = kid_influence(x, KernelReference.of(y))
    for image in (0, 50, 199):
        left = torch.arange(200) != image
        change = (len(x) - 1) * (influence.value - u_statistic(x[left], y))
        assert influence.fake[image].item() == pytest.approx(change, rel=0.05, abs=0.02)


def test_kid_of_equal_distributions_is_zero_on_average():
    pairs = [(normal(50, 3, seed=2 * k), normal(50, 3, seed=2 * k + 1)) for k in range(200)]
    values = torch.tensor([kid(moments_of(a), moments_of(b)) for a, b in pairs])
    standard_error = values.std() / len(values) ** 0.5
    assert abs(values.mean()) < 4 * standard_error


def test_the_stated_error_is_that_of_repeated_draws():
    """Of one KID and of a difference at common latents; 200 draws know a deviation to 5 %."""
    single, difference, stated_single, stated_difference = [], [], [], []
    for seed in range(200):
        z, own, y = (normal(200, 8, seed=3 * seed + k) for k in range(3))
        real = KernelReference.of(y)
        first = kid_influence(z + 0.5, real)
        second = kid_influence(0.9**0.5 * z + 0.1**0.5 * own + 0.6, real)
        single.append(first.value)
        difference.append(first.value - second.value)
        stated_single.append(first.standard_error)
        stated_difference.append(difference_error(first, second, paired=True))
    assert np.mean(stated_single) == pytest.approx(np.std(single), rel=0.15)
    assert np.mean(stated_difference) == pytest.approx(np.std(difference), rel=0.15)


def test_near_equality_the_stated_error_is_too_large_rather_than_too_small():
    values, stated = [], []
    for seed in range(100):
        measured = kid_influence(
            normal(100, 8, seed=2 * seed), KernelReference.of(normal(100, 8, seed=2 * seed + 1))
        )
        values.append(measured.value)
        stated.append(measured.standard_error)
    assert np.mean(stated) > np.std(values)


def test_features_that_are_no_numbers_are_refused():
    bad = torch.tensor([[1.0, float("inf")], [0.0, 0.0]])
    with pytest.raises(ValueError, match="must be finite"):
        KernelReference.of(bad)
    with pytest.raises(ValueError, match="must be finite"):
        kid_influence(bad, KernelReference.of(torch.randn(5, 2)))
