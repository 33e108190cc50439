"""Every family: shapes, ranges, determinism, and gradients that reach every parameter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from gan.config import (
    Conditioning,
    ConfigError,
    DiscriminatorConfig,
    GameConfig,
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
from gan.networks.parts import BesideLabel
from gan.penalties import Weights
from gan.turns import DTurn, GTurn

SHAPES = {
    "dcgan": [(1, 8, 8), (3, 16, 16), (4, 32, 32), (1, 64, 64), (3, 128, 128)],
    "mlp": [(2,), (1, 8, 8), (3, 7, 9)],
    "resnet": [(1, 8, 8), (1, 16, 16), (3, 32, 32), (3, 64, 64), (4, 128, 128)],
    "r3gan": [(1, 8, 8), (1, 16, 16), (3, 32, 32), (3, 64, 64), (4, 128, 128), (3, 256, 256)],
    "stylegan2": [(1, 8, 8), (1, 16, 16), (3, 32, 32), (3, 64, 64), (4, 128, 128)],
}
BOUNDED = ("dcgan", "mlp", "resnet")  # families whose images end in tanh
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
    if len(shape) == 3 and family in BOUNDED:
        assert samples.abs().max() <= 1
    assert D(samples, None).shape == (3,)


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter(family, classes):
    G, D = players(family, (1, 16, 16), classes=classes)
    for parameter in [*G.parameters(), *D.parameters()]:
        if not parameter.any():  # as an r3gan block's last convolution, where it begins
            nn.init.normal_(parameter, std=0.1)
    labels = torch.arange(4) if classes else None
    D(G(torch.randn(4, 5), labels), labels).sum().backward()
    for name, parameter in [*G.named_parameters(), *D.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# Trainable parameters in millions: Huang et al. 2024 (arXiv 2501.05441), table 2, at 256 px: their
# StyleGAN2 and their own. Table 3 of Karras et al. 2020 and others count larger images.
PUBLISHED = {  # G and D of a width, with latents of so many numbers
    "r3gan": (768, 64, 23.058, 23.010),
    "stylegan2": (64, 512, 24.767, 24.001),
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_networks_of_the_papers_sizes_have_as_many_parameters(family):
    width, latent_dim, *published = PUBLISHED[family]
    how: dict = {"conditioning": "none", "sample": Sample((3, 256, 256)), "seed": 0}
    config = GeneratorConfig(network=family, width=width, latent_dim=latent_dim)
    with torch.device("meta"):
        G = build_generator(config, **how)
        D = build_discriminator(DiscriminatorConfig(network=family, width=width), **how)
    for player, millions in zip((G, D), published, strict=True):
        count = sum(parameter.numel() for parameter in player.parameters())
        assert count == pytest.approx(1e6 * millions, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_follow_from_the_seed_alone(family):
    torch.manual_seed(1)
    first, _ = players(family, (1, 8, 8))
    torch.manual_seed(2)
    again, _ = players(family, (1, 8, 8))
    other, _ = players(family, (1, 8, 8), seed=1)
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    for a, b, c in pairs:
        assert torch.equal(a, b)
        begins_alike = not a.any() or bool((a == 1).all())  # biases, scales of normalizations
        assert torch.equal(a, c) == begins_alike


STARTS = [
    *(("dcgan", norm) for norm in ("none", "group", "batch")),
    *(("resnet", norm) for norm in ("none", "group", "batch")),
    ("r3gan", None),
    ("stylegan2", None),
]


@pytest.mark.parametrize(("family", "norm"), STARTS)
@pytest.mark.parametrize("size", [32, 64])
def test_the_signal_neither_dies_nor_explodes_at_the_start(family, norm, size):
    how: dict = {"conditioning": "none", "sample": Sample((3, size, size)), "seed": 0}
    G = build_generator(GeneratorConfig(network=family, width=16, latent_dim=32, norm=norm), **how)
    D = build_discriminator(DiscriminatorConfig(network=family, width=16), **how)
    samples = G(torch.randn(16, 32), None)
    assert 0.1 < samples.std() < (0.9 if family in BOUNDED else 4)
    patches = torch.rand(16, 3, 4, 4) * 2 - 1  # large enough to last through low-pass filters
    logits = D(patches.repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3), None)
    assert 0.02 < logits.square().mean().sqrt() < 20


def test_a_network_of_another_familys_settings_is_refused_with_the_reason():
    for settings, said in [
        ({"network": "resnet", "depth": 3}, "depth is for network = 'mlp' or 'r3gan' or"),
        ({"network": "r3gan", "norm": "group"}, "'r3gan' plays without"),
        ({"network": "stylegan2", "norm": "spectral"}, "a scale of their own"),
        ({"network": "r3gan", "norm": "spectral"}, "a scale of their own"),
        ({"network": "stylegan2", "depth": 2}, "mapping network"),
    ]:
        with pytest.raises(ConfigError, match=said):
            DiscriminatorConfig(**settings)
    with pytest.raises(ConfigError, match="style_mixing is for network = 'stylegan2' only"):
        GeneratorConfig(style_mixing=0.5)
    with pytest.raises(ConfigError, match="path_length_weight is for generator"):
        GameConfig(objective=ObjectiveConfig(path_length_weight=2))


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
@pytest.mark.parametrize(
    ("family", "shape"),
    [("dcgan", (1, 16, 16)), ("mlp", (3,)), ("resnet", (1, 16, 16)), ("stylegan2", (1, 16, 16))],
)
@pytest.mark.parametrize("norm", ["none", "spectral"])
def test_gradients_reach_every_parameter_however_labels_enter(conditioning, family, shape, norm):
    if (family, norm) == ("stylegan2", "spectral"):
        pytest.skip("stylegan2 has scales of its own")
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


@pytest.mark.parametrize("family", ["dcgan", "mlp", "resnet"])
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


def test_a_picture_of_a_label_is_as_bright_as_images_with_spectral_norms_too():
    """It is input, no layer: divided by its table's largest singular value it would be dim."""
    D = discriminator("concatenation", norm="spectral")
    assert isinstance(D, BesideLabel)
    assert float(D.embedding.weight.detach().std()) == pytest.approx(1, abs=0.1)
    assert parametrize.is_parametrized(next(m for m in D.modules() if isinstance(m, nn.Conv2d)))


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
