"""How every figure of a search's page looks: its canvas, colours, marks and hover texts."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.colors import sample_colorscale
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from pipeline.ledger import Trial
from pipeline.search_shown import Axis, Shown, plus_minus, score, short

INK, DIM, LINE, GRID, FAINT = "#1c2126", "#667079", "#c9d0d6", "#eceff2", "#b4bcc4"
BAD = "#D55E00"  # Okabe and Ito's vermilion: apart from all of the scale, for every eye
BEST_FEW = ("#0072B2", "#009E73", "#CC79A7")  # theirs too
# Viridis without the yellow that is lost on paper.
VIRIDIS = sample_colorscale("Viridis", [0.88 * i / 8 for i in range(9)])
SCALE = [[i / 8, ink] for i, ink in enumerate(VIRIDIS)]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
ENDS = {"diverged": "x", "failed": "triangle-down", "stopped": "line-ns"}


def library() -> Markup:
    """plotly.js itself, to be put on the page once."""
    return Markup(get_plotlyjs())


def drawn(figure: go.Figure, name: str) -> Markup:
    """The figure as HTML, for a page that has the library."""
    settings = {  # plotly's bar of buttons has one that uploads the figure
        "displayModeBar": False, "plotlyServerURL": "", "responsive": True}  # fmt: skip
    height = f"{figure['layout']['height']}px"
    return Markup(
        to_html(figure, include_plotlyjs=False, full_html=False, div_id=name, config=settings,
                default_height=height)
    )  # fmt: skip


def styled(figure: go.Figure, *, height: int) -> go.Figure:
    """The figure in the page's look: white, thin lines, the legend above, texts that are read."""
    figure.update_layout(
        template="none", height=height, paper_bgcolor="#fff", plot_bgcolor="#fff",
        font={"family": FONT, "size": 13, "color": INK},
        margin={"l": 70, "r": 24, "t": 48, "b": 56},
        hovermode="closest",
        hoverlabel={"align": "left", "bgcolor": "#fff", "bordercolor": LINE,
                    "font": {"family": FONT, "color": INK, "size": 12}},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom",
                "font": {"size": 12}},
    )  # fmt: skip
    axis = {"showline": True, "linecolor": LINE, "gridcolor": GRID, "zeroline": False,
            "ticks": "outside", "tickcolor": LINE, "ticklen": 4, "automargin": True,
            "tickfont": {"color": DIM, "size": 12},
            "title": {"standoff": 10, "font": {"size": 13}}}  # fmt: skip
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    return figure


def ruled(axis: Axis, *, title: str = "") -> dict:
    """An axis of plotly on which positions from 0 to 1 carry the labels of real values."""
    ticks = axis.ticks()
    return {
        "range": [-0.04, 1.06],
        "tickvals": [position for position, _ in ticks],
        "ticktext": [plain(label) for _, label in ticks],
        "title": {"text": plain(title), "standoff": 10},
    }


def plain(text: str) -> str:
    """A text that plotly, which reads some HTML, shows as it is."""
    return html.escape(text, quote=False)


def about(trial: Trial, shown: Shown) -> str:
    """A trial's number, state, score and settings, for hovering."""
    lines = [f"<b>trial {trial.number}</b>, {trial.state}"]
    if trial.member is not None:
        lines[0] += f" (member {trial.member}, generation {trial.generation})"
    for objective in shown.config.objectives:
        if found := score(trial, objective):
            lines.append(f"best {objective} {plus_minus(found.value, found.error)}")
    lines += [f"{plain(name)} = {plain(short(value))}" for name, value in trial.point.items()]
    return "<br>".join(lines)


def colour(position: float) -> str:
    """The colour of a score at this position of its axis; dark is good."""
    return str(sample_colorscale(SCALE, [min(max(position, 0.0), 1.0)])[0])


def colour_bar(axis: Axis, *, title: str) -> go.Scatter:
    """A trace without points that shows which colour is which score."""
    ticks = axis.ticks()
    bar = {"title": {"text": title, "side": "right", "font": {"size": 12}}, "thickness": 12,
           "outlinewidth": 0, "tickvals": [p for p, _ in ticks], "len": 0.9,
           "ticktext": [label for _, label in ticks],
           "tickfont": {"color": DIM, "size": 11}}  # fmt: skip
    return go.Scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"colorscale": SCALE, "cmin": 0, "cmax": 1, "color": [0], "colorbar": bar},
    )  # fmt: skip


def joined(lines: Sequence[Sequence], gap: object = None) -> list:
    """Several lines as one, with gaps between them."""
    return [value for line in lines for value in (*line, gap)]
