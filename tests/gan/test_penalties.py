"""Gradient penalties against closed forms."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from gan.config import DiscriminatorConfig, ObjectiveConfig, TurnsConfig
from gan.networks import mlp
from gan.networks.parts import LogitHead
from gan.penalties import (
    Weights,
    excess_between,
    logits_and_differences,
    logits_and_steepness,
)
from gan.turns import DTurn
from tests.conftest import small_game
from tests.gan.play import new_game, play_rounds


def test_r1_of_a_linear_d_is_its_squared_weight_norm_for_every_sample():
    weight = torch.tensor([[0.5, -2.0, 1.0]])
    logits, steepness = logits_and_steepness(lambda x: (x @ weight.T)[:, 0], torch.randn(4, 3))
    assert logits.shape == (4,)
    torch.testing.assert_close(steepness, torch.full((4,), 5.25))


def test_r1_of_a_quadratic_d_is_taken_sample_by_sample():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    x = torch.randn(5, 2)
    _, steepness = logits_and_steepness(lambda s: ((s @ matrix) * s).sum(1) / 2, x)
    torch.testing.assert_close(steepness, (x @ matrix).square().sum(1))


def test_r1_of_images_sums_over_channels_and_pixels():
    x = torch.randn(3, 2, 4, 4)
    _, steepness = logits_and_steepness(lambda s: s.flatten(1).sum(1), x)
    torch.testing.assert_close(steepness, torch.full((3,), 32.0))


def test_the_penalty_can_be_differentiated_again():
    weight = torch.randn(1, 3, requires_grad=True)
    _, steepness = logits_and_steepness(lambda x: (x @ weight.T)[:, 0], torch.randn(4, 3))
    (steepness.sum() / 2).backward()
    torch.testing.assert_close(weight.grad, 4 * weight.detach())  # d/dw 4 |w|^2 / 2


def test_ds_turn_adds_gamma_halves_of_r1_and_r2():
    torch.manual_seed(0)
    player = mlp.Discriminator(
        DiscriminatorConfig(network="mlp", width=8), (2,), head=partial(LogitHead, num_classes=0)
    )
    turn = DTurn(player, ObjectiveConfig(name="nonsaturating"))
    real, fake = torch.randn(6, 2), torch.randn(6, 2)
    plain, _ = turn(real, fake, None, Weights(), {})
    both, report = turn(real, fake, None, Weights(3.0, 5.0), {})
    torch.testing.assert_close(both - plain, 1.5 * report["d/r1"] + 2.5 * report["d/r2"])
    x = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(player(x, None).sum(), x)
    torch.testing.assert_close(report["d/r1"], gradient.square().sum())


def linear(weight: torch.Tensor):
    """D(x) = <weight, x>."""
    return lambda x: x.flatten(1) @ weight


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_wgan_gp_of_a_linear_critic_of_unit_norm_is_zero_for_any_batch(batch_size):
    unit = torch.nn.functional.normalize(torch.randn(12, dtype=torch.float64), dim=0)
    real, fake = torch.randn(2, batch_size, 3, 2, 2, dtype=torch.float64)
    mix = torch.rand(batch_size, dtype=torch.float64)
    excess = excess_between(linear(unit), real, fake, mix, target=1.0)
    torch.testing.assert_close(excess, torch.zeros_like(mix))
    excess = excess_between(linear(3 * unit), real, fake, mix, target=1.0)
    torch.testing.assert_close(excess, torch.full_like(mix, 4.0))
    steepness = excess_between(linear(3 * unit), real, fake, mix, target=0.0)
    torch.testing.assert_close(steepness, torch.full_like(mix, 9.0))


def test_a_pair_is_looked_at_between_its_own_two_samples():
    """D(x) = |x|^2 / 2 is as steep as x is long, so the penalty tells where it was looked at."""
    real, fake = torch.randn(2, 5, 3, dtype=torch.float64)
    mix = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.9], dtype=torch.float64)
    excess = excess_between(lambda x: x.square().sum(1) / 2, real, fake, mix, target=2.0)
    places = fake + mix[:, None] * (real - fake)
    torch.testing.assert_close(excess, (places.norm(dim=1) - 2).square())


def test_a_flat_critic_has_a_penalty_with_a_gradient_that_is_a_number():
    weight = torch.zeros(3, requires_grad=True)
    real, fake = torch.randn(2, 5, 3)
    excess = excess_between(linear(weight), real, fake, torch.rand(5), target=1.0)
    excess.sum().backward()
    torch.testing.assert_close(excess.detach(), torch.ones(5))
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_differences_of_a_linear_d_are_its_slope_along_the_noise():
    weight = torch.randn(6, dtype=torch.float64)
    x, noise = torch.randn(2, 4, 6, dtype=torch.float64)
    scores, steepness = logits_and_differences(linear(weight), x, noise, sigma=0.01)
    torch.testing.assert_close(scores, x @ weight)
    torch.testing.assert_close(steepness, (noise @ weight).square(), rtol=1e-6, atol=1e-9)


def test_differences_are_r1_on_average():
    """For a quadratic D, too, up to terms of sigma^2; 200,000 draws have a standard error of
    sqrt(2 / 200,000) of the value.
    """
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)

    def quadratic(x: torch.Tensor) -> torch.Tensor:
        return ((x @ matrix) * x).sum(1) / 2

    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    _, exact = logits_and_steepness(quadratic, x)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 2, generator=rng, dtype=torch.float64)
    _, estimates = logits_and_differences(quadratic, x.expand(len(noise), 2), noise, sigma=1e-3)
    assert float(estimates.mean()) == pytest.approx(float(exact), rel=4 * (2 / 200_000) ** 0.5)


def test_differences_follow_the_gradient_of_r1_on_average():
    """d/dw E (w noise)^2 = 2 w, the slope of |w|^2: what D learns from is right as well."""
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 2, generator=rng, dtype=torch.float64)
    _, estimates = logits_and_differences(
        linear(weight), torch.zeros_like(noise), noise, sigma=0.1
    )
    estimates.mean().backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach(), rtol=0.03, atol=0.0)


def test_ds_turn_adds_lambda_times_the_gradient_penalty():
    torch.manual_seed(0)
    player = mlp.Discriminator(
        DiscriminatorConfig(network="mlp", width=8), (2,), head=partial(LogitHead, num_classes=0)
    )
    turn = DTurn(player, ObjectiveConfig(name="wasserstein", gp_lambda=10.0))
    real, fake, mix = torch.randn(6, 2), torch.randn(6, 2), torch.rand(6)
    plain, _ = turn(real, fake, None, Weights(), {})
    both, report = turn(real, fake, None, Weights(gp=10.0), {"mix": mix})
    torch.testing.assert_close(both - plain, 10 * report["d/gp"])
    x = torch.lerp(fake, real, mix[:, None]).requires_grad_()
    (gradient,) = torch.autograd.grad(player(x, None).sum(), x)
    torch.testing.assert_close(report["d/gp"], (gradient.norm(dim=1) - 1).square().sum())


def test_a_lazy_penalty_is_paid_in_every_kth_turn_k_times_over():
    config = small_game(
        objective=ObjectiveConfig(r1_gamma=1.0, r2_gamma=0.5, gp_lambda=2.0, penalty_interval=3)
    )
    game = new_game(config)
    weights = []
    for _ in range(6):
        weights.append(game._penalty_weights())
        play_rounds(game, 1)
    assert weights[0] == weights[3] == Weights(r1=3.0, r2=1.5, gp=6.0)
    assert weights[1] == weights[2] == weights[4] == Weights()
    assert game.means.take(game.world)["d/gp"] >= 0


def test_weights_are_clipped_after_every_step_of_d_and_only_ds():
    objective = ObjectiveConfig(name="wasserstein", r1_gamma=0, r2_gamma=0, weight_clip=0.01)
    game = play_rounds(new_game(small_game(objective=objective)), 2)
    largest = [float(p.detach().abs().max()) for p in game.D.parameters()]
    assert max(largest) == pytest.approx(0.01)
    assert max(float(p.detach().abs().max()) for p in game.G.parameters()) > 0.05


def test_a_penalty_is_the_same_in_bfloat16_as_in_float32():
    """It is taken outside of low precision."""
    told = []
    for precision in ("float32", "bfloat16"):
        config = small_game(
            objective=ObjectiveConfig(gp_lambda=2.0),
            turns=TurnsConfig(batch_size=8, precision=precision),
        )
        game = new_game(config)
        with torch.no_grad():  # fakes that are the same in both
            for parameter in game.G.parameters():
                parameter.zero_()
        play_rounds(game, 1)
        told.append(game.means.take(game.world))
    assert {"d/r1", "d/r2", "d/gp"} <= told[0].keys()
    for name in ("d/r1", "d/r2", "d/gp", "d/loss"):
        assert told[0][name] == pytest.approx(told[1][name], rel=1e-6)
