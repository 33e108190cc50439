"""When trials are cut: laws of the rules, and curves that cross."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ledger import Reading
from pipeline.search_config import SearchConfig
from pipeline.stopping import SENTINEL, Asha, Median, NoStopping, robust, rule_for

ASHA = Asha(rungs=(2000, 6000), reduction=3, objective="fd")
MEDIAN = Median(warm_up_nimg=2000, objective="fd")
RULES = pytest.mark.parametrize("rule", [ASHA, MEDIAN], ids=["asha", "median"])


def curve(*values: float, error: float = 0.1, start: int = 1) -> list[Reading]:
    """A reading every kimg."""
    return [
        Reading(nimg=1000 * (start + i), values={"fd": v}, errors={"fd": error})
        for i, v in enumerate(values)
    ]


def flat(value: float, length: int = 2, error: float = 0.1) -> list[Reading]:
    return curve(*[value] * length, error=error)


def field_of(*values: float, length: int = 2) -> dict[int, list[Reading]]:
    return {number: flat(value, length) for number, value in enumerate(values)}


values = st.floats(0, 100, allow_nan=False)
fields = st.lists(st.lists(values, min_size=1, max_size=8), min_size=1, max_size=12).map(
    lambda rows: {number: curve(*row) for number, row in enumerate(rows)}
)


def test_the_robust_value_is_the_best_so_far_of_the_mean_of_three():
    standings = robust(curve(9, 6, 3, 3, 9, 0), "fd")
    assert [s.value for s in standings] == [9, 7.5, 6, 4, 4, 4]
    assert [s.nimg for s in standings] == [1000, 2000, 3000, 4000, 5000, 6000]


def test_the_error_of_a_mean_of_three_is_not_divided_by_the_root_of_three():
    assert [s.error for s in robust(flat(5, 4, error=0.3), "fd")] == pytest.approx([0.3] * 4)


@given(st.lists(values, max_size=12))
def test_what_a_trial_has_shown_never_gets_worse(row):
    shown = [s.value for s in robust(curve(*row), "fd")]
    assert shown == sorted(shown, reverse=True)
    assert len(shown) == len(row)


def test_one_lucky_evaluation_counts_for_a_third():
    assert robust(curve(9, 9, 9, 0), "fd")[-1].value == 6


def test_rungs_lie_at_the_warm_up_times_powers_of_the_reduction_below_the_end():
    asha = Asha.over(80_000, warm_up=0.1, reduction=3, objective="fd")
    assert asha.rungs == (8000, 24_000, 72_000)
    assert Asha.over(27_000, warm_up=0, reduction=3, objective="fd").rungs == (1000, 3000, 9000)
    assert Asha.over(100, warm_up=0.5, reduction=2, objective="fd").rungs == (50,)


def test_asha_keeps_the_best_third_and_says_why_the_others_are_cut():
    curves = field_of(1, 2, 3, 4, 5, 6, 7, 8, 9)
    reasons = [ASHA.verdict(number, curves) for number in range(9)]
    assert [reason is None for reason in reasons] == [True] * 3 + [False] * 6
    assert reasons[6] == (
        "7 +- 0.1 at 2 kimg is more than 2 errors worse than the 3 +- 0.1 that the best third of "
        "9 trials reach at 2 kimg"
    )


def test_asha_waits_until_enough_trials_are_at_a_rung():
    assert ASHA.verdict(1, field_of(1, 99)) is None
    assert ASHA.verdict(1, field_of(1, 99, 99))
    early = {0: flat(1), 1: flat(99), 2: flat(99, length=1)}
    assert ASHA.verdict(1, early) is None


def test_before_the_first_rung_nothing_is_cut():
    assert ASHA.verdict(2, {0: flat(1), 1: flat(1), 2: flat(99, length=1), 3: flat(1)}) is None


def test_a_trial_that_catches_up_after_the_rung_is_not_cut_for_what_it_was_there():
    curves = field_of(1, 1, 1, 50)
    assert ASHA.verdict(3, curves)
    curves[3] = curve(50, 50, 1, 1, 1)
    assert ASHA.verdict(3, curves) is None


def test_a_trial_is_judged_once_at_a_rung():
    curves = {number: flat(1) for number in range(3)} | {3: curve(50, 50, 49)}
    assert ASHA.verdict(3, curves) is None  # it passed when it came, or was never asked
    curves[3] = curve(50, 50)
    assert ASHA.verdict(3, curves)


def test_a_trial_is_compared_at_its_own_rung_not_with_where_others_are_now():
    curves = field_of(9, 9, 9) | {3: curve(9, 9, 9, 1, 1, 1), 4: curve(9, 9, 9, 1, 1, 1)}
    assert ASHA.verdict(0, curves) is None


@RULES
@given(fields)
def test_no_trial_is_cut_for_a_difference_within_the_noise(rule, curves):
    """All readings within 2 * sqrt(2) errors of each other: nobody differs from anybody."""
    limit = 2 * math.sqrt(2) * 0.1
    squeezed = {
        n: curve(*[r.values["fd"] / 100 * limit for r in readings])
        for n, readings in curves.items()
    }
    assert not any(rule.verdict(n, squeezed) for n in squeezed)


@RULES
@given(fields, st.data())
def test_better_readings_never_turn_a_trial_that_goes_on_into_one_that_is_cut(rule, curves, data):
    number = data.draw(st.sampled_from(sorted(curves)))
    better = [data.draw(st.floats(0, r.values["fd"])) for r in curves[number]]
    if rule.verdict(number, curves) is None:
        assert rule.verdict(number, curves | {number: curve(*better)}) is None


@RULES
@given(fields, st.randoms(use_true_random=False))
def test_the_order_in_which_trials_arrived_does_not_matter(rule, curves, chance):
    order = sorted(curves)
    chance.shuffle(order)
    shuffled = {number: curves[number] for number in order}
    assert all(rule.verdict(n, curves) == rule.verdict(n, shuffled) for n in curves)


@RULES
@given(fields, st.data())
def test_a_trial_that_diverges_never_brings_another_one_down(rule, curves, data):
    fallen = data.draw(st.sampled_from(sorted(curves)))
    for number in curves.keys() - {fallen}:
        if rule.verdict(number, curves) is None:
            assert rule.verdict(number, curves, diverged={fallen}) is None
    more = {n: curves[n] for n in curves if n != fallen}
    for number in more:
        if rule.verdict(number, more) is None:
            assert rule.verdict(number, curves, diverged={fallen}) is None


@RULES
@given(fields)
def test_the_best_of_all_is_never_cut(rule, curves):
    def shown(number: int) -> float:
        return robust(curves[number], "fd")[-1].value

    longest = {n: readings for n, readings in curves.items() if len(readings) == 8}
    if longest:
        best = min(longest, key=shown)
        assert rule.verdict(best, longest) is None


@RULES
@pytest.mark.parametrize("value", [math.nan, math.inf, SENTINEL])
def test_a_diverged_trial_is_cut_at_once_and_does_not_count_as_good(rule, value):
    curves = field_of(1, 2, 3, 4, 5, 6, 7, 8) | {8: curve(0.5, value)}
    reason = rule.verdict(8, curves)
    assert reason == "it diverged: no finite fd since 1 kimg"
    marked = {n: readings for n, readings in curves.items() if n < 8} | {8: curve(0.5)}
    for number in range(8):
        expected = rule.verdict(number, marked, diverged={8})
        assert rule.verdict(number, curves) == expected
    assert rule.verdict(8, {}, diverged={8}) == "it diverged: no finite fd from the start"


def test_diverged_trials_fill_the_part_of_a_rung_that_is_cut():
    """Six of nine diverged: the three that are left are the best third."""
    curves = field_of(1, 20, 40) | {n: curve(5) for n in range(3, 9)}
    assert ASHA.verdict(2, curves, diverged=range(3, 9)) is None
    assert ASHA.verdict(2, curves)


def test_the_median_rule_cuts_the_half_that_is_clearly_worse():
    curves = field_of(1, 2, 3, 4, 50, 60, 70)
    cut = [n for n in curves if MEDIAN.verdict(n, curves)]
    assert cut == [4, 5, 6]
    assert MEDIAN.verdict(6, curves) == (
        "70 +- 0.1 at 2 kimg is more than 2 errors worse than the 3.5 +- 0.1 that is the median "
        "of 6 other trials' means up to there"
    )


def test_the_median_rule_waits_for_five_others_and_for_the_warm_up():
    assert MEDIAN.verdict(5, field_of(1, 1, 1, 1, 99)) is None
    assert MEDIAN.verdict(5, field_of(1, 1, 1, 1, 1, 99))
    assert MEDIAN.verdict(5, field_of(1, 1, 1, 1, 1, 99, length=1)) is None


def test_the_median_is_over_running_means_so_a_late_fall_of_others_hurts_less():
    curves = {n: curve(100, 100, 100, 1) for n in range(5)} | {5: curve(90, 90, 60, 60)}
    assert MEDIAN.verdict(5, curves) is None  # their means are 75.25, its best mean 70


@pytest.mark.parametrize("scheduler", ["none", "pbt"])
def test_without_a_scheduler_and_in_a_population_nothing_is_cut(scheduler):
    rule = rule_for(SearchConfig(scheduler=scheduler), total_nimg=4000)
    assert rule == NoStopping()
    assert rule.verdict(3, field_of(1, 1, 1, 99)) is None


def test_the_section_decides_the_rule():
    config = SearchConfig(scheduler="asha", warm_up=0.25, reduction=3, objectives=("kid",))
    assert rule_for(config, total_nimg=40_000) == Asha(
        rungs=(10_000, 30_000), reduction=3, objective="kid"
    )
    config = SearchConfig(scheduler="median", warm_up=0.25)
    assert rule_for(config, total_nimg=40_000) == Median(warm_up_nimg=10_000, objective="fd")


# Curves that cross: six that are fast and collapse, three that are slow and end better.

END = 27  # kimg, a reading in each


def crossing(seed: int) -> dict[int, list[Reading]]:
    """Whole curves of nine trials; a trial's readings have nearly the same error."""
    chance = random.Random(seed)
    numbers = chance.sample(range(9), 9)
    curves = {}
    for place, number in enumerate(numbers):
        fast = place < 6
        floor, half_life = (chance.uniform(12, 20), 2) if fast else (chance.uniform(3, 8), 6)
        collapse = chance.randint(8, 20) if fast else END
        shared, row = chance.gauss(0, 0.45), []
        for kimg in range(1, END + 1):
            level = floor + (100 - floor) * 0.5 ** (min(kimg, collapse) / half_life)
            row.append(level + 5 * max(0, kimg - collapse) + shared + chance.gauss(0, 0.2))
        curves[number] = curve(*row, error=0.5)
    return curves


def close(seed: int) -> dict[int, list[Reading]]:
    """Nine trials that differ by little more than one evaluation's noise, and do not cross."""
    chance = random.Random(seed)
    curves = {}
    for number in range(9):
        floor, shared = chance.uniform(5, 8), chance.gauss(0, 0.1)
        row = [
            floor + 60 * 0.5 ** (kimg / 3) + shared + chance.gauss(0, 0.5)
            for kimg in range(1, END + 1)
        ]
        curves[number] = curve(*row, error=0.5)
    return curves


def best_of(curves) -> int:
    return min(curves, key=lambda n: robust(curves[n], "fd")[-1].value)


def lengths(curves, is_cut, seed: int) -> dict[int, int]:
    """How far each of nine trials comes that run side by side, a reading each in random order."""
    chance = random.Random(seed)
    going, came = set(curves), dict.fromkeys(curves, 0)
    for kimg in range(1, END + 1):
        for number in chance.sample(sorted(going), len(going)):
            came[number] = kimg
            if is_cut(number, {n: curves[n][:length] for n, length in came.items()}):
                going.discard(number)
    return came


def rays(grace: int):
    """Ray's own scheduler at the same readings."""
    from ray.tune.schedulers import AsyncHyperBandScheduler

    scheduler = AsyncHyperBandScheduler(
        metric="fd", mode="min", max_t=END + 1, grace_period=grace, reduction_factor=3
    )
    trials: dict[int, SimpleNamespace] = {}

    def is_cut(number, curves) -> bool:
        if number not in trials:
            trials[number] = SimpleNamespace(trial_id=str(number))
            scheduler.on_trial_add(None, trials[number])  # pyright: ignore
        reading = curves[number][-1]
        result = {"training_iteration": reading.nimg // 1000, "fd": reading.values["fd"]}
        return scheduler.on_trial_result(None, trials[number], result) == "STOP"  # pyright: ignore

    return is_cut


def survival(rule_of, curves_of=crossing, *, repeats: int = 200) -> tuple[float, float]:
    """(share of searches whose best trial comes to its end, share of all images played)"""
    survived, played = 0, 0
    for seed in range(repeats):
        curves = curves_of(seed)
        came = lengths(curves, rule_of(), seed)
        survived += came[best_of(curves)] == END
        played += sum(came.values())
    return survived / repeats, played / (repeats * 9 * END)


def ours(warm_up: float):
    asha = Asha.over(END * 1000, warm_up=warm_up, reduction=3, objective="fd")
    return lambda: lambda number, curves: asha.verdict(number, curves) is not None


def test_the_set_of_crossing_curves_crosses():
    for seed in range(20):
        curves = crossing(seed)
        early = {n: readings[:4] for n, readings in curves.items()}
        assert best_of(curves) != best_of(early)


def test_the_best_of_close_curves_is_all_but_never_cut():
    survived, played = survival(ours(0.25), close, repeats=12)
    assert survived == 1
    assert played < 0.9


def test_asha_saves_what_it_promises_where_curves_differ_and_do_not_cross():
    """Rungs at 1/4 and 3/4: all play 1/4, a third up to 3/4, a ninth to the end: at best 4/9."""

    def apart(seed: int) -> dict[int, list[Reading]]:
        levels = random.Random(seed).sample(range(9), 9)
        return {n: curve(*[10.0 + 5 * level] * 40) for n, level in enumerate(levels)}

    asha = Asha.over(40_000, warm_up=0.25, reduction=3, objective="fd")
    for seed in range(5):
        curves = apart(seed)
        going, images = set(curves), 0
        for kimg in range(1, 41):
            images += len(going)
            shown = {n: curves[n][:kimg] for n in going} | {
                n: curves[n][:10] for n in curves.keys() - going
            }
            going -= {n for n in going if asha.verdict(n, shown)}
            if kimg >= 10:
                assert going <= {n for n in curves if curves[n][0].values["fd"] <= 20}
        assert curves[min(going, key=lambda n: curves[n][0].values["fd"])][0].values["fd"] == 10
        assert images / 360 < 0.55


@pytest.mark.slow
def test_rays_own_asha_goes_on_with_a_trial_of_nan_and_ours_does_not():
    theirs = rays(1)
    curves = field_of(1, 2, 3, 4, 5, 6) | {6: curve(math.nan, math.nan)}
    shown = {n: readings[:1] for n, readings in curves.items()}
    cut = [n for n in shown if theirs(n, {n: shown[n]})]
    assert 5 in cut
    assert 6 not in cut
    assert ASHA.verdict(6, shown) == "it diverged: no finite fd from the start"


@pytest.mark.slow
def test_on_close_curves_ours_keeps_the_best_more_often_than_rays():
    theirs, _ = survival(lambda: rays(7), close, repeats=40)
    own, _ = survival(ours(0.25), close, repeats=40)
    assert own > theirs
    assert own >= 0.95
