"""Every family: shapes, ranges, determinism, and gradients that reach every parameter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gan.config import (
    Conditioning,
    ConfigError,
    DiscriminatorConfig,
    GeneratorConfig,
    Network,
    Norm,
    ObjectiveConfig,
    Sample,
)
from gan.networks import (
    FAMILIES,
    build_discriminator,
    build_generator,
    iterate_spectral_norms,
)
from gan.penalties import Weights
from gan.turns import DTurn, GTurn

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


LABELLED: tuple[Conditioning, ...] = ("projection", "concatenation", "auxiliary")


def discriminator(conditioning: Conditioning, shape=(1, 16, 16), **changes) -> nn.Module:
    config = DiscriminatorConfig(**{"width": 8, **changes})
    return build_discriminator(config, conditioning=conditioning, sample=Sample(shape, 4), seed=0)


@pytest.mark.parametrize("conditioning", LABELLED)
@pytest.mark.parametrize(("family", "shape"), [("dcgan", (1, 16, 16)), ("mlp", (3,))])
@pytest.mark.parametrize("norm", ["none", "spectral"])
def test_gradients_reach_every_parameter_however_labels_enter(conditioning, family, shape, norm):
    D = discriminator(conditioning, shape, network=family, norm=norm)
    scores = D(torch.randn(6, *shape), torch.arange(6) % 4)
    assert scores.shape == ((6, 5) if conditioning == "auxiliary" else (6,))
    (scores * torch.randn_like(scores)).sum().backward()
    for name, parameter in D.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("conditioning", LABELLED)
def test_d_sees_the_label_but_where_it_has_to_name_it(conditioning):
    D, images = discriminator(conditioning), torch.randn(2, 1, 16, 16)
    zero, one = D(images, torch.tensor([0, 0])), D(images, torch.tensor([1, 1]))
    assert torch.equal(zero, one) == (conditioning == "auxiliary")


@pytest.mark.parametrize("family", ["dcgan", "mlp"])
def test_every_layer_of_a_spectrally_normalized_d_stretches_nothing(family):
    """The largest singular value of each weight, by torch's decomposition, comes to be 1."""
    D = discriminator("projection", network=family, norm="spectral")
    for _ in range(200):
        iterate_spectral_norms(D)
    layers = [m for m in D.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Embedding))]
    assert len(layers) >= 4
    for layer in layers:
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
        assert float(largest) == pytest.approx(1, abs=1e-3)


def test_looking_does_not_iterate_spectral_norms():
    """How often D looks depends on micro-batches, and they on the number of workers."""
    D = discriminator("none", norm="spectral")
    before = {name: value.clone() for name, value in D.state_dict().items()}
    D(torch.randn(3, 1, 16, 16), None)
    assert all(torch.equal(value, before[name]) for name, value in D.state_dict().items())
    iterate_spectral_norms(D)
    assert any(not torch.equal(value, before[name]) for name, value in D.state_dict().items())


def test_both_players_descend_what_an_auxiliary_classifier_gets_wrong():
    """Odena et al. 2017, eq. 2 and 3: with logits of 0 for 4 classes each image costs log 4."""
    D = discriminator("auxiliary")
    for parameter in D.get_submodule("head.classes").parameters():
        nn.init.zeros_(parameter)
    config = ObjectiveConfig(name="nonsaturating")
    labels, (real, fake) = torch.arange(6) % 4, torch.randn(2, 6, 1, 16, 16)
    for weight in (1.0, 0.5):
        plain, _ = DTurn(D, config)(real, fake, labels, Weights(), {})
        both, report = DTurn(D, config, class_weight=weight)(real, fake, labels, Weights(), {})
        assert float(report["d/class_loss"]) == pytest.approx(2 * 6 * math.log(4))
        assert float((both - plain).detach()) == pytest.approx(weight * 12 * math.log(4), rel=1e-4)
        G, _ = players("dcgan", (1, 16, 16), classes=4)
        z = torch.randn(6, 5)
        plain, _ = GTurn(G, D, config)(None, z, labels, {})
        both, _ = GTurn(G, D, config, class_weight=weight)(None, z, labels, {})
        assert float((both - plain).detach()) == pytest.approx(weight * 6 * math.log(4), rel=1e-4)


def test_spectral_normalization_is_for_d():
    with pytest.raises(ConfigError, match="spectral normalization bounds a D"):
        GeneratorConfig(norm="spectral")
