"""What makes two games one: their settings, without those that came later and change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from gan.config import GameConfig

# Came after the first runs. Where they are as they were then, they are no part of an identity, so
# that those runs go on.
LATER = (
    *(
        f"{player}.{setting}"
        for player in ("generator", "discriminator")
        for setting in ("optimizer", "weight_decay", "max_grad_norm")
    ),
    "generator.style_mixing",
    "generator.discrete_codes",
    "generator.continuous_codes",
    "objective.info_weight",
    "objective.path_length_weight",
    "objective.path_length_interval",
    "objective.gp_lambda",
    "objective.gp_target",
    "objective.penalty_method",
    "objective.penalty_sigma",
    "objective.weight_clip",
    "conditioning.auxiliary_weight",
    "turns.compile",
    "turns.reuse_fakes",
    "augment.policies",
    "augment.probability",
    "augment.target",
    "augment.adapt_kimg",
)


def as_at_first(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of nested plain values, without those of `LATER` that are as they were before
    they came: two games of one such record are one.
    """
    settings = dict(leaves(values))
    first = dict(leaves(dataclasses.asdict(GameConfig())))
    for key in LATER:
        if settings.get(key) == first[key]:
            settings.pop(key)
    return settings


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting of nested plain values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
