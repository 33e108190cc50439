"""What a dry run says of the networks, against the networks themselves."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gan.config import (
    Conditioning,
    ConditioningConfig,
    DiscriminatorConfig,
    GameConfig,
    GeneratorConfig,
    Network,
    Norm,
    ObjectiveConfig,
    Sample,
)
from gan.networks import build_discriminator, build_generator
from gan.sizes import sizes

CASES: list[tuple[Network, tuple[int, ...], Norm | None, Conditioning]] = [
    ("mlp", (2,), None, "none"),
    ("mlp", (2,), None, "concatenation"),
    ("mlp", (1, 8, 8), None, "projection"),
    ("dcgan", (3, 32, 32), None, "none"),
    ("dcgan", (3, 32, 32), None, "concatenation"),
    ("dcgan", (1, 8, 8), "group", "auxiliary"),
    ("dcgan", (3, 64, 64), "none", "projection"),
    ("resnet", (1, 8, 8), None, "none"),
    ("resnet", (3, 32, 32), "group", "projection"),
    ("resnet", (3, 64, 64), "batch", "auxiliary"),
    ("r3gan", (1, 8, 8), None, "none"),
    ("r3gan", (3, 64, 64), None, "projection"),
    ("r3gan", (3, 128, 128), None, "concatenation"),
    ("stylegan2", (1, 8, 8), None, "none"),
    ("stylegan2", (3, 32, 32), None, "projection"),
]


@pytest.mark.parametrize(("network", "shape", "norm", "conditioning"), CASES)
def test_parameters_and_flops_are_those_of_the_networks(network, shape, norm, conditioning):
    """Parameters by counting, flops by torch's own counter over a forward of one image."""
    config = GameConfig(
        generator=GeneratorConfig(network=network, width=24, latent_dim=7, norm=norm),
        discriminator=DiscriminatorConfig(network=network, width=16, norm=norm),
        conditioning=ConditioningConfig(name=conditioning),
        objective=ObjectiveConfig(name="nonsaturating", r1_gamma=0, r2_gamma=0),
    )
    sample = Sample(shape, 0 if conditioning == "none" else 5)
    how: dict = {"conditioning": conditioning, "sample": sample, "seed": 0}
    G = build_generator(config.generator, **how).eval().requires_grad_(False)
    D = build_discriminator(config.discriminator, **how).eval().requires_grad_(False)
    labels = None if conditioning == "none" else torch.tensor([3])
    of_g, of_d = sizes(config, sample)
    for player, size, given in ((G, of_g, torch.randn(1, 7)), (D, of_d, torch.randn(1, *shape))):
        assert size.parameters == sum(p.numel() for p in player.parameters())
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            player(given, labels)
        assert size.flops == counter.get_total_flops()
