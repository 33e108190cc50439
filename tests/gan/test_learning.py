"""Every family of networks learns: a short game on small digits beats its own start."""

from __future__ import annotations

import dataclasses

import pytest

from gan.config import DiscriminatorConfig, GeneratorConfig, Sample
from gan.game import Game
from tests.gan.digits8 import SHAPE, digits_game, journal, judge_of

WIDTHS = {"mlp": 64, "dcgan": 16, "resnet": 16, "r3gan": 16, "stylegan2": 8}
NUM_IMAGES = 2_000


@pytest.mark.parametrize("family", WIDTHS)
def test_a_short_game_beats_its_own_start(family):
    """By the Frechet distance of the pixels of 500 samples of G_ema to those of 2,000 digits."""
    plain = digits_game(total_kimg=3)
    width = WIDTHS[family]
    config = dataclasses.replace(
        plain,
        generator=GeneratorConfig(network=family, width=width, latent_dim=16, lr=2e-3),
        discriminator=DiscriminatorConfig(network=family, width=width, lr=2e-3),
    )
    name = "score/fd_pixels_500"
    start = judge_of(NUM_IMAGES)(Game(config, Sample(SHAPE), seed=0))[name]
    lines = list(journal(config, num_images=NUM_IMAGES))
    scores = [metrics[name] for _, metrics in lines if name in metrics]
    assert scores[-1] < start / 4
    assert scores[-1] < scores[0]
