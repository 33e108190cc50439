"""Counts of modes against mixtures whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from gan.modes import grid, of_classes, of_points, ring


def test_the_ring_and_the_grid_are_those_of_the_papers():
    assert ring().shape == (8, 2)
    torch.testing.assert_close(ring().norm(dim=1), torch.ones(8))
    steps = (ring() - ring().roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(steps, torch.full((8,), 2 * math.sin(math.pi / 8)))
    assert sorted(map(tuple, grid().tolist())) == [
        (float(x), float(y)) for x in range(-4, 5, 2) for y in range(-4, 5, 2)
    ]


def test_real_samples_find_every_mode_and_within_three_sigma_lie_what_rayleighs_law_says():
    """P(|x| < 3 sigma) = 1 - exp(-9/2) in the plane; the standard error of 50,000 is 0.05 %."""
    rng = torch.Generator().manual_seed(0)
    centres = grid()
    which = torch.randint(25, (50_000,), generator=rng)
    points = centres[which] + 0.05 * torch.randn(50_000, 2, generator=rng)
    modes = of_points(points, centres, sigma=0.05)
    assert (modes.found, modes.of) == (25, 25)
    assert modes.good == pytest.approx(1 - math.exp(-4.5), abs=0.002)
    assert modes.reverse_kl == pytest.approx(24 / 2 / 50_000, abs=1e-3)  # its bias


def test_kl_is_of_the_good_samples_modes_to_the_uniform_ones():
    centres = ring()
    far = torch.full((5, 2), 10.0)
    three_to_one = torch.cat([centres[:1].repeat(3, 1), centres[4:5], far])
    modes = of_points(three_to_one, centres, sigma=0.01)
    expected = 0.75 * math.log(0.75 * 8) + 0.25 * math.log(0.25 * 8)
    assert modes.found == 2
    assert modes.reverse_kl == pytest.approx(expected)
    assert modes.good == pytest.approx(4 / 9)
    assert of_points(centres, centres, sigma=0.01).reverse_kl == pytest.approx(0, abs=1e-12)
    one = of_points(centres[:1].repeat(9, 1), centres, sigma=0.01)
    assert one.reverse_kl == pytest.approx(math.log(8))


def test_samples_of_which_none_is_near_a_mode_find_none():
    modes = of_points(torch.full((3, 2), 7.0), ring(), sigma=0.01)
    assert (modes.found, modes.good, modes.reverse_kl) == (0, 0.0, math.inf)


def test_a_classifier_counts_every_sample_and_says_of_how_many_it_is_sure():
    classes = torch.tensor([0, 1, 1, 3])
    modes = of_classes(classes, torch.tensor([0.95, 0.5, 0.91, 0.9]), num_modes=4)
    assert (modes.found, modes.of, modes.good) == (3, 4, 0.5)
    assert modes.reverse_kl == pytest.approx(0.5 * math.log(2))  # shares 1/4, 1/2, 0, 1/4
