"""Distances between distributions against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from gan.metrics import MAX_KID_DIM, FeatureMoments, frechet_distance, kid


def moments_of(*pieces: torch.Tensor) -> FeatureMoments:
    moments = FeatureMoments.zeros(pieces[0].shape[1])
    for piece in pieces:
        moments.add(piece)
    return moments


def with_moments(mean: np.ndarray, covariance: np.ndarray, count: int = 500) -> torch.Tensor:
    """Samples whose sample mean and unbiased sample covariance are exactly these."""
    x = np.random.RandomState(0).standard_normal((count, len(mean)))
    x -= x.mean(0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return torch.from_numpy(whitened @ np.linalg.cholesky(covariance).T + mean)


def test_the_frechet_distance_of_two_gaussians_with_parallel_axes_is_the_closed_form():
    a, b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    shift = np.array([1.0, 0.0, -2.0])
    distance = frechet_distance(
        moments_of(with_moments(shift, np.diag(a))),
        moments_of(with_moments(np.zeros(3), np.diag(b))),
    )
    expected = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert distance == pytest.approx(expected, rel=1e-9)


def test_the_frechet_distance_of_any_two_gaussians_agrees_with_the_matrix_root():
    rng = np.random.RandomState(1)
    roots = [rng.standard_normal((6, 6)) for _ in range(2)]
    a, b = (root @ root.T + np.eye(6) for root in roots)
    mean = rng.standard_normal(6)
    expected = mean @ mean + np.trace(a + b - 2 * np.real(scipy.linalg.sqrtm(a @ b)))
    distance = frechet_distance(
        moments_of(with_moments(mean, a)), moments_of(with_moments(np.zeros(6), b))
    )
    assert distance == pytest.approx(expected, rel=1e-9)


def test_the_frechet_distance_survives_features_that_never_fire():
    x, y = torch.randn(50, 4), torch.randn(60, 4)
    x[:, 3] = y[:, 3] = 0
    short = frechet_distance(moments_of(x[:, :3]), moments_of(y[:, :3]))
    assert frechet_distance(moments_of(x), moments_of(y)) == pytest.approx(short, rel=1e-9)


def test_a_set_is_at_distance_zero_from_itself():
    x = moments_of(torch.randn(100, 5))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_kid_equals_the_u_statistic_over_all_pairs():
    x, y = torch.randn(40, 7).double(), torch.randn(30, 7).double() + 0.5

    def kernel(a, b):
        return (a @ b.T / 7 + 1) ** 3

    m, n = 40, 30
    expected = (
        (kernel(x, x).sum() - kernel(x, x).trace()) / (m * (m - 1))
        + (kernel(y, y).sum() - kernel(y, y).trace()) / (n * (n - 1))
        - 2 * kernel(x, y).mean()
    )
    assert kid(moments_of(x), moments_of(y)) == pytest.approx(float(expected), rel=1e-10)


def test_kid_of_equal_distributions_is_zero_on_average():
    rng = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 50, 3, generator=rng) for _ in range(200)]
    values = torch.tensor([kid(moments_of(a), moments_of(b)) for a, b in draws])
    standard_error = values.std() / len(values) ** 0.5
    assert abs(values.mean()) < 4 * standard_error


def test_moments_do_not_depend_on_how_the_images_are_split():
    x, y = torch.randn(101, 5), torch.randn(80, 5)
    whole, split = moments_of(x), moments_of(x[:1], x[1:40], x[40:])
    real = moments_of(y)
    assert frechet_distance(split, real) == pytest.approx(frechet_distance(whole, real), rel=1e-9)
    assert kid(split, real) == pytest.approx(kid(whole, real), rel=1e-9)


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
