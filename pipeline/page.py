"""One self-contained HTML page of an evaluation or a decision: opens offline, loads nothing."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined

TEMPLATE = "verdict.html"
LEFT, RIGHT = 8, 192  # of an interval's drawing, in the template's units


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval and its limit as positions along a drawing."""

    value: float
    low: float
    high: float
    limit: float | None


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One check as it is shown."""

    name: str
    state: str  # passed, failed or open
    sentence: str
    bar: Bar | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first column is text, the others are numbers already formatted."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG and what it shows."""

    caption: str
    png: bytes

    @property
    def base64(self) -> str:
        """For a data URI."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Everything that a page shows, from the top down."""

    title: str
    outcome: str = ""
    summary: Sequence[str]
    checks: Sequence[CheckRow] = ()
    grids: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    neighbours: Sequence[Picture] = ()
    neighbours_note: str = ""
    record: Sequence[tuple[str, str]] = field(default_factory=list)


def render(page: Page) -> str:
    """The page as HTML; every text in it is escaped."""
    environment = Environment(
        loader=PackageLoader("pipeline", "pages"), autoescape=True, undefined=StrictUndefined
    )
    shown = {name: getattr(page, name) for name in Page.__slots__}
    return environment.get_template(TEMPLATE).render(shown)


def bar(value: float, low: float | None, high: float | None, limit: float | None) -> Bar | None:
    """The drawing of an interval, scaled so that it and its limit are seen whole.

    An open end is drawn to the edge. None where there is nothing to draw.
    """
    if not math.isfinite(value):
        return None
    known = [x for x in (value, low, high, limit) if x is not None and math.isfinite(x)]
    least, most = min(known), max(known)
    margin = 0.15 * (most - least) or 1.0

    def at(x: float) -> float:
        share = (x - least + margin) / (most - least + 2 * margin)
        return round(LEFT + (RIGHT - LEFT) * min(max(share, 0.0), 1.0), 1)

    return Bar(
        value=at(value),
        low=at(-math.inf if low is None else low),
        high=at(math.inf if high is None else high),
        limit=None if limit is None or not math.isfinite(limit) else at(limit),
    )
