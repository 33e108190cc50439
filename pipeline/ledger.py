"""A search's folder: what is searched, and a record of every trial; the truth after any crash.

runs/<search>/search.json             the base experiment with its [search], the data's digest
runs/<search>/trials/<number>.json    one trial: its point, its state and why, its readings
runs/<search>/runs/<search>-<number>/ the trial's run, as pipeline.run has it
runs/<search>/result.json             written once the search is complete
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["waiting", "running", "complete", "stopped", "diverged", "failed"]
ENDED = ("complete", "stopped", "diverged", "failed")


@dataclass(frozen=True, slots=True)
class Reading:
    """One evaluation of a trial: what is minimized, by objective, with the standard errors.

    `fd` is bias-corrected; `diversity` is |log| of the spread over the reals', 0 at best.
    """

    nimg: int
    values: dict[str, float]
    errors: dict[str, float]


@dataclass(slots=True, kw_only=True)
class Trial:
    """One trial. With PBT one member's life in one generation; it continues `parent`'s weights."""

    number: int
    run: str  # the run's name
    point: dict[str, Any]  # what was drawn
    settings: dict[str, Any]  # what it decides, by dotted name
    origin: str  # "the file's own", "given", "random", "tpe", "kept", "cloned and changed", ...
    generation: int = 0
    member: int | None = None  # pbt
    parent: int | None = None  # the trial whose weights it began with
    from_nimg: int = 0
    until_nimg: int
    state: State = "waiting"
    reason: str = ""  # why it was stopped, diverged or failed
    readings: list[Reading] = field(default_factory=list)
    nimg: int = 0  # how far it came
    device_sec: float = 0.0  # spent playing, all workers together
    mlflow_url: str = ""

    @property
    def spent_nimg(self) -> int:
        """Images that D saw in this trial itself."""
        return max(0, self.nimg - self.from_nimg)

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.state in ENDED
