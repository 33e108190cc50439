"""The Frechet distance against closed forms, the matrix root, torchmetrics and repeated draws."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from gan.frechet import Side, frechet_distance, frechet_influence
from gan.influence import difference_error
from tests.gan.features import correlated, moments_of, normal, with_moments


def by_matrix_root(x: torch.Tensor, y: torch.Tensor) -> float:
    """The definition, with a root of C_f^(1/2) C_r C_f^(1/2) that singular matrices allow."""
    a, b = (np.atleast_2d(np.cov(side.double().numpy().T)) for side in (x, y))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy remarks that the matrix is singular
        trace_root = np.trace(np.real(scipy.linalg.sqrtm(root @ b @ root)))
    shift = (x.double().mean(0) - y.double().mean(0)).numpy()
    return shift @ shift + np.trace(a) + np.trace(b) - 2 * trace_root


def test_two_gaussians_with_parallel_axes_are_at_the_closed_form():
    a, b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    shift = np.array([1.0, 0.0, -2.0])
    distance = frechet_distance(
        moments_of(with_moments(shift, np.diag(a))),
        moments_of(with_moments(np.zeros(3), np.diag(b))),
    )
    expected = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert distance == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dim", [6, 64, 300])  # the last is multiplied in blocks
def test_every_form_agrees_with_the_matrix_root(dim):
    x, y = correlated(5 * dim, dim, seed=1), correlated(6 * dim, dim, seed=2)
    expected = by_matrix_root(x, y)
    real = moments_of(y, for_kid=False)
    fake = moments_of(x, for_kid=False)
    for distance in (
        frechet_distance(fake, real),
        frechet_distance(fake, Side.of(real)),
        frechet_distance(Side.of_features(x), Side.of(real)),
        frechet_distance(Side.of_features(x), Side.of_features(y)),
        frechet_influence(x, y, Side.of(real)).value,
    ):
        assert distance == pytest.approx(expected, rel=1e-6)


def test_it_is_exact_where_there_are_fewer_images_than_features():
    """On 20 features that only 8 directions of fakes span: the distance within that span, plus
    the spread of the reals outside it. All quantities are known to rounding.
    """
    spread = torch.linspace(1, 3, 8, dtype=torch.float64)
    x = torch.zeros(9, 20, dtype=torch.float64)
    # Nine points with covariance diag(spread^2) in the first eight directions, exactly.
    corners = torch.linalg.qr(torch.cat([torch.ones(9, 1).double(), normal(9, 8, seed=0)], 1)).Q
    x[:, :8] = corners[:, 1:] * spread * 8**0.5
    y = with_moments(np.ones(20), 4 * np.eye(20), count=50)
    expected = 20 + ((spread - 2) ** 2).sum().item() + 12 * 4
    real = Side.of(moments_of(y))
    assert frechet_distance(Side.of_features(x), real) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(moments_of(x), real) == pytest.approx(expected, rel=1e-12)
    assert frechet_influence(x, y, real).value == pytest.approx(expected, rel=1e-12)


def test_few_images_among_many_correlated_features_agree_with_the_root_of_the_small_gram_matrix():
    """The nonzero eigenvalues of C_f C_r are those of X C_r X' / (n - 1), which is n x n."""
    x, y = correlated(40, 128, seed=3), correlated(900, 128, seed=4)
    spread = (x - x.mean(0)) / 39**0.5
    gram = spread @ torch.cov(y.T) @ spread.T
    trace_root = torch.linalg.eigvalsh(gram)[1:].sqrt().sum()  # the first is 0: x is centred
    shift = x.mean(0) - y.mean(0)
    expected = (shift @ shift + spread.square().sum() + torch.cov(y.T).trace()).item()
    expected -= 2 * trace_root.item()
    real = Side.of(moments_of(y))
    assert frechet_distance(Side.of_features(x), real) == pytest.approx(expected, rel=1e-9)


def test_float32_keeps_its_digits_by_singular_values():
    """The whole way in float32, as on a device without float64, against float64."""
    for count in (100, 1000):  # fewer and more images than features
        x, y = correlated(count, 200, seed=5).float(), correlated(2000, 200, seed=6).float()
        exact = frechet_distance(Side.of_features(x), Side.of_features(y))
        single = [Side.of_features(side, dtype=torch.float32) for side in (x, y)]
        assert all(side.factor.dtype == torch.float32 for side in single)
        assert frechet_distance(*single) == pytest.approx(exact, rel=2e-5)


def test_features_that_never_fire_change_nothing():
    x, y = normal(50, 4, seed=7), normal(60, 4, seed=8)
    x[:, 3] = y[:, 3] = 0
    short = frechet_distance(moments_of(x[:, :3]), moments_of(y[:, :3]))
    assert frechet_distance(moments_of(x), moments_of(y)) == pytest.approx(short, rel=1e-9)
    errors = [
        frechet_influence(a, b, Side.of(moments_of(b))).standard_error
        for a, b in ((x, y), (x[:, :3], y[:, :3]))
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-9)


def test_a_set_is_at_distance_zero_from_itself():
    x = moments_of(normal(100, 5, seed=9))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_torchmetrics_says_the_same_of_the_same_features():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Given(torch.nn.Module):
        num_features = 96

        def forward(self, features):
            return features

    metric = fid.FrechetInceptionDistance(feature=Given()).set_dtype(torch.float64)
    x, y = correlated(700, 96, seed=10), correlated(800, 96, seed=11)
    metric.update(x, real=False)
    metric.update(y, real=True)
    ours = frechet_distance(moments_of(x), moments_of(y))
    assert ours == pytest.approx(metric.compute().item(), rel=1e-6)


def test_the_influence_of_an_image_is_the_derivative_by_its_weight():
    """Against a finite difference: a little more of one image in weighted moments."""
    x, y = correlated(300, 6, seed=12), correlated(310, 6, seed=13)

    def distance(weight_x, weight_y):
        sides = []
        for side, weight in ((x, weight_x), (y, weight_y)):
            mean = weight @ side
            spread = (side - mean) * weight.sqrt()[:, None]
            sides.append((mean, spread))
        (mean_x, a), (mean_y, b) = sides
        nuclear = torch.linalg.svdvals(a @ b.T).sum()
        squares = (mean_x - mean_y).square().sum() + a.square().sum() + b.square().sum()
        return (squares - 2 * nuclear).item()

    influence = frechet_influence(x, y, Side.of(moments_of(y)))
    even_x, even_y = (torch.full((len(s),), 1 / len(s), dtype=torch.float64) for s in (x, y))
    step = 1e-6
    for image in (0, 17):
        for side, even, values in (("x", even_x, influence.fake), ("y", even_y, influence.real)):
            ends = []
            for sign in (1, -1):
                tilted = even * (1 - sign * step)
                tilted[image] += sign * step
                ends.append(distance(tilted, even_y) if side == "x" else distance(even_x, tilted))
            slope = (ends[0] - ends[1]) / (2 * step)
            # Unbiased covariances make it n / (n - 1) as large.
            assert values[image].item() == pytest.approx(slope, rel=0.02, abs=0.01)


def draws(repeats: int):
    """Two generators at common latents, and reals: champion, challenger, reals."""
    for seed in range(repeats):
        z, own, y = (normal(400, 12, seed=3 * seed + k) for k in range(3))
        yield 0.7 * z, 0.8 * (0.9**0.5 * z + 0.1**0.5 * own) + 0.2, y


def test_the_influence_error_is_that_of_repeated_draws():
    single, difference, stated_single, stated_difference, unpaired = [], [], [], [], []
    for a, b, y in draws(150):
        side = Side.of(moments_of(y, for_kid=False))
        first, second = frechet_influence(a, y, side), frechet_influence(b, y, side)
        single.append(first.value)
        difference.append(first.value - second.value)
        stated_single.append(first.standard_error)
        stated_difference.append(difference_error(first, second, paired=True))
        unpaired.append(difference_error(first, second, paired=False))
    # 150 draws know a deviation to 6 %.
    assert np.mean(stated_single) == pytest.approx(np.std(single), rel=0.2)
    assert np.mean(stated_difference) == pytest.approx(np.std(difference), rel=0.2)
    assert np.mean(unpaired) > 1.2 * np.mean(stated_difference)


def test_pairs_and_reals_must_match():
    x, y = normal(30, 3, seed=0), normal(40, 3, seed=1)
    first = frechet_influence(x, y, Side.of(moments_of(y)))
    shorter = frechet_influence(x[:20], y, Side.of(moments_of(y)))
    other = frechet_influence(x, y[:30], Side.of(moments_of(y[:30])))
    with pytest.raises(ValueError, match="as many images of each, got 30 and 20"):
        difference_error(first, shorter, paired=True)
    with pytest.raises(ValueError, match="the same real images, got 40 and 30"):
        difference_error(first, other, paired=False)
