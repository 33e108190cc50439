"""The page of a search in words and tables: its headline, its trials, what they cost and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.importance import Importance
from pipeline.ledger import Trial
from pipeline.search_shown import (
    APART,
    LOGARITHMIC,
    OBJECTIVES,
    Judged,
    Shown,
    duration,
    front,
    images,
    plus_minus,
    score,
    short,
    trials_named,
)

DASH = "\N{EN DASH}"
ORDER = ("complete", "stopped", "running", "waiting", "diverged", "failed")  # of states, in words
SCHEDULERS = {"asha": "asynchronous successive halving", "median": "the median rule",
           "pbt": "population-based training", "none": "nothing cut short"}  # fmt: skip
SEARCHERS = {"random": "random draws", "quasirandom": "quasi-random draws",
             "tpe": "Optuna's TPE"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: what is read, and what its column is sorted by."""

    text: str
    order: float | str
    look: str = ""  # a class of the page's style
    link: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One number of the headline."""

    label: str
    value: str
    note: str = ""


def title(shown: Shown) -> str:
    """The headline: what the search found, as far as it has come."""
    if not shown.trials:
        return f"{shown.name}: no trial has begun"
    if shown.best is not None:
        tied = "" if not _ties(shown) else f", tied with {trials_named(_ties(shown))}"
        return f"{shown.name}: trial {shown.best} is the best{tied}"
    if not all(trial.ended for trial in shown.trials):
        return f"{shown.name}: the search is not over yet"
    return f"{shown.name}: no best trial was named"


def summary(shown: Shown) -> list[str]:
    """The headline's sentences: the best, what it is compared with, how it was searched."""
    lines = [*_leading(shown), *_two_objectives(shown)]
    drawn = ", ".join(d.name for d in shown.dimensions) or "nothing"
    lines.append(
        f"Searched: {drawn}; by {SEARCHERS[shown.config.searcher]} and "
        f"{SCHEDULERS[shown.config.scheduler]}, up to {images(shown.base.turns.total_nimg)} "
        f"images a trial, judged on {images(shown.base.evaluate.images)} generated images with "
        f"the extractor {shown.base.evaluate.extractor}."
    )
    noise = [
        f"{shown.noise[o]:.2g} ({OBJECTIVES[o]})" for o in shown.config.objectives
        if shown.noise.get(o, 0) > 0
    ]  # fmt: skip
    if noise:
        lines.append(
            f"The standard error of one evaluation is about {' and '.join(noise)}; trials nearer "
            f"than {APART:g} combined standard errors are called a tie."
        )
    return lines


def _leading(shown: Shown) -> list[str]:
    best, what = shown.leader, OBJECTIVES[shown.objective]
    if best is None:
        return ["No trial has a score yet."] if shown.trials else [
            "The table and the figures appear as soon as trials are judged."]  # fmt: skip
    finalist = _finalist(shown, best.number)
    found = score(best, shown.objective)
    if finalist is not None:
        each = images(shown.config.final_images)
        said = (
            f"Trial {best.number} has a {what} of {plus_minus(finalist.mean, finalist.error)}, "
            f"the mean over {len(finalist.values)} new sets of {each} images each."
        )
    elif found is not None:
        leads = "is the best" if shown.best is not None else "leads"
        value = plus_minus(found.value, found.error)
        said = (
            f"Trial {best.number} {leads} with a {what} of {value} "
            f"after {images(found.nimg)} images."
        )
    else:
        return [f"Trial {best.number} was named best without a score."]
    ties = _ties(shown)
    if ties:
        said += (f" It is tied with {trials_named(ties)}: the difference is within the noise, so "
                 "any of them may be the better one.")  # fmt: skip
    return [said, *_against_own(shown, best)]


def _against_own(shown: Shown, best: Trial) -> list[str]:
    """How the best compares with trial 0, both judged in the same way."""
    own = shown.own
    if own is None:
        return []
    if own is best:
        so_far = "" if shown.best is not None else " so far"
        return [f"These are the file's own settings (trial 0): nothing beat them{so_far}."]
    ours, theirs = _finalist(shown, best.number), _finalist(shown, 0)
    how = " in the same judgement"
    if ours is not None and theirs is not None:
        pair = (ours.mean, ours.error), (theirs.mean, theirs.error)
    else:
        a, b = score(best, shown.objective), score(own, shown.objective)
        if a is None or b is None:
            return [f"The file's own settings (trial 0) have no score: {own.state}."]
        pair, how = ((a.value, a.error), (b.value, b.error)), " in the search's own evaluations"
    (value, error), (other, other_error) = pair
    said = f"The file's own settings (trial 0) have {plus_minus(other, other_error)}{how}"
    if own.nimg < best.nimg:
        return [f"{said}, but after {images(own.nimg)} images only, where trial {best.number} saw "
                f"{images(best.nimg)}: too few to compare the two."]  # fmt: skip
    said += f", trial {best.number} has {plus_minus(value, error)}"
    if abs(other - value) <= APART * math.hypot(error, other_error):
        return [said + ": the difference is within the noise."]
    if value > 0 and other > value:
        return [f"{said}: {100 * (1 - value / other):.0f} % lower."]
    return [said + "."]


def _two_objectives(shown: Shown) -> list[str]:
    if len(shown.config.objectives) < 2 or not (best := front(shown)):
        return []
    names = " and ".join(OBJECTIVES[o] for o in shown.config.objectives)
    return [f"Two objectives are searched for, {names}; on their Pareto front: "
            f"{trials_named(t.number for t in best)}."]  # fmt: skip


def _finalist(shown: Shown, number: int) -> Judged | None:
    return next((row for row in shown.finalists if row.number == number), None)


def _ties(shown: Shown) -> list[int]:
    return [row.number for row in shown.finalists if row.tied and row.number != shown.best]


def tiles(shown: Shown) -> list[Tile]:
    """The headline's numbers."""
    counts = Counter(trial.state for trial in shown.trials)
    states = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    spent, skipped = sum(t.spent_nimg for t in shown.trials), _skipped(shown)
    seconds = sum(trial.device_sec for trial in shown.trials)
    share = 100 * skipped / (spent + skipped) if skipped else 0
    return [
        Tile("trials", str(len(shown.trials)), states),
        Tile("images seen by D", images(spent), f"{images(skipped)} not spent" if skipped else ""),
        Tile("device time", duration(seconds), f"{duration(shown.wall_sec)} on the clock"),
        Tile("saved by stopping", duration(shown.saved_device_sec),
             f"{share:.0f} % of the images" if share else "nothing was stopped"),
    ]  # fmt: skip


def _skipped(shown: Shown) -> int:
    return sum(t.until_nimg - t.nimg for t in shown.trials if t.state == "stopped")


def trial_heads(shown: Shown) -> list[str]:
    """The columns of the table of trials."""
    scores = [f"best {OBJECTIVES[o]}" for o in shown.config.objectives]
    names = [dimension.name for dimension in shown.dimensions]
    return [
        "trial",
        "state",
        *scores,
        "images, thousands",
        *names,
        "device time",
        "origin",
        "why it ended",
    ]


def trial_rows(shown: Shown) -> list[list[Cell]]:
    """Every trial, the best first; without a score last, in the order of their numbers."""
    rest = [trial for trial in shown.trials if trial not in shown.ranked]
    return [_trial_row(trial, shown) for trial in [*shown.ranked, *rest]]


def _trial_row(trial: Trial, shown: Shown) -> list[Cell]:
    scores = []
    for objective in shown.config.objectives:
        found = score(trial, objective, by=shown.objective)
        scores.append(Cell(plus_minus(found.value, found.error) if found else DASH,
                           found.value if found else math.inf, "number"))  # fmt: skip
    points = []
    for dimension in shown.dimensions:
        value = trial.point.get(dimension.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            points.append(Cell(short(value), float(value), "number"))
        else:
            points.append(Cell(DASH if value is None else short(value), str(value), "number"))
    safe = trial.mlflow_url.startswith(("http://", "https://"))
    star = " ★" if trial.number == shown.best else ""
    return [
        Cell(f"{trial.number}{star}", trial.number, link=trial.mlflow_url if safe else ""),
        Cell(trial.state, trial.state, trial.state),
        *scores,
        Cell(f"{trial.nimg / 1000:.4g}", trial.nimg, "number"),
        *points,
        Cell(duration(trial.device_sec), trial.device_sec, "number"),
        Cell(trial.origin, trial.origin),
        Cell(trial.reason, trial.reason, "why"),
    ]


def ended_rows(shown: Shown) -> list[Sequence[str]]:
    """What was stopped, diverged or failed: which, at how many images, and why."""
    ended = [t for t in shown.trials if t.state in ("stopped", "diverged", "failed")]
    ended.sort(key=lambda trial: (trial.nimg, trial.number))
    return [
        (f"trial {t.number}", t.state, images(t.nimg),
         f"{100 * t.nimg / t.until_nimg:.0f} %" if t.until_nimg else DASH, t.reason)
        for t in ended
    ]  # fmt: skip


def budget_rows(shown: Shown) -> list[Sequence[str]]:
    """What the trials of each state cost, and what all of them to their ends would have."""
    rows: list[Sequence[str]] = []
    for state in ORDER:
        trials = [trial for trial in shown.trials if trial.state == state]
        if trials:
            rows.append(_cost(state, trials))
    rows.append(_cost("all", shown.trials))
    skipped, saved = _skipped(shown), shown.saved_device_sec
    stopped = sum(trial.state == "stopped" for trial in shown.trials)
    rows.append(("not spent, thanks to stopping", str(stopped), images(skipped), duration(saved)))
    return rows


def _cost(name: str, trials: Sequence[Trial]) -> Sequence[str]:
    spent, seconds = sum(t.spent_nimg for t in trials), sum(t.device_sec for t in trials)
    return (name, str(len(trials)), images(spent), duration(seconds))


def importance_notes(found: Importance, objective: str) -> list[str]:
    """How the shares are meant, and what is not in them."""
    lines = []
    if found.shares:
        taken = "the logarithm of the score" if objective in LOGARITHMIC else "the score"
        together = 100 * (1 - sum(mean for mean, _ in found.shares.values()))
        lines.append(
            f"fANOVA over {found.num_trials} trials with a score: the share of the variance of "
            f"{taken} that a setting explains by itself, over the whole space; the bars end at "
            "the mean of 20 resamplings of the trials, the whiskers are one standard deviation. "
            f"About {max(together, 0):.0f} % is left to settings acting together. Trials that "
            "diverged or failed are left out; stopped trials count with the best they reached."
        )
    if found.not_judged:
        lines.append(f"Not judged, as not every trial has it: {', '.join(found.not_judged)}.")
    return lines
