"""Objectives against closed forms and hand derivations."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import sigmoid

from gan.objectives import OBJECTIVES

LOGITS = torch.linspace(-8, 8, 33, dtype=torch.float64)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_d_that_tosses_a_coin_has_value_minus_log_4(name):
    blind = torch.zeros(5)
    torch.testing.assert_close(
        OBJECTIVES[name].value(blind, blind), torch.full((5,), -math.log(4))
    )


def test_the_optimal_d_of_two_gaussians_reaches_the_jensen_shannon_value():
    """V(D*) = 2 JS(p, q) - log 4 with D* = p / (p + q), Goodfellow et al. 2014, theorem 1."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    p, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(1.5, 0.7)
    log_p, log_q = p.log_prob(x), q.log_prob(x)
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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_of_extreme_logits_are_finite(name):
    game, big = OBJECTIVES[name], torch.tensor([1e4, -1e4])
    for loss in (game.d_loss, game.g_loss, game.value):
        assert torch.isfinite(loss(big, -big)).all()
