"""StyleGAN2's parts against the paper's equations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gan.config import GeneratorConfig, ObjectiveConfig, Sample
from gan.networks import build_generator, stylegan2
from gan.networks.resampling import Filter
from gan.penalties import images_and_path_lengths
from gan.sampling import images_of
from gan.turns import GTurn
from tests.conftest import small_game
from tests.gan.play import new_game, play_rounds


def generator(*, classes: int = 0, size: int = 16) -> stylegan2.Generator:
    G = build_generator(
        GeneratorConfig(network="stylegan2", width=8, latent_dim=6, depth=2),
        conditioning="projection" if classes else "none",
        sample=Sample((1, size, size), classes),
        seed=0,
    )
    assert isinstance(G, stylegan2.Generator)
    return G.double()


def modulated(**how) -> stylegan2._Modulated:
    torch.manual_seed(0)
    layer = stylegan2._Modulated(3, 5, 3, style_dim=4, **how)
    stylegan2._equalized(layer)
    return layer.double()


class Brightness(nn.Module):
    """A D whose logit is the mean pixel."""

    def forward(self, images: torch.Tensor, labels: None) -> torch.Tensor:
        return images.flatten(1).mean(dim=1)


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulation_is_by_weights_of_each_samples_own(demodulate):
    """Karras et al. 2020, eq. 1 and 3, taken literally: scaled weights, then unit norms."""
    layer = modulated(demodulate=demodulate)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    style = torch.randn(2, 4, dtype=torch.float64)
    found = layer(x, style)
    for number in range(2):
        scale = 1 + layer.style(style[number])
        weight = layer.conv.weight * scale[None, :, None, None]
        if demodulate:
            norms = weight.square().sum(dim=(1, 2, 3), keepdim=True)
            weight = weight / (norms + 1e-8).sqrt()
        expected = F.conv2d(x[number][None], weight, padding=1)
        torch.testing.assert_close(found[number], expected[0])


def test_a_doubling_layer_is_its_convolution_of_the_picture_with_zeros_between_then_the_filter():
    smooth = Filter(1, 3, 3, 1).double()
    layer = modulated(demodulate=False, doubling=smooth)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    style = torch.zeros(1, 4, dtype=torch.float64)  # a scale of 1
    spread = torch.zeros(1, 3, 7, 7, dtype=torch.float64)
    spread[..., ::2, ::2] = x
    wide = F.conv2d(spread, layer.conv.weight.flip(2, 3), padding=2)
    torch.testing.assert_close(layer(x, style), smooth.smoothed(wide, padding=1, gain=4))
    assert layer(x, style).shape == (1, 5, 8, 8)


def test_rates_are_equalized():
    """Stored weights have a standard deviation of 1 (100 in the mapping network), used ones one of
    1 / sqrt(fan-in).
    """
    G = build_generator(
        GeneratorConfig(network="stylegan2", width=64, latent_dim=256),
        conditioning="none",
        sample=Sample((3, 16, 16)),
        seed=0,
    )
    assert isinstance(G, stylegan2.Generator)
    for layer, spread in ((G.get_submodule("convs.1.conv"), 1), (G.mapping.layers[1], 100)):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        stored = layer.get_parameter("parametrizations.weight.original").detach()
        used = layer.weight.detach()
        assert float(stored.std()) == pytest.approx(spread, rel=0.02)
        assert float(used.std()) == pytest.approx(used[0].numel() ** -0.5, rel=0.02)


def test_d_sees_how_much_neighbours_differ_in_groups_of_four():
    x = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    found = stylegan2._deviations(x)
    for group in (slice(0, 4), slice(4, 6)):
        deviation = x[group].std(dim=0, correction=0).mean()
        expected = deviation.expand(len(x[group]), 1, 2, 2)
        torch.testing.assert_close(found[group], expected, rtol=1e-6, atol=1e-6)


def test_mixed_styles_change_over_at_their_layer():
    G = generator()
    z, other = torch.randn(2, 3, 6, dtype=torch.float64)
    crossover = torch.tensor([0.0, 2.0, float(G.num_layers)])
    styles = G.styles(z, None, other, crossover)
    own, others = G.mapping(z, None), G.mapping(other, None)
    for number, first in enumerate([0, 2, G.num_layers]):
        for layer in range(G.num_layers):
            expected = others[number] if layer >= first else own[number]
            assert torch.equal(styles[number, layer], expected)
    assert torch.equal(G(z, None, other, crossover)[2], G(z, None)[2])


@pytest.mark.parametrize("classes", [0, 3])
def test_truncation_draws_styles_to_the_centre_of_their_class(classes):
    G = generator(classes=classes)
    seeds = list(range(12))
    labels = [seed % classes for seed in seeds] if classes else None
    how: dict = {"latent_dim": 6, "num_classes": classes, "labels": labels}
    whole, same = (images_of(G, seeds, truncation=psi, **how) for psi in (1.0, 0.0))
    assert torch.equal(whole, images_of(G, seeds, **how))
    for seed in seeds:
        twin = seed % classes if classes else 0
        assert torch.equal(same[seed], same[twin])
    if classes:
        assert not torch.equal(same[0], same[1])
    spread = [
        float(images_of(G, seeds, truncation=psi, **how).double().var(dim=0).mean())
        for psi in (0.3, 0.6, 1.0)
    ]
    assert spread == sorted(spread)


def test_a_linear_synthesis_has_path_lengths_known_in_advance():
    """image = A mean(styles): each of L layers moves it by A^T y / L, y over sqrt(h w)."""
    A = torch.randn(5, 12, dtype=torch.float64)
    styles = torch.randn(4, 7, 5, dtype=torch.float64)
    noise = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    images, lengths = images_and_path_lengths(
        lambda s: (s.mean(dim=1) @ A).view(-1, 3, 2, 2), styles, noise
    )
    assert images.shape == noise.shape
    expected = (noise.flatten(1) @ A.T).norm(dim=1) / 7 / 2
    torch.testing.assert_close(lengths, expected)


def test_gs_turn_pays_the_weight_times_the_interval_for_lengths_off_their_mean():
    G = generator()
    G.path_mean.fill_(0.3)
    config = ObjectiveConfig(name="nonsaturating", path_length_weight=2, path_length_interval=4)
    turn = GTurn(G, Brightness(), config)
    z = torch.randn(3, 6, dtype=torch.float64)
    noise = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    plain, _ = turn(None, z, None, {})
    paid, report = turn(None, z, None, {"path_noise": noise})
    _, lengths = images_and_path_lengths(G.images, G.styles(z, None), noise)
    torch.testing.assert_close(report["g/path_length"], lengths.detach().sum())
    torch.testing.assert_close(paid - plain, 8 * (lengths - 0.3).square().sum())


def test_the_mean_path_length_follows_and_belongs_to_the_state():
    changes = {
        "generator": GeneratorConfig(network="stylegan2", width=8, latent_dim=4, depth=1),
        "objective": ObjectiveConfig(path_length_weight=2, path_length_interval=2),
    }
    game = play_rounds(new_game(small_game(**changes)), 1)
    first = float(game.state_dict()["G/path_mean"])
    assert first > 0
    assert float(play_rounds(game, 1).state_dict()["G/path_mean"]) == first  # not its turn
    assert float(play_rounds(game, 1).state_dict()["G/path_mean"]) > first
