"""The page of a search: one self-contained HTML file that opens offline and loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline import search_words as words
from pipeline.importance import importance
from pipeline.page import Picture
from pipeline.search_figures import curves, family, settings
from pipeline.search_figures.look import drawn, library
from pipeline.search_shown import OBJECTIVES, Judged, Shown, plus_minus, score

__all__ = ["Judged", "Shown", "search_page"]

TEMPLATE = "search.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page: a figure, a table or pictures, or a sentence on why there is none."""

    id: str
    title: str
    notes: Sequence[str] = ()
    figure: Markup | None = None
    empty: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = ()


def search_page(state: Shown) -> str:
    """The page as HTML, at any time during or after the search; every text in it is escaped."""
    environment = Environment(
        loader=PackageLoader("pipeline", "pages"), autoescape=True, undefined=StrictUndefined
    )
    sections = [*_scores(state), *_settings(state), *_family(state), *_costs(state)]
    return environment.get_template(TEMPLATE).render(
        title=words.title(state),
        summary=words.summary(state),
        tiles=words.tiles(state),
        heads=words.trial_heads(state),
        trials=words.trial_rows(state),
        sections=sections,
        toml=state.best_toml,
        toml_base64=base64.b64encode(state.best_toml.encode()).decode(),
        record=_record(state),
        library=library() if any(section.figure for section in sections) else "",
    )


def _figure(id: str, title: str, figure, *, notes: Sequence[str] = (), empty: str) -> Section:
    """A section of one figure; of one sentence where there is nothing to draw."""
    if figure is None:
        return Section(id=id, title=title, empty=empty)
    return Section(id=id, title=title, notes=notes, figure=drawn(figure, f"figure-{id}"))


def _scores(state: Shown) -> list[Section]:
    unread = "No trial was judged yet."
    sections = [
        _figure(
            "curves", "Learning curves", curves.learning_curves(state), empty=unread,
            notes=["Bias-corrected scores of the averaged generator; the bands of the best few "
                   "are one standard error. Hover a point for its trial's settings."],
        ),
        _figure(
            "anytime", "Best so far", curves.best_so_far(state), empty=unread,
            notes=["As if the trials were played one after another, by their numbers. The best of "
                   "many readings flatters; the final judgement does not."],
        ),
        _figure(
            "finals", "Final judgement", curves.finals(state),
            empty="The best trials are judged again, at new latents, once all trials ended.",
            notes=[f"The best generators of the best trials, each on {state.config.final_images} "
                   f"images at {state.config.final_seeds} sets of latents that chose none of "
                   "them; the same sets for all."],
        ),
        _samples(state),
    ]  # fmt: skip
    if len(state.config.objectives) > 1:
        both = " and ".join(OBJECTIVES[o] for o in state.config.objectives)
        front = _figure(
            "pareto", "Pareto front", curves.pareto(state),
            notes=[f"{both}, each trial at its best reading of each; bars are one standard "
                   "error."],
            empty="No trial has a score in both objectives yet.",
        )  # fmt: skip
        sections.insert(0, front)
    return sections


def _samples(state: Shown) -> Section:
    pictures = [Picture(_caption(number, state), png) for number, png in state.samples.items()]
    return Section(
        id="samples", title="Samples of the best trials", pictures=pictures,
        notes=["The same latents in the same places."] if pictures else (),
        empty="" if pictures else "No samples were drawn yet.",
    )  # fmt: skip


def _caption(number: int, state: Shown) -> str:
    trial = state.by_number.get(number)
    found = score(trial, state.objective) if trial else None
    said = (
        f": {OBJECTIVES[state.objective]} {plus_minus(found.value, found.error)}" if found else ""
    )
    best = ", the best" if number == state.best else ""
    own = ", the file's own settings" if trial and trial is state.own else ""
    return f"trial {number}{best}{own}{said}"


def _settings(state: Shown) -> list[Section]:
    found = importance(state.trials, state.dimensions, objective=state.objective,
                       floor=state.floor(state.objective))  # fmt: skip
    notes = words.importance_notes(found, state.objective)
    bars = _figure("importance", "Which settings matter", settings.importance_bars(found),
                   notes=notes, empty=" ".join([found.reason, *notes]))  # fmt: skip
    return [
        _figure(
            "parallel", "Settings and scores", settings.parallel(state),
            empty="No trial has ended yet.",
            notes=["Each line is a trial on its way through its settings to its score. Dark is "
                   "good; the thick line is the best trial."],
        ),
        bars,
        _figure(
            "against", "The score against each setting", settings.against_settings(state),
            empty="No trial has ended with a score yet.",
            notes=["Stopped trials are open: they had fewer images to become good. Trials without "
                   "a score stand at the upper edge."],
        ),
    ]  # fmt: skip


def _family(state: Shown) -> list[Section]:
    if state.config.scheduler != "pbt":
        return []
    return [
        _figure(
            "family", "Family tree", family.family_tree(state),
            empty="No member of the population has begun.",
            notes=["A bar is one member's life in one generation, in the colour of its best "
                   "score; a line leads to it from the life whose weights it goes on from."],
        ),
        _figure(
            "schedules", "What the best one lived through", family.schedules(state),
            empty="No member leads yet.",
            notes=["The experiment below holds these schedules: training it replays this life."],
        ),
    ]  # fmt: skip


def _costs(state: Shown) -> list[Section]:
    ended = words.ended_rows(state)
    return [
        Section(
            id="ended", title="What was stopped, when and why",
            head=("", "state", "images", "of its length", "why") if ended else (), rows=ended,
            empty="" if ended else "No trial was stopped, diverged or failed.",
        ),
        Section(
            id="budget", title="Budget",
            head=("trials", "number", "images seen by D", "device time"),
            rows=words.budget_rows(state),
            notes=["Device time is that of all workers together, while they played."],
        ),
    ]  # fmt: skip


def _record(state: Shown) -> list[tuple[str, str]]:
    config = state.config
    rows = [
        ("search", state.name),
        ("experiment", state.base.name),
        ("data", state.base.data.shards),
        ("seed of the trials", str(state.base.seed)),
        ("seed of the search", str(config.seed)),
        ("searcher, scheduler", f"{config.searcher}, {config.scheduler}"),
        ("objectives", ", ".join(config.objectives)),
        ("evaluation", f"{state.base.evaluate.images} images, {state.base.evaluate.extractor}"),
        ("MLflow", state.mlflow),
    ]
    return [(key, value) for key, value in rows if value]
