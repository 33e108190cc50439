"""InfoGAN's codes: how they lie in latents, what misreading costs, and that they are learnt."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gan.codes import Codes
from gan.config import (
    ConditioningConfig,
    ConfigError,
    DiscriminatorConfig,
    GameConfig,
    GeneratorConfig,
    ObjectiveConfig,
    Sample,
)
from gan.networks import build_discriminator, build_generator
from gan.penalties import Weights
from gan.sizes import sizes
from gan.turns import DTurn, GTurn
from tests.conftest import small_game
from tests.gan.digits8 import digits_game, journal

CODES = Codes(discrete=5, continuous=2)
BOTH: dict[str, Any] = {"discrete_codes": 5, "continuous_codes": 2}


def test_a_latent_holds_an_even_choice_uniform_numbers_and_the_rest_as_it_was():
    z = torch.randn(20_000, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spelled = CODES.spelled(z)
    assert spelled.shape == z.shape
    chosen, between, rest = spelled.split([5, 2, 2], dim=1)
    assert torch.equal(chosen.sum(dim=1), torch.ones(len(z), dtype=z.dtype))
    deviation = (0.2 * 0.8 / len(z)) ** 0.5
    assert (chosen.mean(dim=0) - 0.2).abs().max() < 4 * deviation
    assert between.abs().max() <= 1
    torch.testing.assert_close(between.mean(), torch.zeros((), dtype=z.dtype), atol=0.02, rtol=0)
    torch.testing.assert_close(
        between.var(), torch.tensor(1 / 3, dtype=z.dtype), atol=0.01, rtol=0
    )
    assert torch.equal(rest, z[:, 7:])


def test_misreading_costs_log_k_for_a_blind_choice_and_half_the_squared_miss_of_numbers():
    z = torch.randn(6, 9, dtype=torch.float64)
    spelled = CODES.spelled(z)
    blind = torch.zeros(6, 7, dtype=torch.float64)
    expected = math.log(5) + spelled[:, 5:7].square().sum(dim=1) / 2
    torch.testing.assert_close(CODES.misread(blind, z), expected)
    sure = torch.cat([100 * spelled[:, :5], spelled[:, 5:7] + 2], dim=1)
    torch.testing.assert_close(CODES.misread(sure, z), torch.full((6,), 4.0, dtype=torch.float64))


def test_both_players_descend_what_d_misreads_and_gradients_reach_every_parameter():
    how: dict = {"conditioning": "none", "sample": Sample((1, 16, 16)), "seed": 0}
    G = build_generator(GeneratorConfig(width=8, latent_dim=9, **BOTH), **how)
    D = build_discriminator(DiscriminatorConfig(width=8), codes=CODES, **how)
    z, real = torch.randn(6, 9), torch.randn(6, 1, 16, 16)
    config = ObjectiveConfig(name="nonsaturating", info_weight=3)
    plain = ObjectiveConfig(name="nonsaturating")
    loss, report = GTurn(G, D, config, codes=CODES)(None, z, None, {})
    other, _ = GTurn(G, D, plain, codes=CODES)(None, z, None, {})
    torch.testing.assert_close((loss - other).detach(), 2 * report["g/code_loss"])
    fake = G(z, None).detach()
    loss, report = DTurn(D, config, codes=CODES)(real, fake, None, Weights(), {"z": z})
    other, _ = DTurn(D, plain, codes=CODES)(real, fake, None, Weights(), {"z": z})
    torch.testing.assert_close((loss - other).detach(), 2 * report["d/code_loss"])
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in D.parameters())


def test_d_learns_to_read_what_g_learns_to_write():
    """A blind reader misreads log 10 = 2.3 nats; a game of 4 kimg on small digits gets to half."""
    game = digits_game()
    lines = list(
        journal(
            GameConfig(
                generator=GeneratorConfig(
                    network="mlp", width=64, latent_dim=16, lr=2e-3, discrete_codes=10
                ),
                discriminator=game.discriminator,
                objective=game.objective,
                turns=game.turns,
                ema=game.ema,
            )
        )
    )
    first, last = lines[0][1]["g/code_loss"], lines[-1][1]["g/code_loss"]
    assert first > 1.8
    assert last < math.log(10) / 2


def test_codes_are_counted_among_the_sizes():
    config = GameConfig(generator=GeneratorConfig(width=8, latent_dim=9, **BOTH))
    sample = Sample((1, 16, 16))
    how: dict = {"conditioning": "none", "sample": sample, "seed": 0}
    D = build_discriminator(config.discriminator, codes=CODES, **how).requires_grad_(False)
    _, size = sizes(config, sample)
    assert size.parameters == sum(p.numel() for p in D.parameters())
    with FlopCounterMode(display=False) as counter:
        D(torch.randn(1, 1, 16, 16), None)
    assert size.flops == counter.get_total_flops()
    assert isinstance(D, nn.Module)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"discrete_codes": 1}, "discrete_codes must be 0 or at least 2"),
        ({"continuous_codes": -1}, "continuous_codes must be >= 0"),
        ({"continuous_codes": 70}, "latent_dim must hold"),
        ({"network": "stylegan2", "discrete_codes": 3}, "it scales its latents"),
    ],
)
def test_codes_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        GeneratorConfig(**settings)


def test_two_classifiers_in_one_d_are_refused():
    with pytest.raises(ConfigError, match="two classifiers"):
        small_game(
            generator=GeneratorConfig(**BOTH), conditioning=ConditioningConfig(name="auxiliary")
        )
