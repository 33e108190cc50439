"""Search spaces that cannot be: each mistake is named, with its rule and its value."""

from __future__ import annotations

import pytest

from gan.config import ConfigError, Schedule
from pipeline.search_checks import CHANGEABLE, given_points, search_space
from tests.pipeline.spaces import BASE, mistakes, refused, space, with_search


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "search.space must name at least one setting to draw, such as generator.lr = {"),
        (
            "generator.lrr = { uniform = [1, 2] }",
            "generator.lrr: generator.lrr is not a setting; did you mean generator.lr?",
        ),
        ("generator = { uniform = [1, 2] }", "generator: generator is not a setting"),
        (
            "generator.lr = 1e-3",
            "must be a table such as { loguniform = [1e-4, 1e-2] }, got 0.001",
        ),
        ("generator.lr = {}", "must have one of uniform, loguniform, int, choice or same"),
        (
            "generator.lr = { unifrom = [1, 2] }",
            "unifrom is not one of uniform, loguniform, int, choice, same, times, when; "
            "did you mean uniform?",
        ),
        (
            "generator.lr = { uniform = [1, 2], loguniform = [1, 2] }",
            "must have one kind of draw, got uniform and loguniform",
        ),
        ("generator.lr = { uniform = [2, 1] }", "uniform must be [low, high] with low < high"),
        ("generator.lr = { uniform = [2, 2] }", "uniform must be [low, high] with low < high"),
        (
            "turns.d_steps = { int = [2, 2] }",
            "int must be [low, high] with low < high, got [2, 2]",
        ),
        ("generator.lr = { loguniform = [0, 1] }", "loguniform must begin above 0, got [0, 1]"),
        ("generator.lr = { uniform = [0, inf] }", "uniform must have finite ends, got [0, inf]"),
        ("generator.lr = { uniform = [nan, 1] }", "uniform must have finite ends, got [nan, 1]"),
        (
            "generator.lr = { uniform = [-1.5e308, 1.5e308] }",
            "uniform must not be wider than floating point, got [-1.5e+308, 1.5e+308]",
        ),
        ("generator.lr = { uniform = [1] }", "uniform must be [low, high], two numbers, got [1]"),
        ("generator.lr = { uniform = 1 }", "uniform must be [low, high], two numbers, got 1"),
        (
            "turns.d_steps = { int = [1, 2.5] }",
            "int must be [low, high], two whole numbers, got [1, 2.5]",
        ),
        (
            "turns.d_steps = { uniform = [1, 4] }",
            "uniform is not for a whole number; use int or choice",
        ),
        (
            "turns.d_steps = { loguniform = [1, 4] }",
            "loguniform is not for a whole number; use int or choice",
        ),
        (
            "objective.name = { int = [1, 4] }",
            "int is for numbers, and objective.name is one of 'minimax', 'nonsaturating'",
        ),
        ("generator.lr = { choice = [] }", "choice must be a list of at least one value, got []"),
        ("generator.lr = { choice = 1 }", "choice must be a list of at least one value, got 1"),
        ("generator.lr = { choice = [1, 1.0] }", "choice 2 is there twice, 1.0"),
        (
            "generator.lr = { choice = [{ start = 1, end = 2 }, "
            "{ shape = 'cosine', start = 1, end = 2 }] }",
            "choice 2 is there twice",
        ),
        ("generator.lr = { choice = [1, nan] }", "choice 2 must be finite, got nan"),
        ("turns.d_steps = { choice = [1, 1.5] }", "choice 2 must be a whole number or steps"),
        ("turns.d_steps = { choice = [1, true] }", "choice 2 must be a whole number or steps"),
        (
            "objective.name = { choice = ['minmax'] }",
            "choice 1 must be one of 'minimax', 'nonsaturating', 'least-squares', "
            "'hinge', 'wasserstein', 'relativistic', 'relativistic-average', got 'minmax'",
        ),
        (
            "generator.lr = { choice = [{ start = 1 }] }",
            "choice 1 must be a number or a schedule such as",
        ),
        (
            "generator.lr = { choice = [{ start = 1, end = 2, over_kimg = -1 }] }",
            "choice 1 of a table: over_kimg must be > 0, got -1",
        ),
        (
            "discriminator.lr = { times = 'generator.lrr', uniform = [1, 2] }",
            "times must name a setting, got generator.lrr; did you mean generator.lr?",
        ),
        (
            "generator.lr = { times = 'generator.lr', uniform = [1, 2] }",
            "times must name another setting, got generator.lr itself",
        ),
        ("generator.lr = { times = 3, uniform = [1, 2] }", "times must name a setting, got 3"),
        (
            "generator.lr = { times = 'generator.norm', uniform = [1, 2] }",
            "times cannot be generator.norm: generator.lr is a number or a schedule",
        ),
        (
            "turns.d_steps = { times = 'generator.lr', int = [1, 2] }",
            "times cannot be generator.lr: turns.d_steps is a whole number",
        ),
        (
            "generator.lr = { times = 'discriminator.lr', choice = [1, { start = 1, end = 2 }] }",
            "choice 2 must be a number with times",
        ),
        (
            "generator.lr = { times = 'turns.micro_batch', uniform = [1, 2] }",
            "times must name a number, but turns.micro_batch can be left out",
        ),
        (
            "generator.lr = { times = 'discriminator.lr', uniform = [1, 2] }\n"
            "discriminator.lr = { choice = [{ start = 1, end = 2 }] }",
            "times must name a number, but discriminator.lr can be {'start': 1, 'end': 2}",
        ),
        ("generator.lr = { same = 'generator.lr' }", "same must name another setting"),
        ("generator.lr = { same = 'generator.lrr' }", "did you mean generator.lr?"),
        ("generator.lr = { same = 'search.trials' }", "same must name a setting"),
        (
            "generator.lr = { same = 'objective.name' }",
            "same cannot be objective.name: generator.lr is a number",
        ),
        (
            "generator.lr = { same = 'discriminator.lr', when = { turns.d_steps = 1 } }",
            "same stands alone, without when",
        ),
        ("generator.lr = { uniform = [1, 2], when = 1 }", "when must be a table such as"),
        (
            "generator.lr = { uniform = [1, 2], when = { objectiv.name = 'minimax' } }",
            "when: objectiv.name is not a setting; did you mean objective.name?",
        ),
        (
            "generator.lr = { uniform = [1, 2], when = { generator.lr = 1 } }",
            "when must name another setting, got generator.lr itself",
        ),
        (
            "generator.lr = { uniform = [1, 2], when = { objective.name = [] } }",
            "when: objective.name must have at least one value, got []",
        ),
        (
            "generator.lr = { uniform = [1, 2], when = { objective.name = 'minmax' } }",
            "when: objective.name must be one of 'minimax', 'nonsaturating', 'least-squares', "
            "'hinge', 'wasserstein', 'relativistic', 'relativistic-average', got",
        ),
        (
            "generator.lr = { times = 'discriminator.lr', uniform = [1, 2] }\n"
            "discriminator.lr = { same = 'generator.lr' }",
            "search.space.discriminator.lr: depends on itself: "
            "discriminator.lr needs generator.lr needs discriminator.lr",
        ),
        (
            '"generator.lr" = { uniform = [1, 2] }\n"generator.lr.end" = { uniform = [1, 2] }',
            "search.space.generator.lr.end: generator.lr.end is a part of generator.lr",
        ),
    ],
)
def test_a_mistake_in_the_space_is_named_with_its_rule_and_value(text, expected):
    (mistake,) = mistakes(text)
    assert expected in mistake
    assert mistake.startswith("search.space")


def test_a_multiple_of_a_schedule_is_refused_where_the_file_has_one():
    text = "discriminator.lr = { times = 'generator.lr', uniform = [1, 2] }"
    base = BASE.replace("generator.lr", Schedule(start=1e-3, end=1e-5))
    (mistake,) = mistakes(text, base)
    assert "times must name a number, but generator.lr can be {'shape': 'cosine'" in mistake
    space(text + "\ngenerator.lr = { uniform = [1, 2] }", base)
    link = space("discriminator.lr = { same = 'generator.lr' }\nseed = { int = [0, 3] }", base)
    assert link.experiment(base, {}).discriminator.lr == base.generator.lr


@pytest.mark.parametrize(
    ("key", "draw", "reason"),
    [
        ("name", "choice = ['a', 'b']", "a search names its trials"),
        ("data.shards", "choice = ['a', 'b']", "trials are compared on the same data"),
        ("evaluate.images", "int = [10, 20]", "trials are judged alike"),
        ("tracking.tick_kimg", "uniform = [1, 2]", "it does not change the weights"),
        ("checkpoint.keep", "int = [1, 2]", "it does not change the weights"),
        ("cluster.workers", "int = [1, 2]", "it changes the weights by rounding only"),
        ("turns.total_kimg", "uniform = [1, 2]", "trials are compared at equal images"),
        ("search.trials", "int = [1, 2]", "a search does not search itself"),
    ],
)
def test_settings_that_no_search_may_draw_are_refused_with_the_reason(key, draw, reason):
    assert mistakes(f"{key} = {{ {draw} }}") == [
        f"search.space.{key}: {key} is not for a search: {reason}"
    ]


def test_all_mistakes_are_reported_at_once():
    found = mistakes(
        """
        generator.lr = { loguniform = [0, -1], times = 'generator.lr' }
        generator.widht = { uniform = [3, 2] }
        turns.d_steps = { uniform = [4, 1] }
        turns.total_kimg = { choice = [] }
        ema.ramp_up = { times = 'ema.half_life_kimg', uniform = [0, 1] }
        ema.half_life_kimg = { same = 'ema.ramp_up' }
        objective.r1_gamma = { times = 'turns.micro_batch', uniform = [0, 1] }
        """
    )
    assert [text.removeprefix("search.space.").partition(":")[0] for text in found] == [
        *["generator.lr"] * 3,
        *["generator.widht"] * 2,
        *["turns.d_steps"] * 2,
        *["turns.total_kimg"] * 2,
        "ema.half_life_kimg",
        "objective.r1_gamma",
    ]


# Bounds


def test_bounds_pass_through_the_experiments_own_rules():
    base = BASE.replace("cluster.workers", 2)
    with pytest.raises(ConfigError) as caught:
        space(
            "turns.batch_size = { choice = [1, 8] }\n"
            "generator.lr = { uniform = [-1, 1] }\n"
            "discriminator.lr = { times = 'generator.lr', uniform = [0, 1] }",
            base,
        ).check(base)
    assert list(caught.value.mistakes) == [
        "search.space.turns.batch_size: choice 1: turns.batch_size must be at least "
        "cluster.workers (each worker needs an image), got 1 for 2 workers",
        "search.space.generator.lr: uniform's low end -1.0: "
        "generator.lr must be > 0 and finite, got -1.0",
        "search.space.discriminator.lr: uniform's low end 0.0 times generator.lr: "
        "discriminator.lr must be > 0 and finite, got 0.0",
    ]


def test_combinations_that_break_a_rule_name_the_values_that_do():
    base = BASE.replace("objective.r1_gamma", 0.0).replace("objective.r2_gamma", 0.0)
    clash = (
        "discriminator.norm = { choice = ['none', 'batch'] }\n"
        "objective.r1_gamma = { choice = [0, 2] }\n"
    )
    many = "".join(
        f"{player}.{beta} = {{ uniform = [0, 0.5] }}\n"
        for player in ("generator", "discriminator")
        for beta in ("beta1", "beta2")
    )
    more = (
        "generator.width = { choice = [1, 2, 3, 4, 5, 6, 7, 8, 9] }\n"
        "turns.g_steps = { choice = [1, 2, 3, 4, 5, 6, 7, 8] }\n"
    )
    for text in (clash, many + clash, many + more + clash):  # the last is sampled
        with pytest.raises(ConfigError) as caught:
            space(text, base).check(base)
        (mistake,) = caught.value.mistakes
        assert mistake.startswith(
            "search.space: discriminator.norm = batch and objective.r1_gamma = 2: "
            "discriminator.norm must be 'none', 'group' or 'spectral'"
        )


def test_bounds_that_are_in_play_nowhere_near_the_file_are_tried_too():
    with pytest.raises(
        ConfigError, match=r"search.space.objective.r1_gamma: uniform's low end -1"
    ):
        space(
            "objective.name = { choice = ['relativistic', 'minimax'] }\n"
            "objective.r1_gamma = { uniform = [-1, 1], when = { objective.name = 'minimax' } }"
        ).check(BASE)


def test_links_that_break_a_rule_by_themselves_are_told():
    base = BASE.replace("generator.norm", "batch")
    text = "discriminator.norm = { same = 'generator.norm' }\nturns.d_steps = { int = [1, 2] }"
    with pytest.raises(
        ConfigError, match=r"^search.space: with nothing drawn: discriminator.norm"
    ):
        space(text, base).check(base)


# A search as a whole


def test_pbt_changes_only_what_can_change_in_mid_run():
    found = refused(
        """
        scheduler = "pbt"
        [space]
        generator.lr = { choice = [1e-3, { start = 1e-3, end = 1e-4 }] }
        generator.width = { int = [8, 16] }
        objective.r1_gamma = { uniform = [1, 2], when = { objective.name = "relativistic" } }
        objective.r2_gamma = { same = "objective.r1_gamma" }
        discriminator.norm = { same = "generator.norm" }
        """
    )
    only = f"pbt cannot change it in mid-run, only {', '.join(CHANGEABLE)}"
    assert found == [
        f"search.space.generator.width: {only}",
        f"search.space.discriminator.norm: {only}",
        "search.space.generator.lr: choice must be of numbers with pbt, without schedules",
        "search.space.objective.r1_gamma: when is not for pbt, which changes all of its settings",
    ]


def test_points_name_settings_of_the_space_and_pass_the_experiments_rules():
    found = refused(
        """
        points = [{ generator.lr = 1e-3, generator.widht = 3 }, { generator.lr = -1 }]
        [space]
        generator.lr = { uniform = [1e-4, 1e-3] }
        generator.width = { int = [8, 16] }
        """
    )
    assert found == [
        "search.points: point 1: generator.widht is not in search.space; "
        "did you mean generator.width?",
        "search.points: point 2: generator.lr must be > 0 and finite, got -1.0",
    ]


def test_points_that_would_never_be_tried_are_refused():
    text = """
        trials = {trials}
        points = [{{ generator.lr = 1e-3 }}, {{ generator.lr = 2e-3 }}]
        [space]
        generator.lr = {{ uniform = [1e-4, 1e-3] }}
        """
    assert refused(text.format(trials=2)) == [
        "search.points must be at most 1 with search.trials = 2, as trial 0 is the file's own, "
        "got 2; set search.trials to 3 or more"
    ]
    search_space(with_search(text.format(trials=3)))


def test_given_points_follow_links_and_leave_the_rest_to_the_file():
    base = with_search(
        """
        points = [
            { objective.r1_gamma = 3, generator.lr = { start = 1, end = 2 } },
            { objective.r2_gamma = 4 },
        ]
        [space]
        generator.lr = { uniform = [1e-4, 1e-3] }
        objective.r1_gamma = { uniform = [1, 2] }
        objective.r2_gamma = { same = "objective.r1_gamma" }
        """
    )
    assert given_points(search_space(base), base) == [
        {
            "objective.r1_gamma": 3,
            "generator.lr": {"start": 1, "end": 2},
            "objective.r2_gamma": 3,
        },
        {"objective.r2_gamma": 4},
    ]


def test_a_search_without_anything_to_draw_is_refused():
    only_links = '[space]\ndiscriminator.lr = { same = "generator.lr" }'
    for text in ("trials = 3", "[space]", only_links):
        assert "must name at least one setting to draw" in refused(text)[0]


def test_mistakes_of_the_table_and_of_its_sound_part_come_together():
    found = refused(
        """
        [space]
        generator.lr = { uniform = [2, 1] }
        discriminator.lr = { times = "generator.lr", uniform = [-2, 1] }
        turns.d_steps = { int = [0, 3] }
        """
    )
    assert found == [
        "search.space.generator.lr: uniform must be [low, high] with low < high, got [2, 1]",
        "search.space.turns.d_steps: int's low end 0: turns.d_steps must be >= 1 and whole, got 0",
    ]
