"""Population based training: who continues whose weights, with which settings; pure decisions.

Jaderberg et al. 2017 (arXiv 1711.09846): truncation selection, then every copied setting is
perturbed or drawn anew. All randomness is named by (seed, generation, member), so that the same
readings give the same family tree, killed or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gan.config import ConfigError
from pipeline.draws import one_of, random_point, uniform
from pipeline.experiment import Experiment
from pipeline.space import Dimension, Space

TRUNCATED = 4  # the worst 1/4 copy members of the best 1/4
MARGIN = 2.0  # combined standard errors by which a member must be worse before it is replaced
RESAMPLED = 0.25  # probability that a setting is drawn from its whole dimension
FACTORS = (0.8, 1.2)  # else it is changed by one of these


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One member at the end of a generation."""

    number: int
    point: Mapping[str, Any]
    score: float | None  # smaller is better; None where it diverged or failed
    error: float = 0.0  # the score's standard error


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """How a member goes on into the next generation."""

    member: int
    parent: int  # the member whose weights it continues
    point: dict[str, Any]
    origin: Literal["kept", "cloned and changed"]


def initial_population(
    space: Space, base: Experiment, *, seed: int, size: int
) -> list[dict[str, Any]]:
    """The points of the first generation: member 0 is the file's own, the rest are random."""
    return [
        space.point_of(base) if number == 0 else random_point(space, base, seed, number)
        for number in range(size)
    ]


def next_generation(
    members: Sequence[Member], space: Space, *, seed: int, generation: int
) -> list[Move]:
    """What each member does in generation number `generation`, in the order of `members`.

    A member of the worst quarter (one at least) copies a random one of the best quarter where it
    is worse than that one by more than 2 combined errors; one that diverged always does. The
    copied settings are then changed. All others are kept as they are.

    Raises ConfigError where no member is left.
    """
    ranking = sorted(members, key=lambda m: (math.inf if m.score is None else m.score, m.number))
    alive = [member for member in ranking if member.score is not None]
    if not alive:
        raise ConfigError(
            [
                f"search.space must hold settings that a game survives, but all {len(members)} "
                f"members of generation {generation - 1} diverged or failed; narrow its ranges"
            ]
        )
    quarter = max(1, len(members) // TRUNCATED)
    best = alive[:quarter]
    worst = {m.number for m in ranking[-quarter:]} - {m.number for m in best}
    moves = []
    for member in members:
        parent = one_of(best, seed, "parent", generation, member.number)
        clones = member.score is None or (member.number in worst and _is_worse(member, parent))
        if clones:
            point = _explored(parent.point, space, seed, generation, member.number)
        else:
            parent, point = member, dict(member.point)
        moves.append(
            Move(
                member=member.number,
                parent=parent.number,
                point=point,
                origin="cloned and changed" if clones else "kept",
            )
        )
    return moves


def _explored(
    point: Mapping[str, Any], space: Space, seed: int, generation: int, member: int
) -> dict[str, Any]:
    """A parent's point with every setting changed or drawn anew (the paper's explore).

    A setting that the parent has no value for stays the file's: its value there cannot be drawn,
    so there is nothing to change by a factor, and it is drawn anew with the others' probability.
    """
    changed = {}
    for dimension in space.dimensions:
        name, index = dimension.name, (generation, member, dimension.name)
        if uniform(seed, "resample", *index) < RESAMPLED:
            changed[name] = dimension.at(uniform(seed, "value", *index))
        elif name in point:
            up = uniform(seed, "direction", *index) < 0.5
            changed[name] = _stepped(dimension, point[name], up=up)
    return changed


def _stepped(dimension: Dimension, value: Any, *, up: bool) -> Any:
    """A value times 1.2 or 0.8 within its range; the next option of a choice, if there is one.

    Whole numbers change by one at least. 0 is changed by drawing anew only.
    """
    if dimension.kind == "choice":
        place = int(dimension.unit(value) * len(dimension.options)) + (1 if up else -1)
        return dimension.options[min(max(place, 0), len(dimension.options) - 1)]
    changed = value * FACTORS[up]
    if dimension.kind == "int":
        step = max(1, abs(round(changed) - value))
        changed = value + (step if up else -step)
        return int(min(max(changed, dimension.low), dimension.high))
    return float(min(max(changed, dimension.low), dimension.high))


def _is_worse(one: Member, other: Member) -> bool:
    """Whether a member's score is worse than another's by more than the noise of both."""
    assert one.score is not None
    assert other.score is not None
    return one.score - other.score > MARGIN * math.hypot(one.error, other.error)
