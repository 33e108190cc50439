"""Games of every rule: what they promise, what cannot be, and what workers may not change."""

from __future__ import annotations

import dataclasses

import pytest

from gan.config import (
    AugmentConfig,
    ConditioningConfig,
    ConfigError,
    DiscriminatorConfig,
    GeneratorConfig,
    ObjectiveConfig,
    Sample,
    TurnsConfig,
)
from gan.game import Game
from tests.conftest import small_game
from tests.gan.play import (
    TOLERANCE,
    equal,
    largest_difference,
    new_game,
    play_rounds,
    state_after,
    states_after,
)
from tests.ranks import run_ranks


def test_a_game_that_the_data_does_not_allow_is_refused_with_every_reason():
    config = small_game(conditioning=ConditioningConfig(name="projection"))
    with pytest.raises(ConfigError) as caught:
        Game(config, Sample((1, 28, 28)), seed=0)
    assert [m.split()[0] for m in caught.value.mistakes] == [
        "generator.network", "discriminator.network", "conditioning.name",
    ]  # fmt: skip


DOUBLE = TurnsConfig(batch_size=8, precision="float64")
SPLIT_GAMES: dict[str, dict] = {
    "micro-batches of uneven shares": {
        "turns": TurnsConfig(batch_size=8, micro_batch=3, precision="float64")
    },
    "conditional, two D turns, lazy penalty": {
        "turns": TurnsConfig(batch_size=8, d_steps=2, precision="float64"),
        "conditioning": ConditioningConfig(name="projection"),
        "objective": ObjectiveConfig(name="nonsaturating", penalty_interval=3),
    },
    "means over the batch": {  # of uneven shares: a mean of the ranks' means is another game
        "turns": DOUBLE,
        "objective": ObjectiveConfig(name="relativistic-average"),
    },
    "penalties between pairs, labels beside augmented images, rmsprop": {
        "turns": TurnsConfig(batch_size=8, micro_batch=2, precision="float64"),
        "objective": ObjectiveConfig(name="wasserstein", gp_lambda=10.0),
        "conditioning": ConditioningConfig(name="concatenation"),
        "augment": AugmentConfig(policies=("color", "translation", "cutout"), probability=0.5),
        "discriminator": DiscriminatorConfig(
            width=8, lr=1e-4, optimizer="rmsprop", max_grad_norm=1.0
        ),
    },
    "penalties by differences, an auxiliary classifier, spectral norms": {
        # Uneven shares in micro-batches of 1: ranks look at D three times and twice.
        "turns": TurnsConfig(batch_size=8, micro_batch=1, precision="float64"),
        "objective": ObjectiveConfig(name="hinge", penalty_method="differences"),
        "conditioning": ConditioningConfig(name="auxiliary"),
        "discriminator": DiscriminatorConfig(width=8, lr=1e-3, norm="spectral"),
    },
    "augmentation that adapts": {
        "turns": TurnsConfig(batch_size=8, micro_batch=2, precision="float64"),
        "augment": AugmentConfig(policies=("flip", "quarters", "scale"), target=0.3, adapt_kimg=1),
    },
    "codes to be read off images": {
        "turns": TurnsConfig(batch_size=8, micro_batch=3, precision="float64"),
        "generator": GeneratorConfig(
            width=8, latent_dim=8, lr=1e-3, discrete_codes=3, continuous_codes=2
        ),
        "conditioning": ConditioningConfig(name="projection"),
    },
    "residual players, spectral norms, labels named": {
        "turns": DOUBLE,
        "objective": ObjectiveConfig(name="hinge", r1_gamma=0, r2_gamma=0),
        "conditioning": ConditioningConfig(name="projection"),
        "generator": GeneratorConfig(network="resnet", width=8, latent_dim=4, lr=1e-3),
        "discriminator": DiscriminatorConfig(network="resnet", width=8, lr=1e-3, norm="spectral"),
    },
    "fakes that both players see, labels, two turns of D": {
        "turns": TurnsConfig(batch_size=8, d_steps=2, precision="float64", reuse_fakes=True),
        "conditioning": ConditioningConfig(name="projection"),
    },
    "residual players without norms": {
        "turns": TurnsConfig(batch_size=8, micro_batch=3, precision="float64"),
        "generator": GeneratorConfig(network="r3gan", width=8, latent_dim=4, lr=1e-3),
        "discriminator": DiscriminatorConfig(network="r3gan", width=8, depth=1, lr=1e-3),
    },
    "styles mixed, lengths of paths, deviations in groups of four": {
        "turns": TurnsConfig(batch_size=12, micro_batch=4, precision="float64"),
        "objective": ObjectiveConfig(path_length_weight=2, path_length_interval=2),
        "generator": GeneratorConfig(
            network="stylegan2", width=8, latent_dim=4, depth=2, lr=1e-3, style_mixing=0.5
        ),
        "discriminator": DiscriminatorConfig(network="stylegan2", width=8, lr=1e-3),
    },
}


@pytest.mark.parametrize("name", SPLIT_GAMES)
def test_a_game_of_any_rules_goes_on_bit_for_bit(name):
    changes = SPLIT_GAMES[name]
    whole = state_after(4, changes)
    half = new_game(small_game(**changes))
    half.load_state_dict(state_after(2, changes))
    assert equal(play_rounds(half, 2).state_dict(), whole)


IMPOSSIBLE = [
    (
        {"objective": ObjectiveConfig(name="wasserstein", r1_gamma=0, r2_gamma=0)},
        "'wasserstein' needs a bound on its critic",
    ),
    (
        {
            "objective": ObjectiveConfig(name="relativistic-average"),
            "turns": TurnsConfig(batch_size=8, micro_batch=4),
        },
        "micro_batch must be left out",
    ),
    (
        {
            "objective": ObjectiveConfig(r1_gamma=0, r2_gamma=0, gp_lambda=1),
            "discriminator": DiscriminatorConfig(norm="batch"),
        },
        "'batch'",
    ),
]


@pytest.mark.parametrize(("changes", "said"), IMPOSSIBLE)
def test_an_impossible_combination_is_refused_with_the_reason(changes, said):
    with pytest.raises(ConfigError, match=said):
        small_game(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weight_clip": 0.01}, "weight_clip is for name = 'wasserstein' only"),
        ({"gp_lambda": 1.0, "penalty_method": "differences"}, "gp_lambda must be 0 with"),
        ({"gp_target": -1.0}, "gp_target must be >= 0"),
        ({"penalty_sigma": 0.0}, "penalty_sigma must be > 0"),
    ],
)
def test_an_objective_that_cannot_be_is_refused_with_the_reason(changes, said):
    with pytest.raises(ConfigError, match=said):
        ObjectiveConfig(**changes)


@pytest.mark.slow
def test_three_workers_play_what_one_plays():
    games = list(SPLIT_GAMES.values())
    alone = states_after(20, games)
    for rank in run_ranks(states_after, 3, 20, games):
        for name, state, one in zip(SPLIT_GAMES, rank, alone, strict=True):
            assert largest_difference(state, one) < TOLERANCE["float64"], name


@pytest.mark.slow
def test_compiled_steps_are_the_eager_ones_up_to_rounding_with_one_worker_and_with_two():
    """R1 and R2 need second derivatives inside the compiled step."""
    eager = {"turns": DOUBLE, "objective": ObjectiveConfig(penalty_interval=2)}
    compiled = eager | {"turns": dataclasses.replace(DOUBLE, compile=True)}
    expected = state_after(4, eager)
    for world_size in (1, 2):
        for state in run_ranks(state_after, world_size, 4, compiled):
            assert largest_difference(state, expected) < TOLERANCE["float64"]


@pytest.mark.slow
def test_deviations_in_groups_that_workers_cut_make_another_game():
    """What `gan.networks.stylegan2` says: shares of 3, 3 and 2 are no multiples of 4. How far it
    is off: after two rounds Adam has gone other ways, by lr and at most sqrt 2 lr to either side
    (beta1 is 0 and beta2 0.99, so a second gradient far above the first is 1.41 of its mean).
    """
    changes = {
        "turns": DOUBLE,
        "discriminator": DiscriminatorConfig(network="stylegan2", width=8, lr=1e-3),
    }
    alone = state_after(2, changes)
    for state in run_ranks(state_after, 3, 2, changes):
        weights = {name: value for name, value in state.items() if name.startswith("D/")}
        off = max(float((value - alone[name]).abs().max()) for name, value in weights.items())
        assert 1e-6 < off < 2 * (1 + 2**0.5) * 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [False, True], ids=["fakes of their own", "fakes reused"])
def test_batch_normalization_leaves_one_generator_on_all_ranks(reuse):
    changes = {
        "generator": GeneratorConfig(width=8, latent_dim=4, norm="batch"),
        "turns": TurnsConfig(batch_size=8, reuse_fakes=reuse),
    }
    first, second = run_ranks(state_after, 2, 20, changes)
    assert any("running_mean" in name for name in first)
    assert equal(first, second)
