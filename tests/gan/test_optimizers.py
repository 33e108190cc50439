"""The players' optimizers against their update rules, and what they remember over a stop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gan.config import (
    ConfigError,
    DiscriminatorConfig,
    EmaConfig,
    GeneratorConfig,
    PlayerConfig,
    Schedule,
    TurnsConfig,
)
from gan.optimizers import build_optimizer, remembered, set_rates
from tests.conftest import small_game
from tests.gan.play import new_game, play_rounds

LR, WEIGHT, GRADIENTS = 0.1, 2.0, (3.0, -1.0, 0.5)


def after_steps(config: PlayerConfig, beta2: float = 0.9) -> float:
    """A single weight after steps along GRADIENTS."""
    player = nn.Linear(1, 1, bias=False)
    nn.init.constant_(player.weight, WEIGHT)
    optimizer = build_optimizer(player, config)
    for gradient in GRADIENTS:
        set_rates(optimizer, lr=LR, beta2=beta2)
        player.weight.grad = torch.full_like(player.weight, gradient)
        optimizer.step()
    assert set(optimizer.state[player.weight]) == set(remembered(config))
    return player.weight.item()


@pytest.mark.parametrize("beta1", [0.0, 0.5])
def test_sgd_steps_against_the_gradient_and_its_momentum(beta1):
    weight, momentum = WEIGHT, 0.0
    for gradient in GRADIENTS:
        momentum = beta1 * momentum + gradient
        weight -= LR * momentum
    assert after_steps(PlayerConfig(optimizer="sgd", beta1=beta1)) == pytest.approx(weight)


@pytest.mark.parametrize("beta1", [0.0, 0.5])
def test_rmsprop_divides_by_the_root_of_the_mean_square(beta1):
    weight, momentum, square = WEIGHT, 0.0, 0.0
    for gradient in GRADIENTS:
        square = 0.9 * square + 0.1 * gradient**2
        momentum = beta1 * momentum + gradient / square**0.5
        weight -= LR * momentum
    assert after_steps(PlayerConfig(optimizer="rmsprop", beta1=beta1)) == pytest.approx(weight)


@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adamw", 0.0), ("adamw", 0.3)])
def test_adam_follows_kingma_and_ba_and_adamw_shrinks_weights_beside_it(name, decay):
    """Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2, line 12."""
    weight, mean, square = WEIGHT, 0.0, 0.0
    for step, gradient in enumerate(GRADIENTS, 1):
        weight -= LR * decay * weight
        mean = 0.5 * mean + 0.5 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        weight -= LR * mean / (1 - 0.5**step) / (square / (1 - 0.9**step)) ** 0.5
    config = PlayerConfig(optimizer=name, beta1=0.5, weight_decay=decay)
    assert after_steps(config) == pytest.approx(weight)


def test_a_schedule_of_beta2_and_of_the_half_life_follow_the_images():
    config = small_game(
        generator=GeneratorConfig(
            width=8, latent_dim=4, lr=1e-3, beta2=Schedule(start=0.9, end=0.99, shape="linear")
        ),
        turns=TurnsConfig(batch_size=8, total_kimg=0.16),
        ema=EmaConfig(half_life_kimg=Schedule(start=0.0, end=0.16, shape="linear"), ramp_up=0),
    )
    game = play_rounds(new_game(config), 9)
    before = game.G_ema.get_parameter("to_image.weight").clone()
    play_rounds(game, 1)  # G's turn is at 80 of 160 images
    assert game.G_optimizer.param_groups[0]["betas"] == (0.0, pytest.approx(0.945))
    assert game.D_optimizer.param_groups[0]["betas"] == (0.0, 0.99)
    kept = 0.5 ** (8 / 80)
    expected = kept * before + (1 - kept) * game.G.get_parameter("to_image.weight").detach()
    torch.testing.assert_close(game.G_ema.get_parameter("to_image.weight"), expected)


def test_a_gradient_that_is_too_long_is_cut_and_a_short_one_left_alone():
    """With plain SGD the step is the gradient, so its length is told by the weights."""
    moved = {}
    for most in (None, 1e9, 1e-3):
        config = small_game(
            discriminator=DiscriminatorConfig(
                width=8, lr=1.0, optimizer="sgd", max_grad_norm=most
            ),
        )
        game = new_game(config)
        before = nn.utils.parameters_to_vector(game.D.parameters()).detach().clone()
        play_rounds(game, 1)
        moved[most] = nn.utils.parameters_to_vector(game.D.parameters()).detach() - before
    assert torch.equal(moved[None], moved[1e9])
    assert float(moved[1e-3].norm()) == pytest.approx(1e-3, rel=1e-3)
    direction = nn.functional.cosine_similarity(moved[None], moved[1e-3], dim=0)
    assert float(direction) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "sgd"])
@pytest.mark.parametrize("beta1", [0, 0.5])
def test_a_game_with_any_optimizer_goes_on_bit_for_bit(name, beta1):
    how = {"lr": 1e-3, "optimizer": name, "beta1": beta1, "width": 8}
    config = small_game(
        generator=GeneratorConfig(latent_dim=4, **how), discriminator=DiscriminatorConfig(**how)
    )
    game = play_rounds(new_game(config), 2)
    again = new_game(config)
    again.load_state_dict({n: v.clone() for n, v in game.state_dict().items()})
    one, other = (play_rounds(g, 2).state_dict() for g in (game, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight_decay": 0.1}, "weight_decay is for optimizer = 'adamw' only"),
        ({"optimizer": "adamw", "weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be > 0"),
        ({"beta2": Schedule(start=0.9, end=1.0)}, r"beta2 must be in \[0, 1\), got 0.9 to 1.0"),
    ],
)
def test_settings_that_no_optimizer_has_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        PlayerConfig(**changes)
