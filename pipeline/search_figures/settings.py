"""Figures of what the settings do: parallel coordinates, importance, the score against each."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from pipeline.importance import Importance
from pipeline.ledger import Trial
from pipeline.search_figures.look import (
    BAD,
    BEST_FEW,
    DIM,
    INK,
    LINE,
    about,
    colour,
    plain,
    ruled,
    styled,
)
from pipeline.search_shown import OBJECTIVES, Axis, Shown, score

OUT_OF_PLAY = -0.12  # the height of a setting that a trial does not have
NO_SCORE = 1.12  # and of what diverged or failed on the axis of the score
COLUMNS = 3


def parallel(shown: Shown) -> go.Figure | None:
    """Each trial as a line through its settings to its score. None before one has ended."""
    trials = [trial for trial in shown.trials if trial.ended]
    if not trials or not shown.dimensions:
        return None
    axes = [*(shown.axis(d) for d in shown.dimensions), shown.score_scale(shown.objective)]
    figure = go.Figure()
    worst_first = [*(t for t in trials if t not in shown.ranked),
                   *(t for t in reversed(shown.ranked) if t.ended)]  # fmt: skip
    for trial in worst_first:
        figure.add_trace(_line(trial, axes, shown))
    _posts(figure, axes, trials)
    for name, dash, ink in (("scored", "solid", colour(0.3)), ("diverged", "dash", BAD),
                            ("failed", "dot", BAD)):  # fmt: skip
        figure.add_scatter(x=[None], y=[None], mode="lines", name=name,
                           line={"color": ink, "dash": dash, "width": 2})  # fmt: skip
    styled(figure, height=480)
    figure.update_xaxes(visible=False, range=[-0.25, len(axes) - 0.65])
    figure.update_yaxes(visible=False, range=[-0.2, 1.28])
    return figure.update_layout(margin={"l": 24, "r": 24, "t": 48, "b": 24})


def _line(trial: Trial, axes: Sequence[Axis], shown: Shown) -> go.Scatter:
    heights = [_height(trial, axis) for axis in axes[:-1]]
    found = score(trial, shown.objective)
    end = axes[-1].at(found.value) if found else NO_SCORE
    best = trial.number == shown.best
    dash = {"diverged": "dash", "failed": "dot"}.get(trial.state, "solid")
    line = {"color": colour(end) if found else BAD, "width": 4.5 if best else 1.8, "dash": dash}
    return go.Scatter(
        x=list(range(len(axes))), y=[*heights, end], mode="lines", line=line, showlegend=False,
        hovertext=about(trial, shown), hoverinfo="text", opacity=1 if best else 0.8,
    )  # fmt: skip


def _height(trial: Trial, axis: Axis) -> float:
    if axis.name not in trial.point:
        return OUT_OF_PLAY
    # Options would hide each other's lines: each trial passes beside the middle of its cell.
    aside = ((trial.number * 7) % 11 - 5) * 0.014 if axis.options else 0.0
    return axis.at(trial.point[axis.name]) + aside


def _posts(figure: go.Figure, axes: Sequence[Axis], trials: Sequence[Trial]) -> None:
    """The axes: a line each, its name above, its values beside it."""
    for place, axis in enumerate(axes):
        score_axis = place == len(axes) - 1
        figure.add_shape(type="line", x0=place, x1=place, y0=0, y1=1, layer="below",
                         line={"color": INK if score_axis else LINE, "width": 1.5})  # fmt: skip
        labels = axis.ticks()
        if not score_axis and any(axis.name not in trial.point for trial in trials):
            labels = [*labels, (OUT_OF_PLAY, "not in play")]
        if score_axis and any(t.state in ("diverged", "failed") for t in trials):
            labels = [*labels, (NO_SCORE, "no score")]
        for height, label in labels:
            figure.add_annotation(
                x=place, y=height, text=plain(label), showarrow=False, xanchor="right", xshift=-5,
                font={"size": 11, "color": DIM}, bgcolor="rgba(255,255,255,0.9)", borderpad=1,
            )  # fmt: skip
        name = plain(axis.name).replace(" / ", "<br>/ ")
        figure.add_annotation(x=place, y=1.19, text=name, showarrow=False, yanchor="bottom",
                              font={"size": 12, "color": INK})  # fmt: skip


def importance_bars(found: Importance) -> go.Figure | None:
    """Each setting's share of the variance of the scores. None where it is not known."""
    if not found.shares:
        return None
    names = list(found.shares)[::-1]
    means = [100 * found.shares[name][0] for name in names]
    spreads = [100 * found.shares[name][1] for name in names]
    figure = go.Figure()
    figure.add_bar(
        x=means, y=[plain(name) for name in names], orientation="h", hoverinfo="text",
        hovertext=[f"{plain(n)}: {m:.0f} ± {s:.0f} %"
                   for n, m, s in zip(names, means, spreads, strict=True)],
        marker={"color": "#7fb3d8"}, width=0.6,
        error_x={"type": "data", "array": spreads, "color": INK, "thickness": 1.5, "width": 5,
                 "symmetric": False, "arrayminus": [min(m, s) for m, s in
                                                    zip(means, spreads, strict=True)]},
    )  # fmt: skip
    figure.update_xaxes(title="share of the variance of the scores, in percent", range=[0, 105])
    figure.update_yaxes(ticks="")
    styled(figure, height=120 + 40 * len(names))
    return figure.update_layout(margin={"t": 16})


def against_settings(shown: Shown) -> go.Figure | None:
    """The score against each setting, a small figure each. None before a trial has a score."""
    trials = [trial for trial in shown.trials if trial.ended]
    if not any(score(t, shown.objective) for t in trials) or not shown.dimensions:
        return None
    axes, up = [shown.axis(d) for d in shown.dimensions], shown.score_scale(shown.objective)
    rows = -(-len(axes) // COLUMNS)
    figure = make_subplots(rows=rows, cols=COLUMNS, shared_yaxes=True, horizontal_spacing=0.035,
                           vertical_spacing=min(0.3, 110 / (rows * 280)))  # fmt: skip
    for number, axis in enumerate(axes):
        where = {"row": number // COLUMNS + 1, "col": number % COLUMNS + 1}
        for trace in _scatter(trials, axis, up, shown, legend=number == 0):
            figure.add_trace(trace, row=where["row"], col=where["col"])
        figure.update_xaxes(ruled(axis, title=axis.name), row=where["row"], col=where["col"])
    figure.update_yaxes(ruled(up))
    figure.update_yaxes(range=[-0.06, 1.18])
    figure.update_yaxes(title=OBJECTIVES[shown.objective], col=1)
    return styled(figure, height=90 + 270 * rows)


def _scatter(
    trials: Sequence[Trial], axis: Axis, up: Axis, shown: Shown, *, legend: bool
) -> list[go.Scatter]:
    """The trials of each kind as points; those without a score at the upper edge."""
    looks = {
        "complete": {"symbol": "circle", "color": BEST_FEW[0], "size": 8},
        "stopped": {"symbol": "circle-open", "color": BEST_FEW[0], "size": 8},
        "diverged": {"symbol": "x", "color": BAD, "size": 8},
        "failed": {"symbol": "triangle-down", "color": BAD, "size": 9},
    }
    traces = []
    for state, marker in looks.items():
        kind = [t for t in trials if t.state == state and axis.name in t.point]
        if not kind and not (legend and any(t.state == state for t in trials)):
            continue
        found = [score(t, shown.objective) for t in kind]
        traces.append(go.Scatter(
            x=[_height(t, axis) for t in kind], y=[up.at(s.value) if s else 1.1 for s in found],
            mode="markers", name=state,
            marker={**marker, "line": {"width": 1.5, "color": marker["color"]}},
            legendgroup=state, showlegend=legend, hoverinfo="text",
            hovertext=[about(t, shown) for t in kind],
        ))  # fmt: skip
    return traces
