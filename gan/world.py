"""Who plays along: this process's rank, and which slice of the global batch is its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class World:
    """The group of processes that play one game together."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The default process group's world, or a world of one where there is no group."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that speaks to storage."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's contiguous share of `count` items; shares differ by one item at most."""
        small, larger = divmod(count, self.size)
        start = self.rank * small + min(self.rank, larger)
        return slice(start, start + small + (self.rank < larger))

    def copy_from_first(self, values: Iterable[Tensor]) -> None:
        """Gives every rank rank 0's values, in place. Every rank must call this."""
        if self.size > 1:
            for value in values:
                dist.broadcast(value, 0)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks, in place. Every rank must call this."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def sum_number(self, value: float) -> float:
        """The sum of a number over all ranks. Every rank must call this."""
        if self.size == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return self.sum(torch.tensor(value, dtype=torch.float64, device=device)).item()

    def sum_with_gradient(self, values: Tensor) -> Tensor:
        """The sum over all ranks, through which gradients flow to every rank's part.

        A gradient here is of the sum of all ranks' losses, so the backward pass adds up over ranks
        too. Every rank must call this, and go backward through it.
        """
        return _Sum.apply(values) if self.size > 1 else values  # pyright: ignore[reportReturnType]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return World.current().sum(values.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return World.current().sum(gradients[0].contiguous().clone())
