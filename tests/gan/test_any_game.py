"""Any valid experiment plays, stops and goes on to the bit; any other is refused with a reason."""

from __future__ import annotations

from typing import get_args

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gan.adaptive import TURNS as ADAPTS_EVERY
from gan.config import (
    AugmentConfig,
    Conditioning,
    ConditioningConfig,
    ConfigError,
    DiscriminatorConfig,
    GameConfig,
    GeneratorConfig,
    Network,
    ObjectiveConfig,
    ObjectiveName,
    PenaltyMethod,
    Policy,
    Sample,
    TurnsConfig,
    check_sample,
)
from gan.game import Game
from tests.elsewhere import ELSEWHERE, VARIES_ON_GPUS, elsewhere
from tests.gan.play import SHAPE, TOLERANCE, largest_difference, new_game, play_rounds

NETWORKS = st.sampled_from(get_args(Network))
OPTIMIZERS = {"optimizer": st.sampled_from(["adam", "adamw", "rmsprop", "sgd"])}
WEIGHTS = st.sampled_from([0.0, 1.0])

GENERATORS = st.fixed_dictionaries(
    {
        "network": NETWORKS,
        "norm": st.sampled_from([None, "none", "group", "batch"]),
        "style_mixing": st.sampled_from([0.0, 0.5]),
        "discrete_codes": st.sampled_from([0, 0, 2]),
        "continuous_codes": st.sampled_from([0, 0, 1]),
        **OPTIMIZERS,
    }
)
DISCRIMINATORS = st.fixed_dictionaries(
    {
        "network": NETWORKS,
        "norm": st.sampled_from([None, "none", "group", "batch", "spectral"]),
        "max_grad_norm": st.sampled_from([None, 1.0]),
        **OPTIMIZERS,
    }
)
OBJECTIVES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(get_args(ObjectiveName)),
        "r1_gamma": WEIGHTS,
        "r2_gamma": WEIGHTS,
        "gp_lambda": WEIGHTS,
        "penalty_interval": st.integers(1, 2),
        "penalty_method": st.sampled_from(get_args(PenaltyMethod)),
        "path_length_weight": st.sampled_from([0.0, 2.0]),
        "weight_clip": st.sampled_from([None, 0.1]),
    }
)
TURNS = st.fixed_dictionaries(
    {
        "d_steps": st.integers(1, 2),
        "g_steps": st.integers(1, 2),
        "micro_batch": st.sampled_from([None, 2]),
        "precision": st.sampled_from(["float32", "bfloat16", "float64"]),
        "reuse_fakes": st.sampled_from([False, False, True]),
    }
)
POLICIES = st.lists(st.sampled_from(get_args(Policy)), unique=True, max_size=3).map(tuple)


@st.composite
def drawn(draw, *, mended: bool = False) -> tuple[dict, ...]:
    """The settings of a game as a file would hold them: half of them are what cannot be, or few
    where they are `mended`.
    """
    generator, discriminator = draw(GENERATORS), draw(DISCRIMINATORS)
    objective, turns = draw(OBJECTIVES), draw(TURNS)
    if mended or draw(st.booleans()):
        _mend(generator, discriminator, objective, turns)
    conditioning = {"name": draw(st.sampled_from(get_args(Conditioning)))}
    policies = draw(POLICIES)
    target = draw(st.sampled_from([None, 0.2])) if policies else None
    augment = {"policies": policies, "probability": 0.5, "target": target}
    return generator, discriminator, objective, turns, conditioning, augment


def _mend(generator: dict, discriminator: dict, objective: dict, turns: dict) -> None:
    """What the words of the README rule out, taken back."""
    for player in (generator, discriminator):
        if player["network"] not in ("dcgan", "resnet"):
            spectral = player["network"] == "mlp" and player["norm"] == "spectral"
            player["norm"] = "spectral" if spectral else None
    if generator["network"] != "stylegan2":
        generator["style_mixing"] = objective["path_length_weight"] = 0.0
    else:
        generator["discrete_codes"] = generator["continuous_codes"] = 0
    if objective["name"] != "wasserstein":
        objective["weight_clip"] = None
    if objective["name"] == "relativistic-average":
        turns["micro_batch"] = None
    if turns["reuse_fakes"]:
        turns["g_steps"], turns["micro_batch"] = 1, None
        objective["path_length_weight"] = 0.0
    if objective["penalty_method"] == "differences":
        objective["gp_lambda"] = 0.0
    penalized = any(objective[key] for key in ("r1_gamma", "r2_gamma", "gp_lambda"))
    if penalized and discriminator["norm"] == "batch":
        discriminator["norm"] = "group"
    if objective["name"] == "wasserstein" and not penalized:
        objective["weight_clip"] = 0.1


def config_of(parts: tuple[dict, ...]) -> GameConfig:
    """Raises ConfigError where it cannot be."""
    generator, discriminator, objective, turns, conditioning, augment = parts
    config = GameConfig(
        generator=GeneratorConfig(width=8, latent_dim=4, lr=1e-4, **generator),
        discriminator=DiscriminatorConfig(width=8, lr=1e-4, **discriminator),
        objective=ObjectiveConfig(**objective),
        conditioning=ConditioningConfig(**conditioning),
        augment=AugmentConfig(**augment),
        turns=TurnsConfig(batch_size=4, total_kimg=1, **turns),
    )
    check_sample(config, Sample(SHAPE, num_classes=2))
    return config


@settings(max_examples=40)
@given(drawn())
def test_any_game_is_refused_with_reasons_or_goes_on_bit_for_bit_wherever_it_was_stopped(parts):
    try:
        config = config_of(parts)
    except ConfigError as error:
        for mistake in error.mistakes:
            assert any(word in mistake for word in ("got", "needs", "plays")), mistake
        return
    whole = play_rounds(new_game(config), 2)
    half = new_game(config)
    half.load_state_dict(copied(play_rounds(new_game(config), 1)))
    ended = play_rounds(half, 1).state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, ended[name]), name
    assert whole.is_finite()


@settings(max_examples=40)
@given(drawn(mended=True))
def test_any_game_plays_on_another_device_without_waiting_for_it(parts):
    """The same game as on the CPU, but for the rounding of another order of sums, and gone on with
    from a state on the CPU. Adapted augmentation waits, every so many turns. All its operations
    have a CUDA kernel that gives the same bits each time.
    """
    try:
        config = config_of(parts)
    except ConfigError:
        return
    with elsewhere() as seen:
        first = play_rounds(new_game(config, device=ELSEWHERE), 1)
        second = new_game(config, device=ELSEWHERE)
        second.load_state_dict(copied(first))
        seen.waits.clear()
        play_rounds(second, 1)
        settled = second.d_turns // ADAPTS_EVERY - first.d_turns // ADAPTS_EVERY
        assert seen.waits.total() == (0 if config.augment.target is None else settled)
        assert second.is_finite()
        assert not seen.operations & VARIES_ON_GPUS
        there = copied(second)
    # Autocast does nothing there; and in float32 what Adam divides by where a gradient is zero in
    # exact arithmetic is the rounding itself.
    if config.turns.precision == "float64":
        here = play_rounds(new_game(config), 2).state_dict()
        assert largest_difference(here, there) < TOLERANCE["float64"]


def copied(game: Game) -> dict[str, Tensor]:
    """Its state, on the CPU."""
    return {name: value.cpu().clone() for name, value in game.state_dict().items()}
