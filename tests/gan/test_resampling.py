"""Filters against interpolation by hand, and against each other."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gan.networks.resampling import Filter

TAPS = [(1, 2, 1), (1, 3, 3, 1)]


def test_three_taps_put_the_mean_of_two_neighbours_between_them():
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    twice = Filter(1, 2, 1).double().doubled(x)
    torch.testing.assert_close(twice[..., ::2, ::2], x)
    between = (x[..., :, :-1] + x[..., :, 1:]) / 2
    torch.testing.assert_close(twice[..., ::2, 1:-1:2], between)
    corners = (between[..., :-1, :] + between[..., 1:, :]) / 2
    torch.testing.assert_close(twice[..., 1:-1:2, 1:-1:2], corners)


def test_four_taps_are_bilinear_interpolation_but_for_the_border():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    twice = Filter(1, 3, 3, 1).double().doubled(x)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(twice[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


@pytest.mark.parametrize("taps", TAPS)
def test_an_even_picture_stays_even_at_half_and_at_twice_the_size(taps):
    x = torch.ones(1, 2, 8, 8)
    for resized in (Filter(*taps).halved(x), Filter(*taps).doubled(x)):
        inner = resized[..., 1:-1, 1:-1]
        torch.testing.assert_close(inner, torch.ones_like(inner))


@pytest.mark.parametrize("taps", TAPS)
def test_halving_is_the_transpose_of_doubling_over_four(taps):
    """<halved(x), y> = <x, doubled(y)> / 4 for any x and y."""
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    y = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    kernel = Filter(*taps).double()
    one, other = (kernel.halved(x) * y).sum(), (x * kernel.doubled(y)).sum() / 4
    torch.testing.assert_close(one, other)
