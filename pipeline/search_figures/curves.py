"""Figures of scores over images: learning curves, the best so far, the front, the finals."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from pipeline.ledger import Reading, Trial
from pipeline.search_figures.look import (
    BAD,
    BEST_FEW,
    DIM,
    ENDS,
    FAINT,
    INK,
    about,
    joined,
    plain,
    ruled,
    styled,
)
from pipeline.search_shown import (
    OBJECTIVES,
    Axis,
    Shown,
    front,
    images,
    plus_minus,
    scale_of,
    score,
)

KIMG = "images that D saw, in thousands"
SMALLER = " (smaller is better)"
OWN = ", the file's own settings"


def learning_curves(shown: Shown) -> go.Figure | None:
    """Every trial's readings; the best few with their errors. None where nothing was read."""
    if not any(shown.readings(trial) for trial in shown.trials):
        return None
    best = shown.ranked[: len(BEST_FEW)]
    if shown.best is not None and shown.best in shown.by_number:
        winner = shown.by_number[shown.best]
        best = [winner, *(t for t in best if t is not winner)][: len(BEST_FEW)]
    lives = {ancestor.number for trial in best for ancestor in shown.ancestry(trial)}
    figure = go.Figure()
    _others(figure, shown, lives)
    for trial, ink in reversed([*zip(best, BEST_FEW, strict=False)]):
        _one_of_the_best(figure, shown, trial, ink)
    if shown.own is not None and shown.own not in best:
        _own_settings(figure, shown, shown.own)
    _ends(figure, shown)
    figure.update_yaxes(ruled(shown.scale(shown.objective), title=_title(shown.objective)))
    figure.update_yaxes(range=[-0.04, 1.1])
    figure.update_xaxes(title=KIMG, rangemode="tozero")
    return styled(figure, height=500)


def _title(objective: str) -> str:
    return OBJECTIVES[objective] + SMALLER


def _life(trial: Trial, shown: Shown, *, whole: bool) -> list[Reading]:
    """A trial's readings after its ancestors' ones, all or only the last that it goes on from."""
    own = shown.readings(trial)
    *before, _ = shown.ancestry(trial)
    earlier = [reading for ancestor in before for reading in shown.readings(ancestor)]
    return (earlier if whole else earlier[-1:]) + own


def _heights(readings: Sequence[Reading], shown: Shown, *, errors: float = 0.0) -> list[float]:
    """Positions of values, so many standard errors up."""
    axis, objective = shown.scale(shown.objective), shown.objective
    return [axis.at(r.values[objective] + errors * r.errors.get(objective, 0)) for r in readings]


def _kimg(readings: Sequence[Reading]) -> list[float]:
    return [reading.nimg / 1000 for reading in readings]


def _told(trial: Trial, readings: Sequence[Reading], shown: Shown) -> list[str]:
    """What hovering over each reading says."""
    objective, who = shown.objective, about(trial, shown)
    return [
        f"{who}<br>here {plus_minus(r.values[objective], r.errors.get(objective, 0))} "
        f"after {images(r.nimg)} images"
        for r in readings
    ]


def _others(figure: go.Figure, shown: Shown, lives: set[int]) -> None:
    others = [t for t in shown.trials if t.number not in lives and t.readings]
    curves = [_life(trial, shown, whole=False) for trial in others]
    if not others:
        return
    told = [_told(t, curve, shown) for t, curve in zip(others, curves, strict=True)]
    figure.add_scatter(
        x=joined([_kimg(curve) for curve in curves]),
        y=joined([_heights(curve, shown) for curve in curves]),
        hovertext=joined(told, ""), hoverinfo="text", mode="lines+markers", name="other trials",
        line={"color": FAINT, "width": 1.2}, marker={"size": 3},
    )  # fmt: skip


def _one_of_the_best(figure: go.Figure, shown: Shown, trial: Trial, ink: str) -> None:
    curve = _life(trial, shown, whole=True)
    x = _kimg(curve)
    up, down = _heights(curve, shown, errors=1), _heights(curve, shown, errors=-1)
    name = f"trial {trial.number}" + (OWN if trial is shown.own else "")
    winner = trial.number == shown.best
    figure.add_scatter(
        x=x + x[::-1], y=up + down[::-1], fill="toself", fillcolor=ink, opacity=0.22, mode="none",
        hoverinfo="skip", showlegend=False, legendgroup=name,
    )  # fmt: skip
    figure.add_scatter(
        x=x, y=_heights(curve, shown), hovertext=_told(trial, curve, shown), hoverinfo="text",
        mode="lines+markers", name=name + (", the best" if winner else ""), legendgroup=name,
        line={"color": ink, "width": 3 if winner else 2}, marker={"size": 6 if winner else 5},
    )  # fmt: skip


def _own_settings(figure: go.Figure, shown: Shown, own: Trial) -> None:
    curve = _life(own, shown, whole=False)
    figure.add_scatter(
        x=_kimg(curve), y=_heights(curve, shown), hovertext=_told(own, curve, shown),
        hoverinfo="text", mode="lines", name=f"trial 0{OWN}",
        line={"color": INK, "width": 2, "dash": "dash"},
    )  # fmt: skip


def _ends(figure: go.Figure, shown: Shown) -> None:
    """A mark where a trial was stopped, diverged or failed; above all where it read nothing."""
    for state, symbol in ENDS.items():
        ended = [trial for trial in shown.trials if trial.state == state]
        if not ended:
            continue
        heights = []
        for trial in ended:
            last = shown.readings(trial)[-1:] if state != "diverged" else []
            heights += _heights(last, shown) or [1.04]
        ink = DIM if state == "stopped" else BAD
        figure.add_scatter(
            x=[trial.nimg / 1000 for trial in ended], y=heights, mode="markers", name=state,
            hovertext=[f"{about(t, shown)}<br>{plain(t.reason)}" for t in ended],
            hoverinfo="text",
            marker={"symbol": symbol, "size": 10, "color": ink,
                    "line": {"width": 2, "color": ink}},
        )  # fmt: skip


def best_so_far(shown: Shown) -> go.Figure | None:
    """The smallest reading over the images that all trials together spent. None without any."""
    spent, points = 0, []
    for trial in shown.trials:
        if trial.state not in ("diverged", "failed"):
            points += [(spent + r.nimg - trial.from_nimg, r, trial) for r in
                       shown.readings(trial)]  # fmt: skip
        spent += trial.spent_nimg
    if not points:
        return None
    axis, objective = shown.scale(shown.objective), shown.objective
    steps, least = [], float("inf")
    for at, reading, trial in points:
        if reading.values[objective] < least:
            least = reading.values[objective]
            steps.append((at, least, trial))
    figure = go.Figure()
    figure.add_scatter(
        x=[at / 1000 for at, _, _ in points],
        y=[axis.at(reading.values[objective]) for _, reading, _ in points],
        mode="markers", marker={"size": 4, "color": FAINT}, name="every evaluation",
        hovertext=[_told(trial, [reading], shown)[0] for _, reading, trial in points],
        hoverinfo="text",
    )  # fmt: skip
    figure.add_scatter(
        x=[at / 1000 for at, _, _ in steps] + [spent / 1000],
        y=[axis.at(value) for _, value, _ in steps] + [axis.at(least)],
        mode="lines", line={"shape": "hv", "color": BEST_FEW[0], "width": 3},
        name="best so far", hoverinfo="text",
        hovertext=[about(trial, shown) for _, _, trial in steps] + [""],
    )  # fmt: skip
    own = score(shown.own, objective) if shown.own else None
    if own:
        figure.add_scatter(
            x=[0, spent / 1000], y=[axis.at(own.value)] * 2, mode="lines", hoverinfo="skip",
            line={"color": INK, "width": 1.5, "dash": "dash"},
            name=f"the file's own settings, after {images(own.nimg)} images",
        )  # fmt: skip
    figure.update_yaxes(ruled(axis, title=_title(objective)))
    figure.update_xaxes(
        title="images spent by all trials together, in thousands", rangemode="tozero"
    )
    return styled(figure, height=400)


def pareto(shown: Shown) -> go.Figure | None:
    """Both objectives of every trial, and the front that none beats. None without two scores."""
    if len(shown.config.objectives) < 2 or not (best := front(shown)):
        return None
    first, second = shown.config.objectives
    figure = go.Figure()
    edge = [trial.number for trial in best]
    beaten = [t for t in shown.ranked if t.number not in edge and score(t, second, by=first)]
    for trials, ink, name in ((beaten, FAINT, "beaten in both"), (best, BEST_FEW[0], "the front")):
        _crosses(figure, shown, trials, ink, name)
    for objective, update in ((first, figure.update_xaxes), (second, figure.update_yaxes)):
        update(ruled(_wide(shown, objective), title=_title(objective)))
    return styled(figure, height=460)


def _wide(shown: Shown, objective: str) -> Axis:
    """The axis of the scores with their errors."""
    first = shown.objective
    found = [s for trial in shown.trials if (s := score(trial, objective, by=first))]
    ends = [s.value + sign * s.error for s in found for sign in (-1, 1)]
    return scale_of(objective, ends, shown.floor(objective))


def _crosses(
    figure: go.Figure, shown: Shown, trials: Sequence[Trial], ink: str, name: str
) -> None:
    """Trials as points with both errors; those of the front are joined by steps."""
    places, errors = [], []
    for objective in shown.config.objectives:
        axis = _wide(shown, objective)
        found = [s for trial in trials if (s := score(trial, objective, by=shown.objective))]
        places.append([axis.at(s.value) for s in found])
        errors.append({
            "type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": ink,
            "array": [axis.at(s.value + s.error) - axis.at(s.value) for s in found],
            "arrayminus": [axis.at(s.value) - axis.at(s.value - s.error) for s in found],
        })  # fmt: skip
    on_front = name == "the front"
    figure.add_scatter(
        x=places[0], y=places[1], error_x=errors[0], error_y=errors[1], name=name,
        mode="lines+markers+text" if on_front else "markers", hoverinfo="text",
        hovertext=[about(trial, shown) for trial in trials],
        text=[str(trial.number) for trial in trials], textposition="top right",
        line={"shape": "hv", "color": ink, "width": 2}, marker={"size": 9, "color": ink},
    )  # fmt: skip


def finals(shown: Shown) -> go.Figure | None:
    """The finalists' scores at each set of latents, their means and errors. None without any."""
    if not shown.finalists:
        return None
    rows = list(reversed(shown.finalists))
    names = [f"trial {row.number}" for row in rows]
    figure = go.Figure()
    figure.add_scatter(
        x=[value for row in rows for value in row.values],
        y=[n for n, row in zip(names, rows, strict=True) for _ in row.values],
        mode="markers", name="one set of latents", hoverinfo="x+y",
        marker={"symbol": "circle-open", "size": 9, "color": DIM, "line": {"width": 1.5}},
    )  # fmt: skip
    inks = [BEST_FEW[0] if row.number == shown.best or row.tied else INK for row in rows]
    for row, name, ink in zip(rows, names, inks, strict=True):
        tied = " (tied)" if row.tied else ""
        figure.add_scatter(
            x=[row.mean], y=[name], mode="markers", showlegend=row is rows[-1],
            name="mean ± standard error", hoverinfo="text",
            hovertext=f"{name}: {plus_minus(row.mean, row.error)}{tied}",
            marker={"symbol": "diamond", "size": 11, "color": ink},
            error_x={"type": "data", "array": [row.error], "thickness": 3, "width": 6,
                     "color": ink},
        )  # fmt: skip
    figure.update_xaxes(title=_title(shown.objective))
    figure.update_yaxes(range=[-0.6, len(rows) - 0.4])
    return styled(figure, height=150 + 44 * len(rows))
