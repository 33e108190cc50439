"""Stateless uniform draws for a search: (seed, stream, indices) names every one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pipeline.experiment import Experiment
from pipeline.space import Space


def uniform(seed: int, stream: str, *index: int | str) -> float:
    """A number in [0, 1), the same for the same arguments and independent of all others.

    53 bits of BLAKE2b, not a library's generator: a search that is resumed years later, with other
    versions, draws the same. NumPy promises that of RandomState only (NEP 19), Python of
    random() alone.
    """
    name = "/".join(map(str, (seed, stream, *index))).encode()
    return (int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 11) / 2**53


def one_of(items: Sequence[Any], seed: int, stream: str, *index: int | str) -> Any:
    """One of these, all as likely."""
    return items[int(uniform(seed, stream, *index) * len(items))]


def random_point(space: Space, base: Experiment, seed: int, number: int) -> dict[str, Any]:
    """Point `number` of random search: the same whatever became of the other points.

    A setting's draws depend on its name, so a setting that joins the space leaves them alone.
    """
    return space.point(base, [uniform(seed, "point", number, d.name) for d in space.dimensions])
