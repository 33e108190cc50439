"""Search spaces: quantiles, what is in play, and what follows from what."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gan.config import ConfigError, Schedule
from pipeline.space import Dimension
from tests.pipeline.spaces import BASE, space

UNIT = st.floats(0, 1, exclude_max=True)
NUMBER = st.floats(-1e300, 1e300, allow_subnormal=False)
EVERYTHING = """
generator.lr = { loguniform = [5e-4, 8e-3] }
discriminator.lr = { times = "generator.lr", loguniform = [0.25, 4] }
turns.d_steps = { choice = [1, 2] }
turns.g_steps = { times = "turns.d_steps", int = [1, 3] }
ema.half_life_kimg = { uniform = [1, 20] }
objective.name = { choice = ["minimax", "nonsaturating", "relativistic"] }
objective.r2_gamma = { same = "objective.r1_gamma" }
discriminator.norm = { choice = ["none", "group"] }
generator.beta1 = { choice = [0, 0.5] }
[objective.penalty_interval]
int = [1, 8]
when = { turns.d_steps = 1, conditioning.name = "none" }
[objective.r1_gamma]
loguniform = [0.01, 10]
when = { objective.name = ["relativistic", "nonsaturating"] }
"""


# Quantiles


@given(NUMBER, NUMBER, UNIT)
def test_a_uniform_quantile_is_the_share_of_the_range_below_it(low, high, unit):
    assume(low < high)
    dimension = Dimension(key="x", kind="uniform", low=low, high=high)
    value = dimension.at(unit)
    assert low <= value <= high
    assert (dimension.at(0), dimension.at(1)) == (low, high)
    assume(high - low > max(abs(low), abs(high), 1e-290) / 1000)  # else it is rounding only
    assert dimension.unit(value) == pytest.approx(unit, abs=1e-9)


@given(st.floats(1e-300, 1e300), st.floats(1.001, 1e6), UNIT)
def test_a_log_uniform_quantile_is_the_share_of_the_ratio_below_it(low, ratio, unit):
    high = low * ratio
    assume(math.isfinite(high))
    dimension = Dimension(key="x", kind="loguniform", low=low, high=high)
    assert (dimension.at(0), dimension.at(1)) == (low, high)
    assert dimension.at(0.5) == pytest.approx(math.sqrt(low) * math.sqrt(high))
    assert low <= dimension.at(unit) <= high
    assert dimension.unit(dimension.at(unit)) == pytest.approx(unit, abs=1e-9)


@given(st.integers(-50, 50), st.integers(1, 100), UNIT)
def test_whole_numbers_have_cells_of_equal_width_with_both_ends_in(low, span, unit):
    dimension = Dimension(key="x", kind="int", low=low, high=low + span)
    cells = [dimension.at((i + 0.5) / (span + 1)) for i in range(span + 1)]
    assert cells == list(range(low, low + span + 1))
    value = dimension.at(unit)
    assert type(value) is int
    assert dimension.at(dimension.unit(value)) == value
    assert abs(dimension.unit(value) - unit) <= 0.5 / (span + 1) + 1e-12


@given(st.lists(st.one_of(st.integers(), st.text(), st.booleans()), min_size=1), UNIT)
def test_options_come_back_as_themselves_from_cells_of_equal_width(options, unit):
    options = tuple(dict.fromkeys((type(o) is bool, o) for o in options))
    dimension = Dimension(key="x", kind="choice", options=tuple(o for _, o in options))
    value = dimension.at(unit)
    assert any(value is option for option in dimension.options)
    assert dimension.at(dimension.unit(value)) is value
    assert abs(dimension.unit(value) - unit) <= 0.5 / len(options) + 1e-12


@pytest.mark.parametrize(
    ("dimension", "value"),
    [
        (Dimension(key="x", kind="uniform", low=0, high=1), 1.5),
        (Dimension(key="x", kind="uniform", low=0, high=1), True),
        (Dimension(key="x", kind="uniform", low=0, high=1), math.nan),
        (Dimension(key="x", kind="loguniform", low=1, high=2), "1"),
        (Dimension(key="x", kind="int", low=0, high=4), 2.5),
        (Dimension(key="x", kind="choice", options=(1, 2)), True),
        (Dimension(key="x", kind="choice", options=("a",)), "b"),
    ],
)
def test_a_value_that_cannot_be_drawn_has_no_quantile(dimension, value):
    with pytest.raises(ValueError, match="x must be"):
        dimension.unit(value)


# Points


@given(st.data())
def test_every_point_of_a_checked_space_is_an_experiment_and_is_found_in_it_again(data):
    everything = space(EVERYTHING)
    units = data.draw(st.lists(UNIT, min_size=10, max_size=10))
    point = everything.point(BASE, units)
    experiment = everything.experiment(BASE, point)
    settings = everything.settings(BASE, point)
    assert {key: experiment.flat()[key] for key in settings} == settings
    assert set(experiment.flat().items()) - set(BASE.flat().items()) <= set(settings.items())
    assert everything.point_of(experiment) == pytest.approx(point)
    assert experiment.search is None
    assert type(point["turns.d_steps"]) is int


def test_the_space_of_that_property_passes_its_check():
    space(EVERYTHING).check(BASE)


def test_ratios_are_resolved_after_what_they_refer_to_in_any_order_of_the_file():
    chain = space(
        'ema.ramp_up = { times = "ema.half_life_kimg", uniform = [2, 4] }\n'
        'ema.half_life_kimg = { times = "generator.lr", uniform = [10, 30] }\n'
        "generator.lr = { uniform = [1, 3] }\n"
    )
    assert [d.name for d in chain.dimensions] == [
        "ema.ramp_up / ema.half_life_kimg",
        "ema.half_life_kimg / generator.lr",
        "generator.lr",
    ]
    point = chain.point(BASE, [0.5, 0.5, 0.5])
    assert list(point.values()) == [3.0, 20.0, 2.0]
    assert chain.settings(BASE, point) == {
        "ema.ramp_up": 120.0,
        "ema.half_life_kimg": 40.0,
        "generator.lr": 2.0,
    }


def test_a_ratio_to_a_setting_that_is_not_drawn_takes_the_files_own():
    ratio = space('discriminator.lr = { times = "generator.lr", uniform = [1, 3] }')
    assert ratio.settings(BASE, ratio.point(BASE, [0.5])) == {"discriminator.lr": 4e-4}


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.7, 4.0])
def test_the_ends_of_a_ratio_are_found_again_whatever_rounding_does(ratio):
    ends = space(
        f'discriminator.lr = {{ times = "generator.lr", uniform = [{ratio}, 5] }}\n'
        "generator.lr = { choice = [1e-3, 3e-3, 7e-4, 1.1e-3] }"
    )
    for lr in (1e-3, 3e-3, 7e-4, 1.1e-3):
        point = {"discriminator.lr / generator.lr": ratio, "generator.lr": lr}
        assert ends.point_of(ends.experiment(BASE, point)) == point


def test_a_dimension_is_in_play_only_where_a_drawn_choice_allows_it():
    chain = space(
        'objective.r1_gamma = { uniform = [1, 3], when = { objective.name = "minimax" } }\n'
        'objective.name = { choice = ["minimax", "relativistic"], '
        "when = { turns.d_steps = [2, 3] } }\n"
        "turns.d_steps = { int = [1, 4] }\n"
    )
    assert chain.point(BASE, [0.5, 0.1, 0.3]) == {
        "objective.r1_gamma": 2.0,
        "objective.name": "minimax",
        "turns.d_steps": 2,
    }
    assert chain.point(BASE, [0.5, 0.9, 0.3]) == {
        "objective.name": "relativistic",
        "turns.d_steps": 2,
    }
    # Where the choice is out of play the file's own objective counts, which is relativistic.
    assert chain.point(BASE, [0.5, 0.1, 0.1]) == {"turns.d_steps": 1}
    # What is out of play decides nothing, even where a point names it.
    assert chain.settings(BASE, {"objective.r1_gamma": 2.0, "turns.d_steps": 1}) == {
        "turns.d_steps": 1
    }


def test_a_dimension_may_depend_on_a_setting_that_is_not_drawn():
    text = 'turns.d_steps = { int = [1, 4], when = { objective.name = ["minimax"] } }'
    minimax = BASE.replace("objective.name", "minimax")
    assert space(text).point(BASE, [0.9]) == {}
    assert space(text).point(minimax, [0.9]) == {"turns.d_steps": 4}
    assert space(text).point_of(minimax) == {"turns.d_steps": 1}
    assert space(text).point_of(BASE) == {}


def test_a_linked_setting_takes_the_value_where_the_other_is_out_of_play_too():
    linked = space(
        'objective.r1_gamma = { uniform = [2, 3], when = { objective.name = "minimax" } }\n'
        'objective.r2_gamma = { same = "objective.r1_gamma" }\n'
        'discriminator.norm = { same = "generator.norm" }\n'
    )
    base = BASE.replace("objective.r1_gamma", 5.0)
    assert linked.settings(base, linked.point(base, [0.5])) == {
        "objective.r2_gamma": 5.0,
        "discriminator.norm": None,
    }
    base = base.replace("objective.name", "minimax")
    assert linked.settings(base, linked.point(base, [0.5]))["objective.r2_gamma"] == 2.5


def test_options_may_be_schedules_and_a_drawn_number_replaces_one():
    schedules = space(
        "generator.lr = { choice = [1e-3, { start = 2e-3, end = 1e-4 }] }\n"
        "discriminator.lr = { uniform = [1e-3, 3e-3] }"
    )
    base = BASE.replace("discriminator.lr", Schedule(start=1e-3, end=1e-5))
    point = schedules.point(base, [0.9, 0.5])
    assert point["generator.lr"] == {"start": 2e-3, "end": 1e-4}
    experiment = schedules.experiment(base, point)
    assert experiment.generator.lr == Schedule(start=2e-3, end=1e-4)
    assert experiment.discriminator.lr == pytest.approx(2e-3)
    assert schedules.point_of(experiment) == point
    assert schedules.point_of(base) == {}


def test_a_part_of_a_schedule_can_be_drawn():
    part = space("generator.lr.end = { uniform = [1e-5, 3e-5] }")
    base = BASE.replace("generator.lr", Schedule(start=1e-3, end=1e-5))
    experiment = part.experiment(base, part.point(base, [0.5]))
    assert experiment.flat()["generator.lr.start"] == 1e-3
    assert experiment.flat()["generator.lr.end"] == pytest.approx(2e-5)
    with pytest.raises(ConfigError, match=r"low end 1e-05: generator.lr"):
        part.check(BASE)


def test_values_out_of_range_are_no_part_of_a_point():
    narrow = space(
        "generator.lr = { loguniform = [1e-3, 1e-2] }\nema.half_life_kimg = { int = [5, 20] }"
    )
    assert narrow.point_of(BASE) == {"ema.half_life_kimg": 10}
    assert type(narrow.point_of(BASE)["ema.half_life_kimg"]) is int
    assert narrow.settings(BASE, narrow.point_of(BASE)) == {"ema.half_life_kimg": 10}
