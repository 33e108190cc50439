"""Experiment files: what is read, and every mistake named at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gan.config import ConfigError, Schedule, Steps, value_at
from pipeline.data_config import DataConfig
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_from_dict, experiment_toml, load_experiment

MINIMAL = 'name = "tiny"\n[data]\nshards = "data/tiny"\n'


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "tiny.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def mistakes_of(path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    return list(caught.value.mistakes)


def test_a_file_names_only_what_differs_from_the_defaults(write):
    loaded = load_experiment(write(MINIMAL + "[generator]\nlr = 1e-3\n"))
    assert loaded.experiment.generator.lr == 1e-3
    assert loaded.experiment.discriminator.lr == 2e-4
    assert loaded.sources == dict.fromkeys(("name", "data.shards", "generator.lr"), "tiny.toml")


def test_the_name_is_the_files_where_it_is_left_out(write):
    assert load_experiment(write('data.shards = "x"')).experiment.name == "tiny"


def test_overrides_win_and_need_no_quotes(write):
    loaded = load_experiment(
        write(MINIMAL), ["objective.name=minimax", "generator.lr={start=1e-3, end=1e-4}", "seed=7"]
    )
    assert loaded.experiment.objective.name == "minimax"
    assert loaded.experiment.generator.lr == Schedule(start=1e-3, end=1e-4)
    assert loaded.sources["seed"] == "command line"


def test_a_file_extends_another_and_wins_over_it(write):
    write(MINIMAL + "[turns]\nd_steps = 2\ng_steps = 3\n", "parent.toml")
    child = write('extends = "parent.toml"\nname = "child"\n[turns]\nd_steps = 5\n', "child.toml")
    loaded = load_experiment(child)
    turns = loaded.experiment.turns
    assert (loaded.experiment.name, turns.d_steps, turns.g_steps) == ("child", 5, 3)
    assert loaded.sources["turns.d_steps"] == "child.toml"
    assert loaded.sources["turns.g_steps"] == "parent.toml"
    write('extends = "child.toml"\n' + MINIMAL, "parent.toml")
    assert "extends itself" in mistakes_of(child)[0]


def test_an_experiment_survives_its_plain_form(write):
    experiment = load_experiment(
        write(MINIMAL), ["discriminator.lr={start=1e-3,end=1e-5}"]
    ).experiment
    assert experiment_from_dict(experiment.to_dict()) == experiment
    assert (
        load_experiment(write(experiment_toml(experiment), "again.toml")).experiment == experiment
    )
    assert experiment.flat()["discriminator.lr.end"] == 1e-5
    assert experiment.replace("turns.batch_size", 32).turns.batch_size == 32


def test_all_mistakes_are_reported_in_one_message_with_file_key_value_and_remedy(write):
    path = write(
        """
        name = "Bad Name"
        [data]
        shards = "x"
        [generator]
        lrr = 1e-3
        width = "wide"
        beta1 = 1.5
        [objective]
        name = "minmax"
        r1_gamma = -1.0
        [turns]
        batch_size = 2
        """
    )
    found = mistakes_of(path, "cluster.workers=4", "nonsense", "discriminator.norm=batch")
    text = "\n".join(found)
    for part in (
        "tiny.toml: name must be",
        "'Bad Name'",
        "tiny.toml: generator.lrr is not a setting; did you mean generator.lr?",
        "tiny.toml: generator.width must be a whole number, got 'wide'",
        "tiny.toml: generator.beta1 must be in [0, 1), got 1.5",
        "objective.name must be one of 'minimax', 'nonsaturating', 'least-squares', "
        "'hinge', 'wasserstein', 'relativistic', 'relativistic-average', got 'minmax'",
        "tiny.toml: objective.r1_gamma must be >= 0 and finite, got -1.0",
        "turns.batch_size must be at least cluster.workers",
        "an override is key=value",
    ):
        assert part in text
    assert len(found) == len(set(found))


def test_a_section_in_the_wrong_place_is_found(write):
    found = mistakes_of(write(MINIMAL + "[turn]\nd_steps = 2\n"))
    assert found == ["tiny.toml: turn.d_steps is not a setting; did you mean turns.d_steps?"]


@pytest.mark.parametrize("bad", ["nan", "inf", "-1e-3", "0"])
def test_rates_that_are_no_rates_are_refused(write, bad):
    assert (
        "generator.lr must be > 0 and finite"
        in mistakes_of(write(MINIMAL), f"generator.lr={bad}")[0]
    )


def test_missing_data_and_broken_toml_are_named(write, tmp_path):
    assert mistakes_of(write("seed = 1")) == [
        "data.shards must name the folder that `forger prepare` filled, got ''"
    ]
    assert "cannot be read as TOML" in mistakes_of(write("name = "))[0]
    assert "there is no experiment file" in mistakes_of(tmp_path / "none.toml")[0]


def test_batch_normalization_in_d_and_gradient_penalties_exclude_each_other(write):
    assert (
        "discriminator.norm must be" in mistakes_of(write(MINIMAL), "discriminator.norm=batch")[0]
    )
    free = ["objective.r1_gamma=0", "objective.r2_gamma=0", "discriminator.norm=batch"]
    load_experiment(write(MINIMAL), free)


def test_the_identity_holds_what_the_weights_depend_on(write):
    path = write(MINIMAL)
    plain = load_experiment(path).experiment
    assert load_experiment(path, ["cluster.workers=4"]).experiment.digest == plain.digest
    assert load_experiment(path, ["generator.lr=1e-3"]).experiment.digest != plain.digest
    assert load_experiment(path, ["seed=1"]).experiment.digest != plain.digest


def test_a_setting_that_comes_later_does_not_change_what_was_begun_before_it():
    """Where this fails a new setting is missing in `identity.LATER`, or an old one has changed."""
    tiny = Experiment(name="tiny", data=DataConfig(shards="data/tiny"))
    assert tiny.digest == "16ff9ad5ae290500bf6968406261052e007dffbad3105dfe099358ba5fb12a10"


@pytest.mark.parametrize(
    ("shape", "middle"), [("linear", 0.75), ("cosine", 0.75)]
)  # both are half way at half time
def test_schedules_go_from_start_to_end_and_stay(shape, middle):
    schedule = Schedule(shape=shape, start=1.0, end=0.5, over_kimg=10)
    at = [value_at(schedule, nimg, total_nimg=10**6) for nimg in (0, 5_000, 10_000, 90_000)]
    assert at == pytest.approx([1.0, middle, 0.5, 0.5])
    quarter = value_at(Schedule(shape="cosine", start=1.0, end=0.0), 250, total_nimg=1000)
    assert quarter == pytest.approx((1 + 2**-0.5) / 2)


STEPS = Steps(at_kimg=(0, 10.048, 20), values=(2e-3, 1.6e-3, 0.1 + 0.2))


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=8, unique=True))
def test_steps_change_at_the_very_image_whatever_kimg_rounds_to(begins):
    begins = [0, *sorted(begins)]
    steps = Steps(at_kimg=tuple(nimg / 1000 for nimg in begins), values=tuple(range(len(begins))))
    for number, nimg in enumerate(begins):
        assert value_at(steps, nimg, total_nimg=1) == number
        if nimg:
            assert value_at(steps, nimg - 1, total_nimg=1) == number - 1
    assert value_at(steps, 10**12, total_nimg=1) == len(begins) - 1


def test_steps_survive_the_file_to_the_last_bit(write):
    experiment = load_experiment(write(MINIMAL)).experiment
    for key in ("generator.lr", "discriminator.lr", "objective.r1_gamma", "objective.r2_gamma",
                "ema.half_life_kimg"):  # fmt: skip
        experiment = experiment.replace(key, STEPS)
    experiment = experiment.replace("turns.d_steps", Steps(at_kimg=(0, 3), values=(1, 2)))
    again = load_experiment(write(experiment_toml(experiment), "again.toml")).experiment
    assert again == experiment
    assert again.digest == experiment.digest
    assert experiment_from_dict(experiment.to_dict()) == experiment
    assert experiment.flat()["generator.lr.at_kimg"] == (0.0, 10.048, 20.0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "generator.lr={at_kimg=[1, 0.5], values=[1e-3]}",
            [
                "generator.lr.at_kimg must begin with 0, got [1.0, 0.5]",
                "generator.lr.at_kimg must be finite and increase, got [1.0, 0.5]",
                "generator.lr.values must be as many as at_kimg, got 1 for 2",
            ],
        ),
        (
            "generator.lr={at_kimg=[], values=[]}",
            ["generator.lr.at_kimg must begin with 0, got []"],
        ),
        (
            "discriminator.lr={at_kimg=[0, inf], values=[1e-3, nan]}",
            [
                "discriminator.lr.at_kimg must be finite and increase, got [0.0, inf]",
                "discriminator.lr.values must be finite, got [0.001, nan]",
            ],
        ),
        (
            "generator.lr={at_kimg=[0, 2], values=[1e-3, 0]}",
            ["generator.lr must be > 0 and finite, got 0.001, 0.0"],
        ),
        (
            "objective.r1_gamma={at_kimg=[0, 2], values=[1, -1]}",
            ["objective.r1_gamma must be >= 0 and finite, got 1.0, -1.0"],
        ),
        (
            "turns.d_steps={at_kimg=[0, 2], values=[1, 1.5]}",
            ["turns.d_steps must be >= 1 and whole, got 1.0, 1.5"],
        ),
        (
            "ema.half_life_kimg={at_kimg=[0, 2], values=[1, -2]}",
            ["ema.half_life_kimg must be >= 0 and finite, got 1.0, -2.0"],
        ),
        (
            "turns.d_steps={at_kimg=[0, 2]}",
            [
                "turns.d_steps must be a whole number or steps such as { at_kimg = [0, 50], "
                "values = [2, 1] }, got {'at_kimg': [0, 2]}"
            ],
        ),
        (
            "generator.lr={start=1, end=2, over_kimg=-1}",
            ["generator.lr.over_kimg must be > 0, got -1.0"],
        ),
    ],
)
def test_a_wrong_table_in_place_of_a_number_is_told_by_its_own_rule(write, override, said):
    assert mistakes_of(write(MINIMAL), override) == [f"command line: {line}" for line in said]


def test_the_same_mistake_in_two_tables_is_told_of_both(write):
    wrong = "={at_kimg=[0], values=[1, 2]}"
    found = mistakes_of(write(MINIMAL), "generator.lr" + wrong, "discriminator.lr" + wrong)
    assert [line.split()[2] for line in found] == [
        "generator.lr.values",
        "discriminator.lr.values",
    ]


SEARCH = """
[search]
trials = 8
points = [{ generator.lr = 1e-3 }]
[search.space]
generator.lr = { loguniform = [1e-4, 1e-2] }
turns.d_steps = { choice = [1, 2] }
"""


def test_a_file_may_hold_a_search_that_a_single_run_knows_nothing_of(write):
    loaded = load_experiment(write(MINIMAL + SEARCH))
    search = loaded.experiment.search
    assert search is not None
    assert (search.trials, search.objectives, search.points[0]) == (
        8,
        ("fd",),
        {"generator": {"lr": 1e-3}},
    )
    assert loaded.sources["search.space.generator.lr"] == "tiny.toml"
    plain = load_experiment(write(MINIMAL, "plain.toml")).experiment
    assert loaded.experiment.flat() == plain.flat()
    assert loaded.experiment.identity == plain.identity
    assert loaded.experiment.digest == plain.digest
    single = loaded.experiment.replace("search", None)
    assert single == plain
    assert "search" not in single.to_dict()
    assert "search" in loaded.experiment.to_dict()


def test_a_search_survives_its_plain_form(write):
    experiment = load_experiment(write(MINIMAL + SEARCH)).experiment
    assert experiment_from_dict(experiment.to_dict()) == experiment
    again = load_experiment(write(experiment_toml(experiment), "again.toml")).experiment
    assert again == experiment
    assert "[search" not in experiment_toml(experiment.replace("search", None))


def test_overrides_reach_the_search_and_replace_a_settings_whole_draw(write):
    loaded = load_experiment(
        write(MINIMAL + SEARCH),
        ["search.trials=4", "search.space.generator.lr={uniform=[1e-3, 2e-3]}"],
    )
    search = loaded.experiment.search
    assert search is not None
    assert search.trials == 4
    assert search.space["generator"]["lr"] == {"uniform": [1e-3, 2e-3]}
    assert search.space["turns"]["d_steps"] == {"choice": [1, 2]}
    assert loaded.sources["search.space.generator.lr"] == "command line"


def test_a_file_that_extends_another_replaces_a_settings_whole_draw_too(write):
    write(MINIMAL + SEARCH, "parent.toml")
    child = write(
        'extends = "parent.toml"\n[search.space]\ngenerator.lr = { uniform = [1e-3, 2e-3] }\n',
        "child.toml",
    )
    search = load_experiment(child).experiment.search
    assert search is not None
    assert search.space["generator"]["lr"] == {"uniform": [1e-3, 2e-3]}
    assert (search.trials, search.space["turns"]["d_steps"]) == (8, {"choice": [1, 2]})


def test_mistakes_of_the_search_come_with_all_others(write):
    path = write(
        MINIMAL
        + """
        [turns]
        batch_size = 2
        [generator]
        width = "wide"
        [search]
        trails = 8
        objectives = ["inception"]
        [search.space]
        generator.lr = { logunifrom = [1e-4, 1e-2] }
        turns.dsteps = { choice = [1, 2] }
        """
    )
    assert mistakes_of(path) == [
        "tiny.toml: search.trails is not a setting; did you mean search.trials?",
        "tiny.toml: generator.width must be a whole number, got 'wide'",
        "tiny.toml: search.objectives must be a list, each one of 'fd', 'kid', 'diversity', "
        "got ['inception']",
        "tiny.toml: search.space.generator.lr: logunifrom is not one of uniform, loguniform, int, "
        "choice, same, times, when; did you mean loguniform?",
        "tiny.toml: search.space.turns.dsteps: turns.dsteps is not a setting; "
        "did you mean turns.d_steps?",
    ]
    found = mistakes_of(path, "cluster.workers=100")  # no experiment is left to look at
    assert any("turns.batch_size must be at least" in text for text in found)
    assert any("did you mean turns.d_steps?" in text for text in found)


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("search.trials=0", "search.trials must be between 1 and 9999, got 0"),
        ("search.scheduler=hyperband", "search.scheduler must be one of 'none', 'asha', 'median'"),
        ("search.objectives=['diversity']", "search.objectives must begin with 'fd' or 'kid'"),
        ("search.budget_kimg=inf", "search.budget_kimg must be > 0 and finite, got inf"),
        ("search.warm_start='before'", "search.warm_start must be a list, each a text"),
        ("search.points=[1]", "search.points must be a list, each a table"),
        ("search=1", "search must be a table, got 1"),
        ("search.space=1", "search.space must be a table, got 1"),
    ],
)
def test_a_searchs_own_rules_are_told_by_their_full_names(write, override, rule):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write(MINIMAL + SEARCH), [override], for_search=True)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"command line: {rule}")


@pytest.mark.parametrize("for_search", [True, False])
def test_a_search_that_no_default_mends_is_told_with_the_mistakes_of_its_space(write, for_search):
    path = write(MINIMAL + SEARCH)  # the default scheduler breaks the same rule
    two = "search.objectives=['fd', 'diversity']"
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, [two], for_search=for_search)
    (mistake,) = caught.value.mistakes
    assert "search.scheduler must be 'none' with two objectives" in mistake
    assert mistake.endswith("got 'asha'")
    wrong = "search.space.turns.dsteps={choice=[1, 2]}"
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, [two, wrong, "search.trials=1"], for_search=for_search)
    assert len(caught.value.mistakes) == 3
    load_experiment(path, [two, "search.scheduler=none"], for_search=for_search)


def test_only_a_search_demands_a_space_and_tries_its_bounds(write):
    path = write(MINIMAL)
    for text in ("[search]\ntrials = 4\n", "[search.space]\n", ""):
        path = write(MINIMAL + text)
        load_experiment(path)
        with pytest.raises(ConfigError, match="must name at least one setting to draw"):
            load_experiment(path, for_search=True)
    path = write(MINIMAL + "[search.space]\nturns.batch_size = { choice = [1, 8] }\n")
    load_experiment(path, ["cluster.workers=2"])
    with pytest.raises(ConfigError, match=r"tiny.toml: search.space.turns.batch_size: choice 1: "):
        load_experiment(path, ["cluster.workers=2"], for_search=True)


def test_a_file_whose_own_name_is_no_experiments_is_told_where_the_name_is_from(write):
    path = write('[data]\nshards = "data/tiny"\n', "My_Exp.toml")
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith("the file's own name, My_Exp.toml, as it sets none: name must be")
    assert "not begin with '-', got 'My_Exp'" in mistake
    assert load_experiment(path, ["name=mine"]).experiment.name == "mine"


def test_the_shipped_experiments_load():
    folder = Path(__file__).parents[2] / "jobs/experiments"
    for path in folder.glob("*.toml"):
        loaded = load_experiment(path)
        if loaded.experiment.search is not None:
            load_experiment(path, for_search=True)
    searched = load_experiment(folder / "digits-search.toml").experiment
    assert searched.name == "digits"
    assert searched.turns.total_kimg == 30


def test_the_order_of_the_data_is_part_of_the_identity_and_its_place_is_not(write):
    path = write(MINIMAL)
    plain = load_experiment(path).experiment
    for changes in (["data.cache_gb=1"], ["data.shards=elsewhere"], ["data.lanes=4"]):
        assert load_experiment(path, changes).experiment.digest == plain.digest
    windowed = load_experiment(path, ["data.shuffle=window"]).experiment
    wider = load_experiment(path, ["data.shuffle=window", "data.lanes=4"]).experiment
    mirrored = load_experiment(path, ["data.flip=true"]).experiment
    balanced = load_experiment(path, ["data.balance=classes"]).experiment
    assert len({e.digest for e in (plain, windowed, wider, mirrored, balanced)}) == 5


def test_orders_that_contradict_themselves_are_refused(write):
    for changes, said in (
        (["data.window=5"], "data.window must be left out with shuffle = 'full'"),
        (["data.shuffle=window", "data.window=0"], "data.window must be >= 1"),
        (["data.lanes=0"], "data.lanes must be between"),
        (["data.class_weights=[1,2]"], "data.class_weights must be left out"),
        (["data.balance=classes", "data.class_weights=[0,0]"], "data.class_weights must be whole"),
        (["data.cache_gb=0"], "data.cache_gb must be > 0"),
    ):
        (mistake,) = mistakes_of(write(MINIMAL), *changes)
        assert said in mistake
