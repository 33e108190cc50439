"""Games that are well are left in peace; games made to fail are told from them, each its way."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gan.config import ObjectiveConfig, Steps
from gan.game import Game
from gan.health import Health, Verdict
from tests.gan.digits8 import Line, digits_game, journal


def judged(lines: list[Line], *, num_images: int = 10_000) -> list[tuple[int, Verdict]]:
    health = Health(num_images=num_images)
    return [(nimg, health.judge(nimg, metrics)) for nimg, metrics in lines]


def first(verdicts: list[tuple[int, Verdict]], state: str) -> tuple[int, Verdict]:
    return next((nimg, verdict) for nimg, verdict in verdicts if verdict.state == state)


def nonsaturating(**gammas: float) -> ObjectiveConfig:
    return ObjectiveConfig(name="nonsaturating", **gammas)  # pyright: ignore[reportArgumentType]


WGAN_GP = ObjectiveConfig(name="wasserstein", gp_lambda=10.0, r1_gamma=0.0, r2_gamma=0.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "objective",
    [
        ObjectiveConfig(penalty_interval=4),
        ObjectiveConfig(r1_gamma=0.0, r2_gamma=0.0),
        nonsaturating(r1_gamma=0.1, r2_gamma=0.0),
        nonsaturating(r1_gamma=0.0, r2_gamma=0.0),
    ],
    ids=["relativistic", "relativistic, no penalty", "nonsaturating", "nonsaturating, no penalty"],
)
def test_a_healthy_game_is_never_under_alarm(objective, seed):
    lines = list(journal(digits_game(objective=objective), seed=seed))
    verdicts = judged(lines)
    assert {verdict.state for _, verdict in verdicts} == {"healthy"}
    assert sum(verdict.sound for _, verdict in verdicts) >= 0.8 * len(verdicts)
    scores = [m["score/fd_pixels_500"] for _, m in lines if "score/fd_pixels_500" in m]
    assert scores[-1] < 0.8 * scores[0]  # it was healthy indeed


def test_a_critics_losses_may_be_of_any_size():
    """W1 of images is their distance in pixels, and a critic's zero is anywhere; a D that states
    probabilities has none left at such a loss.
    """
    lost = {"d/loss": -180.0, "g/loss": 400.0, "d/grad_norm": 5.0, "g/grad_norm": 5.0}
    for name, state in (("game/distance", "healthy"), ("game/value", "diverging")):
        assert judged([(n, lost | {name: -180.0}) for n in (1, 2, 3)])[-1][1].state == state


@pytest.mark.parametrize("objective", [ObjectiveConfig(), WGAN_GP], ids=lambda o: o.name)
def test_learning_rates_far_too_high_diverge_and_what_was_before_is_sound(objective):
    lr = Steps(at_kimg=(0, 2.4), values=(1e-3, 1.0))
    game = digits_game(g_lr=lr, d_lr=lr, total_kimg=3, objective=objective)
    verdicts = judged(list(journal(game)))
    assert all(v.state == "healthy" and v.sound for nimg, v in verdicts if nimg <= 2400)
    nimg, verdict = first(verdicts, "diverging")
    assert 2400 < nimg <= 2400 + 3 * 160
    assert not any(v.sound for at, v in verdicts if at > 2400)
    assert verdict.lost
    assert max(verdict.evidence.values()) > 1000
    assert "lower generator.lr" in verdict.remedy


def test_a_number_that_is_none_is_divergence_at_once():
    """How to make a run lose itself from outside, at a known time and by its experiment alone: a
    learning rate in steps.
    """
    lr = Steps(at_kimg=(0, 2), values=(1e-3, 1e6))
    verdicts = judged(list(journal(digits_game(g_lr=lr, d_lr=lr, total_kimg=3))))
    nimg, verdict = first(verdicts, "diverging")
    assert nimg == 2080
    assert all(v.sound for at, v in verdicts if at < nimg)
    assert verdict.reason.endswith("nan")
    assert not any(math.isfinite(value) for value in verdict.evidence.values())


@pytest.mark.parametrize("name", ["nonsaturating", "minimax"])
def test_a_d_that_is_far_too_strong_has_won(name):
    objective = ObjectiveConfig(name=name, r1_gamma=0.0, r2_gamma=0.0)
    config = digits_game(objective=objective, g_lr=1e-5, d_lr=1e-2, total_kimg=4)
    verdicts = judged(list(journal(config)))
    _, verdict = first(verdicts, "diverging")
    assert verdict.reason.startswith("D has won")
    assert verdict.evidence["game/value"] > -0.01


def of_one_mode(from_nimg: int):
    """Makes G deaf to its latent: it learns on, and makes one image."""

    def deaf(module: nn.Module, given: tuple, z: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(z)

    def after(game: Game) -> None:
        if game.nimg == from_nimg:
            for G in (game.G, game.G_ema):
                G.get_submodule("latent").register_forward_hook(deaf)

    return after


def test_a_g_that_makes_one_image_from_the_start_is_collapsed():
    lines = list(journal(digits_game(total_kimg=5), judged_ticks=4, after=of_one_mode(160)))
    verdicts = judged(lines)
    _, verdict = first(verdicts, "collapsing")
    assert verdict.evidence["score/diversity_pixels_500"] < 0.01
    assert not verdict.lost  # there is nothing to go back to
    assert abs(lines[-1][1]["game/value"] + math.log(4)) < 1.2  # no news from the value


def test_a_g_that_falls_onto_one_image_after_it_was_well_is_lost():
    lines = list(journal(digits_game(total_kimg=5), judged_ticks=4, after=of_one_mode(3200)))
    verdicts = judged(lines)
    nimg, verdict = first(verdicts, "collapsing")
    assert 3200 + 640 < nimg <= 3200 + 3 * 640
    assert verdict.lost
    assert all(v.state == "healthy" and v.sound for at, v in verdicts if at <= 3200)
    assert verdict.evidence["best"] > 0.5 > verdict.evidence["score/diversity_pixels_500"]


def test_a_large_d_on_fifty_images_knows_them_by_heart():
    config = digits_game(
        objective=nonsaturating(r1_gamma=0.0, r2_gamma=0.0),
        g_width=16, d_width=256, d_lr=1e-3, total_kimg=42,  # it comes at 23 to 28, by the seed
    )  # fmt: skip
    lines = list(journal(config, num_images=50, tick_nimg=320))
    verdicts = judged(lines, num_images=50)
    _, verdict = first(verdicts, "overfitting")
    assert verdict.evidence["d/real_sign"] > 0.6
    assert verdict.evidence["fd"] > verdict.evidence["best"]
    assert verdict.sound  # the players are in order, and not lost
    assert not verdict.lost
    # The same numbers of as many images as nobody could learn by heart say nothing.
    assert "overfitting" not in {v.state for _, v in judged(lines, num_images=10_000)}


WELL = {"d/loss": 1.3, "g/loss": 0.7, "game/value": -1.3, "d/grad_norm": 1.0, "g/grad_norm": 0.5,
        "d/real_sign": 0.3, "speed/img_per_sec": 50.0}  # fmt: skip


@given(st.sampled_from(sorted(WELL)), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_whatever_is_not_finite_is_divergence_but_for_speeds_and_verdicts(name, value):
    metrics = WELL | {name: value, "health/verdict": math.nan}
    verdict = Health().judge(100, metrics)
    assert (verdict.state == "diverging") == (not name.startswith("speed/"))


def judged_as(**changes: float) -> list[Verdict]:
    """Verdicts on 12 ticks that are well and 2 more with these numbers."""
    health = Health()
    for tick in range(1, 13):
        assert health.judge(tick, WELL).state == "healthy"
    return [health.judge(13, WELL | changes), health.judge(14, WELL | changes)]


@pytest.mark.parametrize("name", ["d/grad_norm", "g/grad_norm", "d/loss", "g/loss"])
def test_a_spike_is_suspicious_and_a_second_one_is_divergence(name):
    once, twice = judged_as(**{name: 1e4})
    assert (once.state, once.sound) == ("healthy", False)
    assert (twice.state, twice.sound, twice.lost) == ("diverging", False, True)
    assert [v.state for v in judged_as(**{name: 50.0})] == ["healthy"] * 2


def test_a_gradient_that_comes_back_to_life_does_not_explode():
    health = Health()
    for tick in range(1, 13):
        health.judge(tick, WELL | {"g/grad_norm": 1e-7})
    for tick in range(13, 20):
        assert health.judge(tick, WELL).sound


def test_a_value_of_minus_log_4_makes_no_collapsed_game_healthy():
    health, tossed = Health(), WELL | {"game/value": -math.log(4), "d/accuracy": 0.5}
    verdicts = [
        health.judge(tick, tossed | {"score/diversity_x_1k": diversity, "score/fd_x_1k": fd})
        for tick, (diversity, fd) in enumerate([(0.9, 2.0), (0.1, 9.0), (0.1, 9.0)])
    ]
    assert [verdict.state for verdict in verdicts] == ["healthy", "healthy", "collapsing"]


def test_a_distance_far_above_its_best_is_collapse_unless_noise_could_make_it():
    def verdicts(error: float) -> list[str]:
        health = Health()
        return [
            health.judge(tick, {"score/fid_corrected_1k": fid, "score/fid_error_1k": error}).state
            for tick, fid in enumerate([3.0, 0.1, 1.0, 1.0])
        ]

    assert verdicts(0.01) == ["healthy", "healthy", "healthy", "collapsing"]
    assert verdicts(0.5) == ["healthy"] * 4


def test_a_run_judged_in_another_way_from_now_on_is_held_against_its_own_best():
    health = Health()
    for tick, name in enumerate(["score/fd_a_1k"] * 3 + ["score/fd_b_5k"] * 3):
        assert health.judge(tick, {name: 1.0 if "_a_" in name else 60.0}).state == "healthy"


def test_a_journal_fed_again_after_json_gives_the_same_verdicts():
    lr = Steps(at_kimg=(0, 2), values=(1e-3, 1.0))
    lines = list(journal(digits_game(g_lr=lr, d_lr=lr, total_kimg=3)))
    assert judged(json.loads(json.dumps(lines))) == judged(lines)
