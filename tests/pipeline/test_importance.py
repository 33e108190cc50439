"""The importance of settings against closed forms, and what it says where it cannot be known."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from pipeline.importance import FEWEST, importance
from pipeline.ledger import Reading, State, Trial
from pipeline.space import Dimension

A, B, C = (Dimension(key=key, kind="uniform", low=0, high=1) for key in "abc")


def scored(
    number: int, point: dict[str, Any], value: float, *, state: State = "complete", generation=0
) -> Trial:
    reading = Reading(1000, {"fd": value, "diversity": value}, {"fd": 0.1, "diversity": 0.1})
    return Trial(
        number=number, run="", point=point, settings=point, origin="random", until_nimg=1000,
        state=state, readings=[reading], nimg=1000, generation=generation,
    )  # fmt: skip


def points(count: int, *, seed: int = 1) -> list[dict[str, float]]:
    rng = random.Random(seed)
    return [{key: rng.random() for key in "abc"} for _ in range(count)]


def test_a_linear_scores_variance_is_shared_as_the_squared_slopes():
    """f = 2a + b with a and b uniform: shares 4/5 and 1/5, and none for c."""
    trials = [scored(n, p, 2 * p["a"] + p["b"]) for n, p in enumerate(points(200))]
    found = importance(trials, (A, B, C), objective="diversity", floor=1e-3)
    assert found.shares["a"][0] == pytest.approx(0.8, abs=0.06)
    assert found.shares["b"][0] == pytest.approx(0.2, abs=0.06)
    mean, deviation = found.shares["c"]
    assert mean < 0.01 + deviation
    assert list(found.shares) == ["a", "b", "c"]
    assert found.num_trials == 200


def test_a_setting_that_is_drawn_and_a_score_that_is_judged_by_their_logarithms_are_seen_so():
    """log fd = 2 log lr + b: the shares of a linear score, though fd spans decades."""
    rate = Dimension(key="lr", kind="loguniform", low=1e-4, high=1e-1)
    trials = []
    for number, point in enumerate(points(80)):
        lr = 1e-4 * 1000 ** point["a"]
        value = math.exp(2 * math.log(lr) / math.log(1000) + point["b"])
        trials.append(scored(number, {"lr": lr, "b": point["b"]}, value))
    found = importance(trials, (rate, B), objective="fd", floor=1e-9)
    assert found.shares["lr"][0] == pytest.approx(0.8, abs=0.09)


def test_options_are_judged_by_which_they_are():
    kinds = ("hinge", "relativistic", "minimax")
    option = Dimension(key="objective.name", kind="choice", options=kinds)
    trials = [
        scored(n, {**p, "objective.name": kinds[n % 3]}, 1.0 + (n % 3 == 1) + 0.01 * p["a"])
        for n, p in enumerate(points(60))
    ]
    found = importance(trials, (A, option), objective="diversity", floor=1e-3)
    assert found.shares["objective.name"][0] > 0.95


def test_few_trials_are_known_less_surely_than_many():
    def deviation(count: int) -> float:
        trials = [scored(n, p, 2 * p["a"] + p["b"]) for n, p in enumerate(points(count))]
        found = importance(trials, (A, B, C), objective="diversity", floor=1e-3)
        return found.shares["b"][1]

    assert deviation(8) > 2 * deviation(80)


def test_the_same_trials_have_the_same_importance():
    trials = [scored(n, p, p["a"]) for n, p in enumerate(points(12))]
    once, again = (importance(trials, (A, B), objective="fd", floor=0.01) for _ in range(2))
    assert once == again


def test_too_few_trials_say_nothing_in_words():
    trials = [scored(n, p, p["a"]) for n, p in enumerate(points(FEWEST))]
    trials[-1].state = "diverged"
    found = importance(trials, (A, B, C), objective="fd", floor=1e-3)
    assert not found.shares
    assert found.reason.startswith(f"Too few trials ended with a score ({FEWEST - 1} of {FEWEST}")


def test_scores_that_are_all_the_same_have_no_reason():
    trials = [scored(n, p, 1.0) for n, p in enumerate(points(20))]
    found = importance(trials, (A, B, C), objective="fd", floor=1e-3)
    assert (found.shares, found.reason) == ({}, "All trials scored the same.")


def test_a_setting_that_is_not_always_in_play_is_named_and_not_judged():
    gamma = Dimension(key="g", kind="uniform", low=0, high=1, when=(("a", (0.5,)),))
    trials = [
        scored(n, p | ({"g": 0.5} if n % 2 else {}), p["a"]) for n, p in enumerate(points(20))
    ]
    found = importance(trials, (A, gamma), objective="fd", floor=1e-3)
    assert found.not_judged == ("g",)
    assert "g" not in found.shares


def test_one_trial_without_its_point_does_not_keep_the_settings_from_being_judged():
    trials = [scored(n, p, p["a"]) for n, p in enumerate(points(20))]
    trials[0].point = {"b": 0.5}
    found = importance(trials, (A, B), objective="fd", floor=1e-3)
    assert set(found.shares) == {"a", "b"}
    assert (found.num_trials, found.not_judged) == (19, ())


def test_a_populations_progress_is_not_put_down_to_what_its_last_members_drew():
    """The score falls with the generation, and so does b; only a decides within each."""
    trials = [
        scored(n, {"a": p["a"], "b": 0.2 * (n // 10) + 0.01 * p["b"]},
               10 ** (2 - n // 10) * math.exp(p["a"]), generation=n // 10)
        for n, p in enumerate(points(40))
    ]  # fmt: skip
    found = importance(trials, (A, B), objective="fd", floor=1e-9)
    assert found.shares["a"][0] > 0.8
