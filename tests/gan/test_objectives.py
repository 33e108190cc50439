"""Objectives against closed forms and hand derivations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, sigmoid

from gan.config import ObjectiveConfig, ObjectiveName
from gan.objectives import OBJECTIVES
from gan.penalties import Weights
from gan.turns import DTurn, GTurn

LOGITS = torch.linspace(-8, 8, 33, dtype=torch.float64)


def gaussians() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A fine grid, and the log densities of two Gaussians on it: of the data and of the fakes."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    p, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(1.5, 0.7)
    return x, p.log_prob(x), q.log_prob(x)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_d_that_tosses_a_coin_has_value_minus_log_4_or_sees_no_distance(name):
    blind, game = torch.zeros(5), OBJECTIVES[name]
    expected = 0.0 if game.coin is None else -math.log(4)  # a critic's is a distance
    torch.testing.assert_close(game.value(blind, blind), torch.full((5,), expected))


def test_the_optimal_d_of_two_gaussians_reaches_the_jensen_shannon_value():
    """V(D*) = 2 JS(p, q) - log 4 with D* = p / (p + q), Goodfellow et al. 2014, theorem 1."""
    x, log_p, log_q = gaussians()
    logit = log_p - log_q  # of D*
    zero = torch.zeros_like(logit)
    value = OBJECTIVES["minimax"].value
    # value(real, fake) is a sum of a term in each; at 0 the other one adds -log 2
    on_reals = torch.trapezoid(log_p.exp() * (value(logit, zero) + math.log(2)), x)
    on_fakes = torch.trapezoid(log_q.exp() * (value(zero, logit) + math.log(2)), x)

    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    js = sum(torch.trapezoid(d.exp() * (d - log_m), x) / 2 for d in (log_p, log_q))
    # torch's softplus is cut to a straight line beyond 20, which costs exp(-20)
    assert float(on_reals + on_fakes) == pytest.approx(float(2 * js - math.log(4)), abs=1e-8)


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        (
            "minimax",
            lambda t: -sigmoid(t),
        ),  # d/dt log(1 - sigmoid(t)): dies where D is sure of a fake
        ("nonsaturating", lambda t: -sigmoid(-t)),  # d/dt -log sigmoid(t): does not
    ],
)
def test_gradients_of_g_follow_the_hand_derivation(name, slope):
    fake = LOGITS.clone().requires_grad_()
    OBJECTIVES[name].g_loss(torch.zeros_like(fake), fake).sum().backward()
    torch.testing.assert_close(fake.grad, slope(LOGITS))


@pytest.mark.parametrize("name", ["minimax", "nonsaturating"])
def test_gradients_of_d_follow_the_hand_derivation(name):
    real, fake = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    OBJECTIVES[name].d_loss(real, fake).sum().backward()
    torch.testing.assert_close(real.grad, -sigmoid(-LOGITS))
    torch.testing.assert_close(fake.grad, sigmoid(LOGITS))


def test_minimax_is_a_zero_sum_game_for_g():
    real, fake = LOGITS, LOGITS.flip(0)
    game = OBJECTIVES["minimax"]
    rest = -torch.nn.functional.softplus(-real)  # the part of V that G cannot move
    torch.testing.assert_close(game.g_loss(real, fake), game.value(real, fake) - rest)


def test_relativistic_losses_see_only_differences_and_mirror_each_other():
    game, real, fake = OBJECTIVES["relativistic"], LOGITS, LOGITS.flip(0)
    torch.testing.assert_close(game.d_loss(real + 3, fake + 3), game.d_loss(real, fake))
    torch.testing.assert_close(game.g_loss(real, fake), game.d_loss(fake, real))
    torch.testing.assert_close(game.value(real, fake), -2 * game.d_loss(real, fake))
    r = real.clone().requires_grad_()
    game.d_loss(r, fake).sum().backward()
    torch.testing.assert_close(r.grad, -sigmoid(fake - real))


def of_optimal_d(name: ObjectiveName, logit: torch.Tensor) -> float:
    """E d_loss where every sample x has D's `logit`, by integration; d_loss is a sum of a term in
    reals and one in fakes.
    """
    x, log_p, log_q = gaussians()
    zero, loss = torch.zeros_like(logit), OBJECTIVES[name].d_loss
    on_reals = torch.trapezoid(log_p.exp() * (loss(logit, zero) - loss(zero, zero)), x)
    on_fakes = torch.trapezoid(log_q.exp() * (loss(zero, logit) - loss(zero, zero)), x)
    return float(on_reals + on_fakes + loss(zero[:1], zero[:1])[0])


def test_least_squares_of_the_optimal_d_is_half_a_chi_square():
    """D* = (p - q) / (p + q), and there E d_loss = int 2 p q / (p + q) = 1 - half of the Pearson
    chi^2 between p + q and 2 q over two (Mao et al. 2017, eq. 5 and 8).
    """
    x, log_p, log_q = gaussians()
    best = ((log_p - log_q) / 2).tanh()
    m = torch.logaddexp(log_p, log_q)
    expected = float(torch.trapezoid(2 * (log_p + log_q - m).exp(), x))
    assert of_optimal_d("least-squares", best) == pytest.approx(expected, abs=1e-8)
    p, q = log_p.exp(), log_q.exp()
    chi = float(torch.trapezoid((p + q - 2 * q).square() / (p + q).clamp(min=1e-300), x))
    assert expected == pytest.approx(1 - chi / 2, abs=1e-8)
    for other in (best + 0.01, best - 0.01, 0.99 * best):
        assert of_optimal_d("least-squares", other) > expected


def test_hinge_of_the_optimal_d_is_twice_the_overlap():
    """D* = sign(p - q), where E d_loss = 2 int min(p, q) (Lim & Ye 2017, theorem 1)."""
    x, log_p, log_q = gaussians()
    best = (log_p - log_q).sign()
    expected = 2 * float(torch.trapezoid(torch.minimum(log_p, log_q).exp(), x))
    assert of_optimal_d("hinge", best) == pytest.approx(expected, abs=1e-4)  # of its jumps
    for other in (best + 0.1, best - 0.1, 0.9 * best, 1.1 * best):
        assert of_optimal_d("hinge", other) > expected


def test_a_critic_of_slope_one_tells_how_far_a_shifted_distribution_is():
    """W_1 of a distribution and its shift by s is s, and D(x) = -x attains it."""
    reals = torch.randn(50, dtype=torch.float64)
    game, fakes = OBJECTIVES["wasserstein"], reals.flip(0) + 2.5
    assert game.value(-reals, -fakes).mean() == pytest.approx(2.5)
    assert game.d_loss(-reals, -fakes).mean() == pytest.approx(-2.5)


@pytest.mark.parametrize(
    ("name", "real_slope", "fake_slope", "g_slope"),
    [
        ("least-squares", lambda t: t - 1, lambda t: t + 1, lambda t: t - 1),
        (
            "hinge",
            lambda t: -(t < 1).double(),
            lambda t: (t > -1).double(),
            lambda t: -torch.ones_like(t),
        ),
        (
            "wasserstein",
            lambda t: -torch.ones_like(t),
            torch.ones_like,
            lambda t: -torch.ones_like(t),
        ),
    ],
)
def test_gradients_of_the_unbounded_objectives_follow_the_hand_derivation(
    name, real_slope, fake_slope, g_slope
):
    inside = LOGITS + 0.01  # off the corners
    real, fake = inside.clone().requires_grad_(), inside.clone().requires_grad_()
    OBJECTIVES[name].d_loss(real, fake).sum().backward()
    torch.testing.assert_close(real.grad, real_slope(inside))
    torch.testing.assert_close(fake.grad, fake_slope(inside))
    fake.grad = None
    OBJECTIVES[name].g_loss(torch.zeros_like(fake), fake).sum().backward()
    torch.testing.assert_close(fake.grad, g_slope(inside))


class Scores(nn.Module):
    """A D whose logits are its samples' first value."""

    def forward(self, samples, labels):
        return samples[:, 0]


class Drawn(nn.Module):
    """A G whose samples are its latents."""

    def forward(self, z, labels):
        return z


def test_the_average_game_is_bce_of_logits_relative_to_the_other_sides_mean():
    """Jolicoeur-Martineau 2018, eq. 10 and 11, by torch's own cross entropy."""
    real, fake = torch.randn(7, 1, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64)
    config = ObjectiveConfig(name="relativistic-average", r1_gamma=0, r2_gamma=0)
    r, f = real.clone().requires_grad_(), fake.clone().requires_grad_()
    loss, _ = DTurn(Scores(), config)(r, f, None, Weights(), {})
    loss.backward()

    r2, f2 = real.clone().requires_grad_(), fake.clone().requires_grad_()
    bce, ones = binary_cross_entropy_with_logits, torch.ones_like(real)
    by_hand = bce(r2 - f2.mean(), ones) + bce(f2 - r2.mean(), 0 * ones)
    (7 * by_hand).backward()
    torch.testing.assert_close(loss, 7 * by_hand)
    torch.testing.assert_close((r.grad, f.grad), (r2.grad, f2.grad))

    z = fake.clone().requires_grad_()
    loss, _ = GTurn(Drawn(), Scores(), config)(real, z, None, {})
    loss.backward()
    z2 = fake.clone().requires_grad_()
    by_hand = bce(z2 - real.mean(), ones) + bce(real - z2.mean(), 0 * ones)
    (7 * by_hand).backward()
    torch.testing.assert_close(loss, 7 * by_hand)
    torch.testing.assert_close(z.grad, z2.grad)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_where_a_shift_of_all_logits_changes_no_loss_it_changes_no_sign_either(name):
    real, fake = torch.randn(2, 64, 1, dtype=torch.float64)
    turn = DTurn(Scores(), ObjectiveConfig(name=name, r1_gamma=0, r2_gamma=0))
    loss, report = turn(real, fake, None, Weights(), {})
    shifted_loss, shifted = turn(real + 3, fake + 3, None, Weights(), {})
    floats = OBJECTIVES[name].floats
    assert torch.isclose(loss, shifted_loss) == floats
    signs = (real - fake if floats else real).sign().sum()
    assert report["d/real_sign"] == signs
    if floats:
        assert shifted["d/real_sign"] == signs
        assert report["d/accuracy"] == shifted["d/accuracy"] == (64 + signs) / 2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_of_extreme_logits_are_finite(name):
    game, big = OBJECTIVES[name], torch.tensor([1e4, -1e4])
    for loss in (game.d_loss, game.g_loss, game.value):
        assert torch.isfinite(loss(big, -big)).all()
