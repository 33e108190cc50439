"""Fakes that both players see: the game of the textbooks' loop, written out."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from gan.config import (
    ConditioningConfig,
    ConfigError,
    GeneratorConfig,
    ObjectiveConfig,
    PlayerConfig,
    TurnsConfig,
)
from gan.game import Game
from tests.conftest import small_game
from tests.gan.play import new_game, play_rounds, stream

SIZE = 8


def reusing(**changes) -> TurnsConfig:
    return TurnsConfig(
        batch_size=SIZE, total_kimg=1, precision="float64", reuse_fakes=True, **changes
    )


def lr_of(player: PlayerConfig) -> float:
    assert isinstance(player.lr, float)
    return player.lr


def test_a_round_is_that_of_the_textbooks_loop():
    """Goodfellow et al. 2014, algorithm 1, as it is taught: one minibatch of noise for both."""
    config = small_game(
        turns=reusing(), objective=ObjectiveConfig(name="nonsaturating", r1_gamma=0, r2_gamma=0)
    )
    ours, by_hand = play_rounds(new_game(config), 3), new_game(config)
    G, D = by_hand.G, by_hand.D
    rates: dict = {"betas": (0.0, 0.99), "eps": 1e-8}
    G_optimizer = torch.optim.Adam(G.parameters(), lr=lr_of(config.generator), **rates)
    D_optimizer = torch.optim.Adam(D.parameters(), lr=lr_of(config.discriminator), **rates)
    ones, zeros = torch.ones(SIZE, dtype=torch.float64), torch.zeros(SIZE, dtype=torch.float64)
    batches = stream(config, by_hand.world)
    for turn in range(3):
        real = next(batches).samples.double() / 127.5 - 1
        fake = G(by_hand._my_latents("latent/d", turn), None)
        D_optimizer.zero_grad()
        binary_cross_entropy_with_logits(D(real, None), ones).backward()
        binary_cross_entropy_with_logits(D(fake.detach(), None), zeros).backward()
        D_optimizer.step()
        G_optimizer.zero_grad()
        binary_cross_entropy_with_logits(D(fake, None), ones).backward()
        G_optimizer.step()
    for ended, expected in ((ours.G, G), (ours.D, D)):
        for (name, value), (_, wanted) in zip(
            ended.named_parameters(), expected.named_parameters(), strict=True
        ):
            torch.testing.assert_close(value, wanted, rtol=1e-10, atol=1e-12, msg=name)


def test_pairs_and_labels_take_no_reals_of_their_own_in_gs_turn():
    game = new_game(
        small_game(turns=reusing(), conditioning=ConditioningConfig(name="projection"))
    )
    assert play_rounds(game, 2).num_batches == 2


def test_g_is_called_once_a_round(monkeypatch):
    def calls(turns: TurnsConfig) -> int:
        game, seen = new_game(small_game(turns=turns)), []
        game.G.register_forward_hook(lambda *_: seen.append(1))
        play_rounds(game, 1)
        return len(seen)

    assert calls(reusing()) == 1
    assert calls(TurnsConfig(batch_size=SIZE, total_kimg=1)) == 2


def test_gs_turn_before_ds_is_a_mistake_of_the_caller():
    game: Game = new_game(small_game(turns=reusing()))
    with pytest.raises(AssertionError, match="a turn of D comes first"):
        game.g_turn(None)


@pytest.mark.parametrize(
    ("turns", "changes", "said"),
    [
        ({"g_steps": 2}, {}, r"turns.g_steps must be 1 with turns.reuse_fakes"),
        ({"micro_batch": 4}, {}, r"turns.micro_batch must be left out with turns.reuse_fakes"),
        ({"compile": True}, {}, r"turns.compile must be false with turns.reuse_fakes"),
        (
            {},
            {
                "objective": ObjectiveConfig(path_length_weight=2),
                "generator": GeneratorConfig(network="stylegan2", width=8, latent_dim=4),
            },
            r"objective.path_length_weight must be 0 with turns.reuse_fakes",
        ),
    ],
)
def test_what_needs_fakes_of_its_own_is_refused_beside_it(turns, changes, said):
    with pytest.raises(ConfigError, match=said):
        small_game(turns=reusing(**turns), **changes)
