"""Which point comes next: the first ones, stateless streams, and Optuna's TPE."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest

from gan.config import ObjectiveConfig
from pipeline.experiment import DataConfig, Experiment
from pipeline.first_points import Earlier
from pipeline.search_config import SearchConfig
from pipeline.space import Dimension, Space, with_settings
from pipeline.suggest import START_UP, quasirandom_point, suggester_for

BASE = Experiment(
    name="toy",
    data=DataConfig(shards="data/toy"),
    objective=ObjectiveConfig(name="nonsaturating"),
)
LR = Dimension(key="generator.lr", kind="loguniform", low=1e-5, high=1e-2)
RATIO = Dimension(
    key="discriminator.lr", kind="loguniform", low=0.25, high=4, times="generator.lr"
)
SPACE = Space(
    (
        LR,
        RATIO,
        Dimension(key="objective.name", kind="choice", options=("nonsaturating", "relativistic")),
        Dimension(
            key="objective.r1_gamma",
            kind="loguniform",
            low=0.01,
            high=10,
            when=(("objective.name", ("nonsaturating",)),),
        ),
        Dimension(key="objective.penalty_interval", kind="int", low=1, high=8),
    ),
    same=(("objective.r2_gamma", "objective.r1_gamma"),),
)
FOUR = Space(
    (
        LR,
        Dimension(key="objective.r1_gamma", kind="loguniform", low=0.01, high=10),
        Dimension(key="ema.half_life_kimg", kind="uniform", low=1, high=20),
        Dimension(key="generator.beta1", kind="uniform", low=0, high=0.9),
    )
)
SEARCHERS = pytest.mark.parametrize("searcher", ["random", "quasirandom", "tpe"])


def score(point) -> float:
    """A bowl over the quantiles of a point, 0 at best."""
    dimensions = {d.name: d for d in (*SPACE.dimensions, *FOUR.dimensions)}
    return sum((dimensions[name].unit(value) - 0.7) ** 2 for name, value in point.items())


def searched(config: SearchConfig, trials: int, space: Space = SPACE, count_first: int = 0):
    """(number, point, origin) of a search without parallel trials."""
    suggester = suggester_for(config, space, BASE)
    made = []
    for number in range(count_first, trials):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        made.append((number, suggestion.point, suggestion.origin))
        suggester.tell(number, suggestion.point, [score(suggestion.point)])
    return made


@SEARCHERS
def test_the_same_seed_gives_the_same_points_and_another_one_others(searcher):
    config = SearchConfig(searcher=searcher, seed=4)
    once = searched(config, 14)
    assert once == searched(config, 14)
    assert once[1:] != searched(dataclasses.replace(config, seed=5), 14)[1:]


@SEARCHERS
def test_the_files_own_experiment_comes_first_to_the_bit(searcher):
    base = BASE.replace("discriminator.lr", 0.7e-4).replace("generator.lr", 0.3e-4)
    first = suggester_for(SearchConfig(searcher=searcher), SPACE, base).ask(0)
    assert first is not None
    assert first.origin == "the file's own"
    assert with_settings(base, first.settings) == base


@SEARCHERS
def test_given_points_follow_and_keep_settings_that_cannot_be_drawn(searcher):
    config = SearchConfig(
        searcher=searcher,
        points=({"generator": {"lr": 0.5}}, {"objective": {"name": "relativistic"}}),
    )
    suggester = suggester_for(config, SPACE, BASE)
    given = [suggester.ask(number) for number in (1, 2)]
    assert [g.origin for g in given if g] == ["given", "given"]
    experiments = [with_settings(BASE, g.settings) for g in given if g]
    assert experiments[0].generator.lr == 0.5
    assert experiments[1].objective.name == "relativistic"
    assert given[0] is not None
    assert "generator.lr" not in given[0].point
    after = suggester.ask(3)
    assert after is not None
    assert after.origin != "given"


def test_the_best_of_earlier_searches_are_tried_again_and_taught(caplog):
    points = [FOUR.point(BASE, [n / 20] * 4) for n in range(20)]
    earlier = [Earlier("old", p, (abs(n - 7.0),)) for n, p in enumerate(points)]
    earlier.append(Earlier("old", points[0], None))
    earlier.append(Earlier("other", {"generator.lr": 0.5}, (-1.0,)))
    config = SearchConfig(searcher="tpe", trials=8)
    suggester = suggester_for(config, FOUR, BASE, earlier=earlier)
    made = [suggester.ask(number) for number in range(6)]
    assert [m.origin for m in made if m] == [
        "the file's own",
        *["from search old"] * 4,
        "tpe",  # without a start-up of its own
    ]
    tried = [m.point for m in made if m][1:5]
    assert tried == [points[n] for n in (7, 6, 8, 5)] or tried == [points[n] for n in (7, 8, 6, 5)]
    assert "1 of 22 trials of earlier searches are outside" in caplog.text


def test_with_two_objectives_the_whole_front_is_tried_before_what_it_dominates():
    values = [(1.0, 9.0), (2.0, 9.5), (9.0, 1.0), (5.0, 5.0), (6.0, 6.0)]
    points = [FOUR.point(BASE, [0.1 + n / 10] * 4) for n in range(5)]
    earlier = [Earlier("old", p, v) for p, v in zip(points, values, strict=True)]
    config = SearchConfig(trials=16, scheduler="none", objectives=("fd", "diversity"))
    suggester = suggester_for(config, FOUR, BASE, earlier=earlier)
    made = [suggester.ask(number) for number in range(1, 5)]
    assert [m.point for m in made if m] == [points[0], points[3], points[2], points[1]]


@pytest.mark.parametrize("searcher", ["random", "quasirandom"])
def test_a_point_follows_from_its_number_whatever_became_of_the_others(searcher):
    config = SearchConfig(searcher=searcher, seed=2)
    whole = searched(config, 12)
    suggester = suggester_for(config, SPACE, BASE)
    for number in (9, 3, 11):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        assert suggestion.point == whole[number][1]


@SEARCHERS
def test_trials_that_are_added_are_those_of_a_search_that_was_asked_for_all(searcher):
    points = [FOUR.point(BASE, [n / 20] * 4) for n in range(7)]
    earlier = [Earlier("old", p, None if n > 4 else (float(n),)) for n, p in enumerate(points)]
    few, many = (
        suggester_for(SearchConfig(searcher=searcher, trials=trials), FOUR, BASE, earlier=earlier)
        for trials in (8, 24)
    )
    assert [few.ask(number) for number in range(24)] == [many.ask(number) for number in range(24)]


@pytest.mark.parametrize("searcher", ["quasirandom", "tpe"])
@pytest.mark.parametrize("warm", [0, 3])
def test_a_quasirandom_trial_has_the_point_of_its_own_number(searcher, warm):
    earlier = [Earlier("old", FOUR.point(BASE, [n / 9] * 4), (1.0 * n,)) for n in range(warm)]
    config = SearchConfig(searcher=searcher, seed=3)
    suggester = suggester_for(config, FOUR, BASE, earlier=earlier)
    for number in range(warm + 1, 8):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        assert suggestion.origin == "quasirandom"
        assert suggestion.point == quasirandom_point(FOUR, BASE, 3, number)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("power", [1, 2, 3, 5])
def test_each_equal_cell_of_a_setting_holds_one_of_as_many_quasirandom_points(seed, power):
    count = 2**power
    points = [quasirandom_point(FOUR, BASE, seed, index) for index in range(count)]
    for dimension in FOUR.dimensions:
        cells = [int(dimension.unit(p[dimension.name]) * count + 1e-6) for p in points]
        assert sorted(cells) == list(range(count))


def test_quasirandom_points_fill_the_square_of_two_settings():
    """Sobol's first two coordinates are a (0, m, 2)-net: each of 4 x 4 cells holds 1 of 16."""
    points = [quasirandom_point(FOUR, BASE, 9, index) for index in range(16)]
    cells = {tuple(int(d.unit(p[d.name]) * 4 + 1e-6) for d in FOUR.dimensions[:2]) for p in points}
    assert len(cells) == 16


@SEARCHERS
def test_points_hold_what_is_in_play_and_nothing_else(searcher):
    for _, point, _ in searched(SearchConfig(searcher=searcher, seed=1), 24)[1:]:
        assert ("objective.r1_gamma" in point) == (point["objective.name"] == "nonsaturating")
        assert point.keys() >= {"generator.lr", RATIO.name, "objective.penalty_interval"}
        assert SPACE.point_of(SPACE.experiment(BASE, point)).keys() == point.keys()
        assert type(point["objective.penalty_interval"]) is int


def test_tpe_begins_with_even_points_and_says_when_it_takes_over():
    origins = [origin for _, _, origin in searched(SearchConfig(searcher="tpe"), START_UP + 2)]
    assert origins == ["the file's own", *["quasirandom"] * (START_UP - 1), "tpe", "tpe"]


@pytest.mark.parametrize("lost", [False, True], ids=["all told", "some diverged"])
def test_a_resumed_tpe_suggests_what_the_undisturbed_one_would_have(lost):
    """Told in another order, with two trials under way, from nothing but the record."""
    config = SearchConfig(searcher="tpe", seed=3)
    suggester = suggester_for(config, SPACE, BASE)
    told, under_way = [], []
    for number in range(14):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        if number in (11, 13):
            under_way.append((number, suggestion.point))
        else:
            values = None if lost and number % 4 == 1 else [score(suggestion.point)]
            suggester.tell(number, suggestion.point, values)
            told.append((number, suggestion.point, values))
    resumed = suggester_for(config, SPACE, BASE)
    for number, point in under_way:
        resumed.begun(number, point)
    for number, point, values in reversed(told):
        resumed.tell(number, point, values)
    assert [resumed.ask(n) for n in (14, 15, 16)] == [suggester.ask(n) for n in (14, 15, 16)]


def test_tpe_suggests_no_point_twice_to_parallel_trials():
    config = SearchConfig(searcher="tpe", seed=3)
    suggester = suggester_for(config, FOUR, BASE)
    for number in range(10):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        suggester.tell(number, suggestion.point, [score(suggestion.point)])
    points = [s.point for n in range(10, 18) if (s := suggester.ask(n)) is not None]
    assert len({str(point) for point in points}) == 8


def best_after(searcher: str, seed: int, trials: int = 40) -> float:
    config = SearchConfig(searcher=searcher, seed=seed)  # pyright: ignore
    return min(score(point) for _, point, _ in searched(config, trials, FOUR, 1))


def test_tpe_beats_random_search_on_a_bowl_of_four_settings():
    tpe = statistics.median(best_after("tpe", seed) for seed in range(20))
    random = statistics.median(best_after("random", seed) for seed in range(20))
    assert tpe < random / 2


def lost_share(searcher: str, seed: int) -> float:
    """Of trials 40 to 59, where the half of a setting with the bowl's bottom in it diverges."""
    suggester = suggester_for(SearchConfig(searcher=searcher, seed=seed), FOUR, BASE)  # pyright: ignore
    lost = []
    for number in range(60):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        lost.append(suggestion.point["generator.beta1"] > 0.45)
        value = None if lost[-1] else [score(suggestion.point)]
        suggester.tell(number, suggestion.point, value)
    return sum(lost[40:]) / 20


def test_tpe_turns_from_where_trials_diverge():
    """The best that is left is at the border, so some suggestions still cross it."""
    random = statistics.fmean(lost_share("random", seed) for seed in range(8))
    tpe = statistics.fmean(lost_share("tpe", seed) for seed in range(8))
    assert tpe < 0.75 * random


def dominated_area(values, corner: float = 1.5) -> float:
    """The hypervolume of two objectives: what a front dominates, up to a corner."""
    area, height = 0.0, corner
    for first, second in sorted(values):
        if first < corner and second < height:
            area += (corner - first) * (height - second)
            height = second
    return area


def area_of_front(searcher: str, seed: int) -> float:
    """Of 50 trials whose two objectives are the distances to two points; each ninth is lost."""
    config = SearchConfig(
        searcher=searcher,  # pyright: ignore
        seed=seed,
        scheduler="none",
        objectives=("fd", "diversity"),
    )
    suggester = suggester_for(config, FOUR, BASE)
    values = []
    for number in range(50):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        units = [d.unit(suggestion.point.get(d.name, d.at(0))) for d in FOUR.dimensions]
        both = [math.dist(units, [0.2] * 4), math.dist(units, [0.8] * 4)]
        lost = number % 9 == 5
        suggester.tell(number, suggestion.point, None if lost else both)
        values += [] if lost else [both]
    return dominated_area(values)


def test_tpe_takes_two_objectives_and_dominates_more_than_random_search():
    assert dominated_area([[0.5, 1.0], [1.0, 0.5], [1.2, 1.2]]) == 0.75
    tpe = statistics.median(area_of_front("tpe", seed) for seed in range(10))
    random = statistics.median(area_of_front("random", seed) for seed in range(10))
    assert tpe > random


def test_a_searcher_that_knows_only_failures_still_suggests():
    suggester = suggester_for(SearchConfig(searcher="tpe"), SPACE, BASE)
    for number in range(12):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        suggester.tell(number, suggestion.point, None)


def test_options_that_are_tables_can_be_searched_by_tpe():
    schedules = ({"start": 1e-3, "end": 1e-4, "over_kimg": 5.0}, 1e-3, 2e-3)
    space = Space((Dimension(key="generator.lr", kind="choice", options=schedules), RATIO))
    suggester = suggester_for(
        SearchConfig(searcher="tpe", seed=1), Space(space.dimensions[:1]), BASE
    )
    for number in range(14):
        suggestion = suggester.ask(number)
        assert suggestion is not None
        suggester.tell(number, suggestion.point, [float(number)])
        if number:
            assert suggestion.point["generator.lr"] in schedules
