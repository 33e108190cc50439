"""Differentiable augmentation against its identities."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from gan.adaptive import AdaptiveProbability
from gan.augment import NUM_DRAWS, POLICIES, augment, resolved
from gan.config import (
    AugmentConfig,
    DiscriminatorConfig,
    GameConfig,
    ObjectiveConfig,
    Policy,
    Sample,
    Schedule,
    check_sample,
)
from gan.rules import ConfigError
from gan.world import World
from tests.conftest import small_game
from tests.gan.play import new_game, play_rounds

ALL = tuple(POLICIES)
# What images of one channel may have.
OF_GREYS: tuple[Policy, ...] = tuple(name for name in POLICIES if name != "hue")


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
    # A shift by 0 of -1, 0, 1 along both axes; no mirror; no turn of four; light as it is.
    unmoved = {"translation": 1 / 9, "flip": 1 / 2, "quarters": 1 / 4, "luma": 1 / 2}.get(name, 0)
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


def test_flips_and_quarter_turns_are_whole():
    x = images(3)
    assert torch.equal(applied("flip", x, 0.2), x.flip(3))
    assert torch.equal(applied("flip", x, 0.7), x)
    for times, drawn in enumerate((0.1, 0.3, 0.6, 0.9)):
        assert torch.equal(applied("quarters", x, drawn), x.rot90(times, (2, 3)))


def test_a_scale_is_linear_interpolation_about_the_middle():
    """The middle of the draws changes nothing; a picture that is linear stays so, with the slope
    over the factor; a shift is by 1/8 of the size at most; an even field stays even.
    """
    x = images(2, 16)
    torch.testing.assert_close(applied("scale", x, 0.5, 0.5, 0.5), x)
    slope = torch.linspace(-1, 1, 16, dtype=torch.float64).expand(1, 3, 16, 16)
    larger = applied("scale", slope, 1.0, 0.5, 0.5)
    torch.testing.assert_close(larger, slope / 2**0.5)
    moved = applied("scale", slope, 0.5, 0.5, 1.0)  # two pixels of 2/15 each
    torch.testing.assert_close(moved[..., 2:], slope[..., 2:] - 2 * 2 / 15)
    assert not moved[..., :2].any()
    even = applied("scale", torch.ones(1, 3, 16, 16, dtype=torch.float64), 0.0, 0.5, 0.5)
    inside = even[..., 4:12, 4:12]
    torch.testing.assert_close(inside, torch.ones_like(inside))
    assert not even[..., :1].any()


def spot(*, size: int, x: float, y: float, sigma: float = 2.0) -> torch.Tensor:
    """A Gaussian at (x, y) right of and below the middle, in pixels."""
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    squared = (place[None, :] - x) ** 2 + (place[:, None] - y) ** 2
    return torch.exp(-squared / (2 * sigma**2))[None, None]


@pytest.mark.parametrize("degrees", [-180, -135, -100, -45, -20, 0, 7, 45, 46, 90, 150])
def test_a_rotation_turns_anticlockwise_by_its_angle(degrees):
    """Whole quarters exactly; a spot goes where trigonometry says, and keeps mass and height."""
    drawn = degrees / 360 + 0.5
    x = images(2, 16)
    if degrees % 90 == 0:
        assert torch.equal(applied("rotation", x, drawn), x.rot90(degrees // 90 % 4, (2, 3)))
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    before = spot(size=32, x=6, y=-3)
    after = spot(size=32, x=6 * c - 3 * s, y=-6 * s - 3 * c)  # y points down
    turned = applied("rotation", before, drawn)
    assert float((turned - after).abs().max()) < 0.1  # three interpolations blur a little
    assert float(turned.sum()) == pytest.approx(float(before.sum()), rel=1e-3)


@pytest.mark.parametrize("degrees", [-130, -45, -20, 7, 45, 100])
def test_a_rotation_keeps_all_that_belongs_into_the_image(degrees):
    """An even image stays even wherever the turned frame still covers it, and is 0 beyond."""
    size, angle = 32, math.radians(degrees)
    turned = applied(
        "rotation", torch.ones(1, 1, size, size, dtype=torch.float64), degrees / 360 + 0.5
    )
    y, x = torch.meshgrid(
        *[torch.arange(size, dtype=torch.float64) - (size - 1) / 2] * 2, indexing="ij"
    )
    source = torch.stack(
        [x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)]
    )
    beyond = source.abs().amax(0) - (size - 1) / 2  # by how many pixels it came from outside
    assert float((turned[0, 0][beyond < -2] - 1).abs().max()) < 1e-12
    assert float(turned[0, 0][beyond > 3].abs().sum()) < 1e-12


def test_what_leaves_the_image_does_not_come_back_from_the_other_side():
    corners = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    corners[..., [0, 0, 15, 15], [0, 15, 0, 15]] = 1
    assert float(applied("rotation", corners, 45 / 360 + 0.5).abs().max()) < 1e-12


def test_a_stretch_makes_a_spot_wider_and_as_much_lower():
    wide = applied("stretch", spot(size=32, x=4, y=4), 1.0)[0, 0]
    place = torch.arange(32, dtype=torch.float64) - 31 / 2
    columns, rows = wide.sum(0) / wide.sum(), wide.sum(1) / wide.sum()
    for share, factor in ((columns, 2**0.5), (rows, 2**-0.5)):
        middle = float((share * place).sum())
        spread = float((share * (place - middle) ** 2).sum()) ** 0.5
        assert middle == pytest.approx(4 * factor, abs=0.01)
        # Means of neighbours add a pixel's own spread to it.
        assert spread == pytest.approx(2 * factor, abs=0.15)


def test_light_turns_dark_and_colours_turn_about_the_greys():
    x = images(3)
    grey = x.mean(1, keepdim=True)
    torch.testing.assert_close(applied("luma", x, 0.2), x - 2 * grey)
    assert torch.equal(applied("luma", x, 0.7), x)
    torch.testing.assert_close(applied("hue", x, 0.5), x)
    third = applied("hue", x, 0.5 + 1 / 3)  # a third of a circle: red to green to blue
    torch.testing.assert_close(third, x.roll(1, 1))
    eighth = applied("hue", x, 0.55)
    torch.testing.assert_close(eighth.mean(1, keepdim=True), grey)
    torch.testing.assert_close(eighth.norm(dim=1), x.norm(dim=1))


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
        config = small_game(augment=AugmentConfig(policies=OF_GREYS, probability=probability))
        return play_rounds(new_game(config), 2).state_dict()

    never, often = weights(0.0), weights(0.8)
    assert all(torch.equal(plain[key], never[key]) for key in plain)
    assert not torch.equal(plain["D/downs.0.weight"], often["D/downs.0.weight"])
    assert not torch.equal(plain["G/to_image.weight"], often["G/to_image.weight"])


def test_what_cannot_be_augmented_is_refused():
    with pytest.raises(ConfigError, match="policies must be named once each"):
        AugmentConfig(policies=("color", "color"))
    with pytest.raises(ConfigError, match=r"probability must be in \[0, 1\], got 1.5"):
        AugmentConfig(probability=1.5)
    mlps = {
        player: type(getattr(small_game(), player))(network="mlp", width=8)
        for player in ("generator", "discriminator")
    }
    often = {"probability": 0.5}
    config = GameConfig(
        **mlps, objective=ObjectiveConfig(), augment=AugmentConfig(policies=OF_GREYS, **often)
    )
    check_sample(config, Sample((1, 8, 8)))
    with pytest.raises(ConfigError, match="policies must be left out"):
        check_sample(config, Sample((2,)))
    with pytest.raises(ConfigError, match="'rotation' for square images only, got 1 x 8 x 4"):
        check_sample(config, Sample((1, 8, 4)))
    colours = dataclasses.replace(config, augment=AugmentConfig(policies=("hue",), **often))
    check_sample(colours, Sample((3, 8, 8)))
    with pytest.raises(ConfigError, match="'hue' for images of 3 channels only, got 1 x 8 x 8"):
        check_sample(colours, Sample((1, 8, 8)))


@pytest.mark.parametrize("policy", POLICIES)
def test_what_would_leak_into_g_is_refused_where_every_image_is_augmented(policy):
    """Those are the ones that are drawn from a group: there a fake that was augmented already is
    as likely as one that was not, whatever D knows.
    """
    group = policy in ("flip", "quarters", "rotation", "luma", "hue")
    for probability in (1.0, Schedule(start=0.0, end=1.0)):
        if group:
            with pytest.raises(ConfigError, match=f"below 1 with '{policy}'"):
                AugmentConfig(policies=(policy,), probability=probability)
        else:
            AugmentConfig(policies=(policy,), probability=probability)
    AugmentConfig(policies=(policy,), probability=0.8)
    AugmentConfig(policies=(policy,), target=0.6)


def adaptive(**changes) -> AdaptiveProbability:
    config = AugmentConfig(policies=("flip",), target=0.6, **{"adapt_kimg": 1.0, **changes})
    return AdaptiveProbability(config, batch_size=25, device=torch.device("cpu"))


def test_the_probability_rises_by_its_step_while_r_t_is_above_the_target_and_falls_below():
    """Four turns of 25 images, and 1,000 images from 0 to 1: steps of a tenth (r_t of Karras et
    al. 2020, NeurIPS, eq. 1).
    """
    p, world = adaptive(probability=0.25), World.current()

    def four_turns(signs: float) -> float:
        for turn in range(1, 5):
            p.add(torch.tensor(signs))
            p.settle(turn, world)
        return p.value

    assert four_turns(-25.0) == 0  # never below 0
    assert [four_turns(16.0), four_turns(16.0)] == pytest.approx([0.1, 0.2])  # 0.64 > 0.6
    assert four_turns(16.0) == 0.25  # never above its limit
    assert four_turns(14.0) == pytest.approx(0.15)
    assert four_turns(15.0) == pytest.approx(0.15)  # at its target


def test_an_adapting_game_is_stopped_and_resumed_to_the_bit_and_tells_its_probability():
    config = small_game(
        augment=AugmentConfig(policies=OF_GREYS, target=0.01, adapt_kimg=0.2),
        discriminator=DiscriminatorConfig(width=8, lr=1e-2),
    )
    whole = play_rounds(new_game(config), 31)
    half = new_game(config)  # within four turns: signs are part of the state
    half.load_state_dict(play_rounds(new_game(config), 14).state_dict())
    ended = play_rounds(half, 17).state_dict()
    state = whole.state_dict()
    assert all(torch.equal(state[key], ended[key]) for key in state)
    assert 0 < float(state["augment/p"]) <= 1
    assert whole.means.take(whole.world)["augment/p"] > 0


def test_what_cannot_adapt_is_refused():
    with pytest.raises(ConfigError, match="name some in policies"):
        AugmentConfig(target=0.6)
    with pytest.raises(ConfigError, match="target must be between 0 and 1"):
        AugmentConfig(policies=("flip",), target=1.0)
    with pytest.raises(ConfigError, match="one number with a target"):
        AugmentConfig(policies=("flip",), target=0.6, probability=Schedule(start=0.0, end=1.0))
    config = small_game(augment=AugmentConfig(policies=("quarters",), probability=0.8))
    with pytest.raises(ConfigError, match="for square images only"):
        check_sample(config, Sample((1, 8, 16)))
