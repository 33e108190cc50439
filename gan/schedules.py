"""Values that move with the images seen: schedules and steps; imports no torch."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from gan.rules import check


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A value that moves with the images seen: from `start` to `end` over `over_kimg`, then
    constant.

    `over_kimg` left out means the whole run. Cosine is half a period: flat at both ends.
    """

    shape: Literal["linear", "cosine"] = "cosine"
    start: float
    end: float
    over_kimg: float | None = None

    def __post_init__(self) -> None:
        check(
            (
                math.isfinite(self.start) and math.isfinite(self.end),
                f"start and end must be finite, got {self.start} and {self.end}",
            ),
            (
                self.over_kimg is None or self.over_kimg > 0,
                f"over_kimg must be > 0, got {self.over_kimg}",
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """A value that changes at given times: value i holds from `at_kimg[i]` on, to the image.

    A round is played with the values of its start, so a game that stops at `nimg` and goes on with
    another value is, bit for bit, the game with a step at `nimg / 1000`.
    """

    at_kimg: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        at, values = list(self.at_kimg), list(self.values)
        check(
            (at[:1] == [0], f"at_kimg must begin with 0, got {at}"),
            (
                all(map(math.isfinite, at)) and all(a < b for a, b in pairwise(at)),
                f"at_kimg must be finite and increase, got {at}",
            ),
            (all(map(math.isfinite, values)), f"values must be finite, got {values}"),
            (
                len(at) == len(values),
                f"values must be as many as at_kimg, got {len(values)} for {len(at)}",
            ),
        )
        # Lists and whole numbers, too, make the equal object with the equal digest.
        object.__setattr__(self, "at_kimg", tuple(map(float, at)))
        object.__setattr__(self, "values", tuple(map(float, values)))


def value_at(setting: float | Schedule | Steps, nimg: int, *, total_nimg: int) -> float:
    """The value of a setting after `nimg` images of a run of `total_nimg` images."""
    if isinstance(setting, Steps):
        # Rounded, since 10.048 kimg times 1000 is no whole number of images in floating point.
        begins = [round(kimg * 1000) for kimg in setting.at_kimg]
        return setting.values[bisect_right(begins, nimg) - 1]
    if not isinstance(setting, Schedule):
        return setting
    span = total_nimg if setting.over_kimg is None else setting.over_kimg * 1000
    progress = min(nimg / span, 1.0)
    if setting.shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return setting.start + (setting.end - setting.start) * progress


def bounds(setting: float | Schedule | Steps) -> tuple[float, float]:
    """The least and the largest value that a setting ever has."""
    if isinstance(setting, Schedule):
        return min(setting.start, setting.end), max(setting.start, setting.end)
    if isinstance(setting, Steps):
        return min(setting.values), max(setting.values)
    return setting, setting


def shown(setting: float | Schedule | Steps) -> str:
    """A setting in the words of an error."""
    if isinstance(setting, Schedule):
        return f"{setting.start} to {setting.end}"
    if isinstance(setting, Steps):
        return ", ".join(map(str, setting.values))
    return str(setting)


def is_whole(setting: int | Steps) -> bool:
    """Whether every value of a count is a whole number."""
    return not isinstance(setting, Steps) or all(value.is_integer() for value in setting.values)


def not_negative(name: str, setting: float | Schedule | Steps) -> tuple[bool, str]:
    """The rule that a setting is at least 0 and finite at all times, for `gan.rules.check`."""
    low, high = bounds(setting)
    return (
        low >= 0 and high < math.inf,
        f"{name} must be >= 0 and finite, got {shown(setting)}",
    )
