"""What a search learns from: the trials of earlier ones, or every mistake at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

import jobs.search
import pipeline.search
from gan.config import ConfigError
from pipeline.dataset import ShardSet
from pipeline.experiment import Experiment
from pipeline.experiment_file import experiment_from_dict
from pipeline.first_points import Earlier
from pipeline.ledger import Ledger, Reading, State, Trial
from pipeline.warm_start import earlier_trials

EXPERIMENT = """
name = "small"
[data]
shards = "{data}"
[generator]
width = 8
[discriminator]
width = 8
[turns]
batch_size = 16
[evaluate]
images = 50
[cluster]
storage = "{storage}"
[search]
trials = 3
warm_start = {names}
[search.space]
generator.lr = {{ uniform = [1e-4, 1e-3] }}
"""


def experiment(stripes: ShardSet, storage: Path, *names: str, **evaluate) -> Experiment:
    return experiment_from_dict(
        {
            "name": "small",
            "data": {"shards": stripes.uri},
            "evaluate": {"images": 50} | evaluate,
            "cluster": {"storage": str(storage)},
            "search": {
                "trials": 3,
                "warm_start": list(names),
                "space": {"generator": {"lr": {"uniform": [1e-4, 1e-3]}}},
            },
        }
    )


def trial(number: int, state: State, *values: float) -> Trial:
    point = {"generator.lr": 1e-4 * (number + 3)}
    return Trial(
        number=number, run=f"old-{number}", point=point, settings=point, origin="random",
        until_nimg=100, state=state, nimg=100,
        readings=[Reading(50 * (i + 1), {"fd": v}, {"fd": 0.0}) for i, v in enumerate(values)],
    )  # fmt: skip


@pytest.fixture
def runs(tmp_path, stripes) -> Path:
    """A storage with the search "old" of four trials, the last one under way."""
    ledger = Ledger.open("old", experiment(stripes, tmp_path / "runs"), stripes)
    for one in (
        trial(0, "complete", 5.0, 3.0),
        trial(1, "complete", 2.0),
        trial(2, "diverged", 1.0),
        trial(3, "running", 0.5),
    ):
        ledger.write(one)
    return tmp_path / "runs"


def mistakes(asked: Experiment, shards: ShardSet) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        earlier_trials(asked, shards)
    return caught.value.mistakes


def test_a_search_learns_from_every_trial_that_ended_once(runs, stripes):
    found = earlier_trials(experiment(stripes, runs, "old", "old"), stripes)
    assert found == [
        Earlier("old", {"generator.lr": 1e-4 * 3}, (3.0,)),
        Earlier("old", {"generator.lr": 1e-4 * 4}, (2.0,)),
        Earlier("old", {"generator.lr": 1e-4 * 5}, None),
    ]
    assert earlier_trials(experiment(stripes, runs), stripes) == []


def test_every_mistake_in_the_names_comes_at_once(runs, stripes):
    found = mistakes(experiment(stripes, runs, "odl", "../old", "old", "Old"), stripes)
    assert found == (
        f"search.warm_start: there is no search 'odl' in {runs} (no odl/search.json); correct the "
        f"name, or leave it out",
        "search.warm_start must name searches (1 to 48 of a-z, 0-9 and '-'), got '../old'",
        "search.warm_start must name searches (1 to 48 of a-z, 0-9 and '-'), got 'Old'",
    )


def test_other_data_images_extractor_and_objectives_are_refused_each(runs, stripes):
    asked = experiment(stripes, runs, "old", images=60, extractor="digits")
    assert asked.search is not None
    asked = asked.replace("search.objectives", ("kid",))
    found = mistakes(asked, dataclasses.replace(stripes, digest="f" * 64))
    rule = "search.warm_start: 'old' must be on the same data and judged alike, but "
    assert [text.removeprefix(rule).partition(";")[0] for text in found] == [
        "evaluate.images was 50 there and is 60 here",
        "evaluate.extractor was 'pixels' there and is 'digits' here",
        "search.objectives was ['fd'] there and is ['kid'] here",
        f"its data has digest {stripes.digest[:12]}, that at {stripes.uri} has ffffffffffff",
    ]


def test_a_wrong_name_leaves_the_searchs_own_name_free(runs, stripes):
    watcher = pipeline.search.Watcher(
        begun=lambda ledger, url: None, changed=lambda trial: None, said=lambda text: None
    )
    with pytest.raises(ConfigError, match="there is no search"):
        pipeline.search.search(experiment(stripes, runs, "odl"), watcher)
    assert [path.name for path in runs.iterdir()] == ["old"]


def dry_run(folder: Path, runs: Path, stripes: ShardSet, names: list[str]):
    file = folder / "small.toml"
    file.write_text(EXPERIMENT.format(data=stripes.uri, storage=runs, names=names))
    return CliRunner().invoke(jobs.search.command, [str(file), "--dry-run"])


def test_a_dry_run_shows_the_earlier_trials_that_come_first(tmp_path, runs, stripes, monkeypatch):
    monkeypatch.setattr("pipeline.probe.PROBE_SEC", 0.01)
    done = dry_run(tmp_path, runs, stripes, ["old"])
    assert done.exit_code == 0, done
    shown = done.output.partition("the first trials:\n")[2].splitlines()[1:3]
    assert [line.split() for line in shown] == [
        ["1", "generator.lr", "0.0004", "(from", "search", "old)"],
        ["2", "generator.lr", "0.0003", "(from", "search", "old)"],
    ]


def test_a_dry_run_refuses_what_the_search_would(tmp_path, runs, stripes):
    done = dry_run(tmp_path, runs, stripes, ["odl"])
    assert isinstance(done.exception, ConfigError)
    assert "there is no search 'odl'" in str(done.exception)
