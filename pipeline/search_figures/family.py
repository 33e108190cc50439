"""Figures of population-based training: the family tree, and what the winner lived through."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pipeline.ledger import Trial
from pipeline.search_figures.curves import KIMG
from pipeline.search_figures.look import (
    BAD,
    BEST_FEW,
    FAINT,
    INK,
    about,
    colour,
    colour_bar,
    joined,
    plain,
    ruled,
    styled,
)
from pipeline.search_shown import OBJECTIVES, Shown, score, short

CROSSING = 0.18  # share of a generation's width that is left for the lines between two
COLUMNS = 2


def family_tree(shown: Shown) -> go.Figure | None:
    """Who continued whose weights: generations along x, members on y. None without a population.

    A life is a bar in the colour of its score; a thin line leads to it from the life that it
    goes on from. The winner's ancestry is drawn bold.
    """
    lives = [trial for trial in shown.trials if trial.member is not None]
    if not lives:
        return None
    line = shown.ancestry(shown.leader) if shown.leader is not None else []
    figure = go.Figure()
    _descent(figure, shown, [t for t in lives if t not in line], FAINT, 1.5, "continues")
    _descent(figure, shown, line, INK, 4, "the ancestry of the best")
    for trial in lives:
        figure.add_trace(_life(trial, shown, bold=trial in line))
    figure.add_trace(
        colour_bar(shown.score_scale(shown.objective), title=OBJECTIVES[shown.objective])
    )
    members = sorted({trial.member for trial in lives if trial.member is not None})
    figure.update_yaxes(title="member", tickvals=members, autorange="reversed", showgrid=False)
    figure.update_xaxes(title=KIMG)
    return styled(figure, height=150 + 46 * len(members))


def _begins(trial: Trial) -> float:
    """Where a life's bar begins, in thousands of images."""
    length = trial.until_nimg - trial.from_nimg
    return (trial.from_nimg + CROSSING * length * bool(trial.from_nimg)) / 1000


def _ends(trial: Trial) -> float:
    return max(trial.nimg / 1000, _begins(trial))


def _life(trial: Trial, shown: Shown, *, bold: bool) -> go.Scatter:
    found = score(trial, shown.objective)
    ink = colour(shown.score_scale(shown.objective).at(found.value)) if found else BAD
    if trial.state in ("waiting", "running") and not found:
        ink = FAINT
    begin, end = _begins(trial), _ends(trial)
    told = f"{about(trial, shown)}<br>{plain(trial.origin)}"
    return go.Scatter(
        x=[begin, (begin + end) / 2, end], y=[trial.member] * 3, mode="lines", showlegend=False,
        line={"color": ink, "width": 15 if bold else 9}, hovertext=told, hoverinfo="text",
    )  # fmt: skip


def _descent(
    figure: go.Figure, shown: Shown, trials: Sequence[Trial], ink: str, width: float, name: str
) -> None:
    """Lines from each trial's parent to it."""
    links = [(shown.by_number[t.parent], t) for t in trials if t.parent in shown.by_number]
    if not links:
        return
    figure.add_scatter(
        x=joined([(_ends(parent), _begins(child)) for parent, child in links]),
        y=joined([(parent.member, child.member) for parent, child in links]),
        mode="lines", line={"color": ink, "width": width}, name=name, hoverinfo="skip",
    )  # fmt: skip


def schedules(shown: Shown) -> go.Figure | None:
    """The settings that the best trial's weights lived through, over images. None without any."""
    if shown.leader is None or shown.leader.member is None:
        return None
    line, axes = shown.ancestry(shown.leader), [shown.axis(d) for d in shown.dimensions]
    rows = -(-len(axes) // COLUMNS)
    figure = make_subplots(rows=rows, cols=COLUMNS, shared_xaxes=True, horizontal_spacing=0.12,
                           vertical_spacing=min(0.2, 60 / (rows * 210)))  # fmt: skip
    for number, axis in enumerate(axes):
        row, column = number // COLUMNS + 1, number % COLUMNS + 1
        lived = [trial for trial in line if axis.name in trial.point]
        heights = [axis.at(trial.point[axis.name]) for trial in lived]
        figure.add_scatter(
            x=[at for t in lived for at in (t.from_nimg / 1000, t.nimg / 1000)],
            y=[height for height in heights for _ in range(2)], mode="lines", showlegend=False,
            line={"color": BEST_FEW[0], "width": 3}, row=row, col=column, hoverinfo="text",
            hovertext=[f"trial {t.number}: {plain(axis.name)} = {plain(short(t.point[axis.name]))}"
                       for t in lived for _ in range(2)],
        )  # fmt: skip
        figure.update_yaxes(ruled(axis, title=axis.name), row=row, col=column)
        if number >= len(axes) - COLUMNS:
            figure.update_xaxes(title=KIMG, showticklabels=True, row=row, col=column)
    styled(figure, height=80 + 210 * rows)
    return figure.update_layout(margin={"t": 16})
