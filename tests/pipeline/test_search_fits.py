"""What a search is refused for before it starts: data it cannot play, scores it cannot compare."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest

from gan.config import ConfigError
from gan.moments import MAX_KID_DIM
from pipeline.dataset import ShardSet
from pipeline.experiment import DataConfig, Experiment
from pipeline.experiment_file import experiment_from_dict
from pipeline.search_fits import MIN_IMAGES, checked_space

PLAIN = "[space]\ngenerator.lr = { uniform = [1e-4, 1e-3] }"


def with_search(text: str, **evaluate) -> Experiment:
    base = Experiment(name="tiny", data=DataConfig(shards="data")).to_dict()
    base["evaluate"] |= {"images": 50} | evaluate
    return experiment_from_dict(base | {"search": tomllib.loads(text)})


def refused(text: str, shards: ShardSet, **evaluate) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        checked_space(with_search(text, **evaluate), shards)
    return list(caught.value.mistakes)


@pytest.fixture
def unlabelled(stripes) -> ShardSet:
    return dataclasses.replace(stripes, classes=())


@pytest.fixture
def wide(stripes) -> ShardSet:
    """Images of 5 channels: 'pixels' has more features of them than KID takes."""
    return dataclasses.replace(stripes, channels=5)


def test_a_search_that_fits_gives_its_space(stripes):
    space = checked_space(with_search(PLAIN), stripes)
    assert [dimension.key for dimension in space.dimensions] == ["generator.lr"]


def test_a_conditioning_that_is_drawn_only_with_another_setting_must_fit_the_data(unlabelled):
    text = """
        [space]
        conditioning.name = { choice = ["none", "projection"], when = { turns.d_steps = 2 } }
        generator.lr = { uniform = [1e-4, 1e-3], when = { conditioning.name = "projection" } }
        turns.d_steps = { choice = [1, 2] }
        """
    assert refused(text, unlabelled) == [
        "search.space.conditioning.name: 'projection': conditioning.name must be 'none' where the "
        "data has no labels, got 'projection'; prepare it with a sub-folder for each class, or "
        "with --labels FILE"
    ]


def test_what_the_file_itself_breaks_is_not_told_of_every_setting_too(unlabelled):
    experiment = with_search(PLAIN).replace("conditioning.name", "projection")
    with pytest.raises(ConfigError) as caught:
        checked_space(experiment, unlabelled)
    assert [text.partition(" ")[0] for text in caught.value.mistakes] == ["conditioning.name"]


@pytest.mark.parametrize("objectives", ["['fd']", "['kid']", "['fd', 'diversity']"])
def test_scores_without_errors_are_refused_whatever_is_minimized(objectives, stripes):
    metric = "kid" if "kid" in objectives else "fd"
    text = f"scheduler = 'none'\nobjectives = {objectives}\n{PLAIN}"
    found = refused(text, stripes, images=MIN_IMAGES - 1, metric=metric)
    (said,) = [text for text in found if text.startswith("evaluate.images")]
    assert said.startswith(f"evaluate.images must be >= {MIN_IMAGES} for a search")
    assert f"got {MIN_IMAGES - 1}" in said
    assert "set evaluate.images to 20 or more" in said


@pytest.mark.parametrize(("first", "metric"), [("kid", "fd"), ("fd", "kid")])
def test_a_trials_snapshot_is_picked_by_what_trials_are_compared_by(first, metric, stripes):
    assert (
        f"evaluate.metric must be {first!r} where search.objectives begins with it, got {metric!r}"
    ) in refused(f"objectives = [{first!r}]\n{PLAIN}", stripes, metric=metric)


def test_kid_of_too_many_features_is_refused_as_objective_and_as_metric(wide):
    found = refused(f"objectives = ['kid']\n{PLAIN}", wide, metric="kid")
    said = f"'kid' is not measured in training with more than {MAX_KID_DIM} features, pixels has"
    assert [text.partition(said)[0] for text in found] == [
        "search.objectives: ",
        "evaluate.metric: ",
    ]
    assert all(text.endswith("use 'fd'") for text in found)
    (only,) = [text for text in refused(PLAIN, wide, metric="kid") if said in text]
    assert only.startswith("evaluate.metric: ")
