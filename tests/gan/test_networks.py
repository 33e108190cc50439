"""Every family: shapes, ranges, determinism, and gradients that reach every parameter."""

from __future__ import annotations

import pytest
import torch

from gan.config import DiscriminatorConfig, GeneratorConfig, Network, Norm, Sample
from gan.networks import FAMILIES, build_discriminator, build_generator

SHAPES = {
    "dcgan": [(1, 8, 8), (3, 16, 16), (4, 32, 32), (1, 64, 64), (3, 128, 128)],
    "mlp": [(2,), (1, 8, 8), (3, 7, 9)],
}
CASES = [(family, shape) for family in FAMILIES for shape in SHAPES[family]]


def players(
    family: Network,
    shape: tuple[int, ...],
    *,
    classes: int = 0,
    norm: Norm = "none",
    seed: int = 0,
):
    how = {
        "conditioning": "projection" if classes else "none",
        "sample": Sample(shape, classes),
        "seed": seed,
    }
    G = build_generator(GeneratorConfig(network=family, width=8, latent_dim=5, norm=norm), **how)
    D = build_discriminator(DiscriminatorConfig(network=family, width=8), **how)
    return G, D


@pytest.mark.parametrize(("family", "shape"), CASES)
def test_samples_have_the_datas_shape_and_logits_are_one_each(family, shape):
    G, D = players(family, shape)
    samples = G(torch.randn(3, 5), None)
    assert samples.shape == (3, *shape)
    if len(shape) == 3:
        assert samples.abs().max() <= 1
    assert D(samples, None).shape == (3,)


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter(family, classes):
    G, D = players(family, (1, 16, 16), classes=classes)
    labels = torch.arange(4) if classes else None
    D(G(torch.randn(4, 5), labels), labels).sum().backward()
    for name, parameter in [*G.named_parameters(), *D.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_follow_from_the_seed_alone(family):
    torch.manual_seed(1)
    first, _ = players(family, (1, 8, 8))
    torch.manual_seed(2)
    again, _ = players(family, (1, 8, 8))
    other, _ = players(family, (1, 8, 8), seed=1)
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) and (torch.equal(a, c) == (not a.any())) for a, b, c in pairs)


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_a_dcgans_signal_neither_dies_nor_explodes_at_the_start(norm):
    G, D = players("dcgan", (3, 64, 64), norm=norm)
    samples = G(torch.randn(16, 5), None)
    assert 0.1 < samples.std() < 0.9
    assert 0.02 < D(torch.rand(16, 3, 64, 64) * 2 - 1, None).std() < 20


def test_labels_change_what_both_players_say():
    G, D = players("dcgan", (1, 8, 8), classes=3)
    z = torch.randn(2, 5)
    zero, one = torch.tensor([0, 0]), torch.tensor([1, 1])
    assert not torch.equal(G(z, zero), G(z, one))
    images = torch.randn(2, 1, 8, 8)
    assert not torch.equal(D(images, zero), D(images, one))
