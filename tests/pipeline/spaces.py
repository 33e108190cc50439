"""Search spaces as a file's text says them, and what is refused of them."""

from __future__ import annotations

import tomllib

import pytest

from gan.config import ConfigError
from pipeline.experiment import DataConfig, Experiment
from pipeline.experiment_file import experiment_from_dict
from pipeline.search_checks import search_space
from pipeline.space import Space

BASE = Experiment(name="tiny", data=DataConfig(shards="data/tiny"))


def space(text: str, base: Experiment = BASE) -> Space:
    return Space.of(tomllib.loads(text), base)


def mistakes(text: str, base: Experiment = BASE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        space(text, base)
    return list(caught.value.mistakes)


def with_search(text: str, **changes) -> Experiment:
    return experiment_from_dict({**BASE.to_dict(), **changes, "search": tomllib.loads(text)})


def refused(text: str, **changes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        search_space(with_search(text, **changes))
    return list(caught.value.mistakes)
