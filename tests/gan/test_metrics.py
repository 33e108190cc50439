"""Moments: they do not depend on who looked at which image, and say where they cannot serve."""

from __future__ import annotations

import pytest
import torch

from gan.metrics import frechet_distance, kid
from gan.moments import GRAM_BLOCK, MAX_KID_DIM
from tests.gan.features import correlated, moments_of


def test_moments_do_not_depend_on_how_the_images_are_split():
    x, y = correlated(101, 5, seed=0), correlated(80, 5, seed=1)
    whole, split = moments_of(x), moments_of(x[:1], x[1:40], x[40:])
    real = moments_of(y)
    assert frechet_distance(split, real) == pytest.approx(frechet_distance(whole, real), rel=1e-9)
    assert kid(split, real) == pytest.approx(kid(whole, real), rel=1e-9)


def test_shares_of_odd_sizes_merge_to_the_same_distance():
    """What a reduction over workers adds up, worker by worker."""
    x, y = correlated(1009, 24, seed=0), correlated(997, 24, seed=1)
    real = moments_of(y)
    expected = frechet_distance(moments_of(x), real)
    for world_size in (2, 3, 7):
        parts = [moments_of(x[rank::world_size]) for rank in range(world_size)]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.together_with(part)
        assert frechet_distance(whole, real) == pytest.approx(expected, rel=1e-9)
        assert kid(whole, real) == pytest.approx(kid(moments_of(x), real), rel=1e-9)


def test_wide_second_moments_are_the_gram_matrix_though_each_pair_is_taken_once():
    x = correlated(40, 2 * GRAM_BLOCK + 7, seed=2)
    torch.testing.assert_close(moments_of(x, for_kid=False).second, x.T @ x)


def test_features_that_are_no_numbers_and_too_few_images_are_refused():
    good = moments_of(torch.randn(10, 2))
    for measure in (frechet_distance, kid):
        with pytest.raises(ValueError, match="must be finite"):
            measure(moments_of(torch.tensor([[1.0, float("nan")], [0.0, 0.0]])), good)
        with pytest.raises(ValueError, match="at least 2 images"):
            measure(moments_of(torch.randn(1, 2)), good)


def test_kid_is_left_out_where_the_third_moment_would_be_too_large():
    wide = MAX_KID_DIM + 1
    assert kid(moments_of(torch.randn(3, wide)), moments_of(torch.randn(3, wide))) is None
