"""Gradient penalties against closed forms."""

from __future__ import annotations

import torch

from gan.config import DiscriminatorConfig, ObjectiveConfig
from gan.networks import mlp
from gan.penalties import logits_and_steepness
from gan.turns import DTurn


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
    player = mlp.discriminator(DiscriminatorConfig(network="mlp", width=8), (2,), num_classes=0)
    turn = DTurn(player, ObjectiveConfig(name="nonsaturating"))
    real, fake = torch.randn(6, 2), torch.randn(6, 2)
    plain, _ = turn(real, fake, None, 0.0, 0.0)
    both, report = turn(real, fake, None, 3.0, 5.0)
    torch.testing.assert_close(both - plain, 1.5 * report["d/r1"] + 2.5 * report["d/r2"])
    x = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(player(x, None).sum(), x)
    torch.testing.assert_close(report["d/r1"], gradient.square().sum())
