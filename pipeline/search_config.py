"""How a search is held: the `[search]` section of an experiment file; imports nothing heavy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from gan.config import check

Searcher = Literal["random", "quasirandom", "tpe"]
Scheduler = Literal["none", "asha", "median", "pbt"]
Objective = Literal["fd", "kid", "diversity"]
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Which experiments are tried, how many, in which order, and which of them are cut short.

    Every trial is the file's own experiment with the settings of `space` changed; its length is
    turns.total_kimg, in images that D saw, whatever d_steps is.
    """

    space: dict[str, Any] = field(default_factory=dict)  # how each setting is drawn
    name: str | None = None  # NAME-search where left out
    trials: int = 16  # with 'pbt': the members of the population
    parallel: int | None = None  # trials at once; as many as the cluster holds where left out
    seed: int = 0  # of the search's own draws; the trials keep the experiment's seed
    searcher: Searcher = "random"  # tpe is Optuna's
    scheduler: Scheduler = "asha"  # what cuts a trial short; pbt: a population that changes
    objectives: tuple[Objective, ...] = ("fd",)  # one; or two, and the Pareto front is kept
    warm_up: float = 0.25  # share of a trial before which nothing is cut
    reduction: int = 3  # asha: the best one of so many goes on from each rung
    generations: int = 5  # pbt: how often the population is renewed, the start included
    budget_kimg: float | None = None  # no trial is begun once all have seen so many images
    points: tuple[dict[str, Any], ...] = ()  # to begin with, after the file's own settings
    warm_start: tuple[str, ...] = ()  # earlier searches to learn from, by name
    finalists: int = 3  # the best trials, judged again before one is named
    final_images: int = 10_000  # in each such judgement
    final_seeds: int = 3  # sets of latents that finalists are judged at

    def __post_init__(self) -> None:
        check(
            (
                self.name is None or bool(NAME.fullmatch(self.name)),
                f"name must be 1 to 48 of a-z, 0-9 and '-', got {self.name!r}",
            ),
            (1 <= self.trials <= 9999, f"trials must be between 1 and 9999, got {self.trials}"),
            (
                self.parallel is None or self.parallel >= 1,
                f"parallel must be >= 1, got {self.parallel}",
            ),
            (0 <= self.seed < 2**63, f"seed must be in [0, 2^63), got {self.seed}"),
            (
                1 <= len(self.objectives) <= 2
                and len(set(self.objectives)) == len(self.objectives),
                f"objectives must be one measure or two different ones, "
                f"got {list(self.objectives)}",
            ),
            (
                self.objectives[:1] != ("diversity",),
                "objectives must begin with 'fd' or 'kid': a generator of noise is diverse",
            ),
            (
                len(self.objectives) == 1 or self.scheduler == "none",
                f"scheduler must be 'none' with two objectives (no trial on the Pareto front may "
                f"be cut for being second in one), got {self.scheduler!r}",
            ),
            (0 <= self.warm_up < 1, f"warm_up must be in [0, 1), got {self.warm_up}"),
            (self.reduction >= 2, f"reduction must be >= 2, got {self.reduction}"),
            (self.generations >= 2, f"generations must be >= 2, got {self.generations}"),
            (
                self.scheduler != "pbt" or self.trials >= 4,
                f"trials must be >= 4 with scheduler = 'pbt' (a population), got {self.trials}",
            ),
            (
                self.budget_kimg is None or 0 < self.budget_kimg < math.inf,
                f"budget_kimg must be > 0 and finite, got {self.budget_kimg}",
            ),
            (self.finalists >= 1, f"finalists must be >= 1, got {self.finalists}"),
            (self.final_images >= 100, f"final_images must be >= 100, got {self.final_images}"),
            (self.final_seeds >= 1, f"final_seeds must be >= 1, got {self.final_seeds}"),
        )
