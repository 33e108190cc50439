"""Differentiable augmentation against its identities."""

from __future__ import annotations

import pytest
import torch

from gan.augment import NUM_DRAWS, POLICIES, augment, resolved
from gan.config import (
    AugmentConfig,
    GameConfig,
    ObjectiveConfig,
    Policy,
    Sample,
    check_sample,
)
from gan.rules import ConfigError
from tests.conftest import small_game
from tests.gan.play import new_game, play_rounds

ALL = tuple(POLICIES)


def uniforms(count: int = 6) -> torch.Tensor:
    return torch.rand(count, NUM_DRAWS, dtype=torch.float64)


def images(count: int = 6, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, size, size, dtype=torch.float64) * 2 - 1


def applied(name: Policy, x: torch.Tensor, *own: float) -> torch.Tensor:
    """One policy alone, with the same numbers for every image."""
    draws = torch.zeros(len(x), NUM_DRAWS, dtype=x.dtype)
    first, _ = POLICIES[name]
    draws[:, first] = 1
    draws[:, first + 1 : first + 1 + len(own)] = torch.tensor(own, dtype=x.dtype)
    return augment(x, draws, policies=(name,))


@pytest.mark.parametrize("policies", [(), *[(name,) for name in ALL], ALL])
def test_at_probability_0_it_is_the_identity_to_the_bit(policies):
    x = images()
    assert torch.equal(augment(x, resolved(uniforms(), 0.0), policies=policies), x)


@pytest.mark.parametrize("name", ALL)
def test_at_probability_one_half_every_second_image_is_left_as_it_is(name):
    x = images(2000, 8)
    changed = augment(x, resolved(uniforms(2000), 0.5), policies=(name,)) != x
    share = changed.flatten(1).any(1).double().mean()
    unmoved = 1 / 9 if name == "translation" else 0  # a shift by 0 of -1, 0, 1 along both axes
    assert float(share) == pytest.approx(0.5 * (1 - unmoved), abs=4 * 0.5 / 2000**0.5)


def test_a_translation_shifts_by_whole_pixels_and_brings_in_zeros():
    x = images(2, 16)  # at most 2 pixels
    assert torch.equal(applied("translation", x, 0.5, 0.5), x)
    down = applied("translation", x, 0.999, 0.5)
    assert torch.equal(down[:, :, 2:], x[:, :, :-2])
    assert not down[:, :, :2].any()
    left = applied("translation", x, 0.5, 0.0)
    assert torch.equal(left[..., :-2], x[..., 2:])
    assert not left[..., -2:].any()


def test_a_cutout_is_half_as_large_as_the_image_and_goes_over_its_border():
    x = torch.ones(1, 3, 8, 8)
    inside = applied("cutout", x, 0.5, 0.5)  # 4 of 0 to 8, so pixels 2 to 5
    assert not inside[:, :, 2:6, 2:6].any()
    assert inside.sum() == 3 * (64 - 16)
    corner = applied("cutout", x, 0.0, 0.0)
    assert not corner[:, :, :2, :2].any()
    assert corner.sum() == 3 * (64 - 4)


def test_colors_change_the_mean_the_greys_and_the_range():
    x = images()
    torch.testing.assert_close(applied("color", x, 0.5, 0.5, 0.5), x)
    torch.testing.assert_close(applied("color", x, 0.8, 0.5, 0.5), x + 0.3)
    grey = applied("color", x, 0.5, 0.0, 0.5)
    torch.testing.assert_close(grey, x.mean(1, keepdim=True).expand_as(x))
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(applied("color", x, 0.5, 0.5, 0.75) - mean, 1.25 * (x - mean))


def test_gradients_pass_and_an_images_own_are_its_own():
    x = images().requires_grad_()
    draws = resolved(uniforms(), 1.0)
    whole = augment(x, draws, policies=ALL)
    whole[2].sum().backward()
    assert x.grad is not None
    assert x.grad[2].abs().sum() > 0
    assert not x.grad[[0, 1, 3, 4, 5]].any()
    alone = augment(x[2:3], draws[2:3], policies=ALL)
    torch.testing.assert_close(alone, whole[2:3])


def test_r1_is_of_the_image_before_its_augmentation():
    """Under a translation alone, a D that adds up all pixels is as steep as pixels stay inside."""
    from gan.penalties import logits_and_steepness

    x, draws = images(50), resolved(uniforms(50), 1.0)
    _, steepness = logits_and_steepness(
        lambda s: augment(s, draws, policies=("translation",)).flatten(1).sum(1), x
    )
    inside = augment(torch.ones_like(x), draws, policies=("translation",)).flatten(1).sum(1)
    torch.testing.assert_close(steepness, inside)
    assert 3 * 49 <= float(steepness.min()) < float(steepness.max()) == 3 * 64


def test_both_players_turns_augment_reals_and_fakes_and_at_0_nothing_changes():
    plain = play_rounds(new_game(small_game()), 2).state_dict()

    def weights(probability: float) -> dict:
        config = small_game(augment=AugmentConfig(policies=ALL, probability=probability))
        return play_rounds(new_game(config), 2).state_dict()

    never, always = weights(0.0), weights(1.0)
    assert all(torch.equal(plain[key], never[key]) for key in plain)
    assert not torch.equal(plain["D/downs.0.weight"], always["D/downs.0.weight"])
    assert not torch.equal(plain["G/to_image.weight"], always["G/to_image.weight"])


def test_what_cannot_be_augmented_is_refused():
    with pytest.raises(ConfigError, match="policies must be named once each"):
        AugmentConfig(policies=("color", "color"))
    with pytest.raises(ConfigError, match=r"probability must be in \[0, 1\], got 1.5"):
        AugmentConfig(probability=1.5)
    mlps = {
        player: type(getattr(small_game(), player))(network="mlp", width=8)
        for player in ("generator", "discriminator")
    }
    config = GameConfig(**mlps, objective=ObjectiveConfig(), augment=AugmentConfig(policies=ALL))
    check_sample(config, Sample((1, 8, 8)))
    with pytest.raises(ConfigError, match="policies must be left out"):
        check_sample(config, Sample((2,)))
