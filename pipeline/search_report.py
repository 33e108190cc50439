"""A search's page from its folder, at any time during or after it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from pipeline.finals import Finalist, finalists_of
from pipeline.ledger import BEST, Ledger, Trial, best_of
from pipeline.run import GRID
from pipeline.search_checks import search_space
from pipeline.search_page import search_page
from pipeline.search_shown import Judged, Shown
from pipeline.storage import open_storage

PAGE = "search.html"
NUM_SAMPLED = 4  # of the best trials, whose samples are shown side by side


def page_of(storage: str, name: str) -> str:
    """The page of the search `name` below `storage`, as HTML.

    Raises ConfigError where there is no such search.
    """
    return page_of_ledger(Ledger.at(open_storage(storage).below(name)))


def page_of_ledger(ledger: Ledger, *, result: dict[str, Any] | None = None) -> str:
    """The page of a search, as HTML; `result` is what it is about to end with."""
    return search_page(shown_of(ledger, result=result))


def shown_of(ledger: Ledger, *, result: dict[str, Any] | None = None) -> Shown:
    """What there is to show of a search now; running trials are read from their journals."""
    trials = ledger.trials()
    for trial in trials:
        if not trial.ended and ledger.has_run(trial):
            ledger.catch_up(trial)
    result = result or ledger.result or {}
    finalists = finalists_of(result) if result else []
    best = result.get("best")
    shown_first = [f.number for f in finalists] or [
        trial.number for trial in best_of(trials, ledger.config.objectives[0])
    ]
    return Shown(
        name=ledger.name,
        config=ledger.config,
        base=ledger.experiment,
        trials=trials,
        dimensions=search_space(ledger.experiment).dimensions,
        noise=_noise(trials),
        finalists=tuple(_judged(finalist, ledger) for finalist in finalists),
        best=best,
        samples=_samples(ledger, trials, shown_first[:NUM_SAMPLED]),
        saved_device_sec=sum(map(_saved_sec, trials)),
        wall_sec=_wall_sec(ledger, trials),
        best_toml=ledger.storage.read(BEST).decode() if ledger.storage.exists(BEST) else "",
        mlflow=result.get("mlflow_url", ""),
    )


def _judged(finalist: Finalist, ledger: Ledger) -> Judged:
    objective = ledger.config.objectives[0]
    return Judged(
        number=finalist.number,
        values=tuple(reading.values[objective] for reading in finalist.readings),
        mean=finalist.mean,
        error=finalist.error,
        tied=finalist.tied,
    )


def _noise(trials: Sequence[Trial]) -> dict[str, float]:
    """The typical standard error of a trial's last evaluation, by objective."""
    last = [trial.readings[-1] for trial in trials if trial.readings]
    names = {name for reading in last for name in reading.errors}
    return {
        name: statistics.median(r.errors[name] for r in last if name in r.errors)
        for name in sorted(names)
    }


def _samples(ledger: Ledger, trials: Sequence[Trial], wanted: list[int]) -> dict[int, bytes]:
    """The sample grids of these trials' best generators: all of the same latents."""
    found = {}
    for number in wanted:
        trial = next(trial for trial in trials if trial.number == number)
        best = ledger.run_of(trial).best()
        if best is not None:
            found[number] = ledger.run_of(trial).storage.read(f"{best.folder}/{GRID}")
    return found


def _saved_sec(trial: Trial) -> float:
    """Device seconds that a trial would have taken had it not been stopped."""
    if trial.state != "stopped" or not trial.spent_nimg:
        return 0.0
    return trial.device_sec / trial.spent_nimg * max(0, trial.until_nimg - trial.nimg)


def _wall_sec(ledger: Ledger, trials: Sequence[Trial]) -> float:
    """From the first tick of any trial to the last one; interruptions count too."""
    begun = [ledger.run_of(trial) for trial in trials if ledger.has_run(trial)]
    times = [line.time_ms for run in begun for line in run.journal()]
    return (max(times) - min(times)) / 1000 if times else 0.0
