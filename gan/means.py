"""Running means of what the game reports: on the device until a tick asks, kept exact over
checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from gan.world import World

PREFIX = "means/"  # of their names in a saved game: means/<rank>/<name>


class Means:
    """Running means of reported scalars; they stay on the device until somebody asks.

    Every rank keeps its own sums, under the same names. Sums are added up in `dtype`, the game's,
    and saved as they are, so that a game stopped within a tick reports what the undisturbed one
    would have reported, to the bit.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self._dtype, self._device = dtype, device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, report: Mapping[str, Tensor], *, count: int) -> None:
        """Adds sums over `count` samples of this rank."""
        for name, value in report.items():
            kept = self._sums.get(name)
            value = value.to(self._dtype)
            self._sums[name] = value if kept is None else kept + value
            self._counts[name] = self._counts.get(name, 0) + count

    def add_shared(self, name: str, value: Tensor, world: World) -> None:
        """Adds one value that all ranks have alike; it counts once, whatever the world size."""
        own = value if world.is_first else torch.zeros_like(value)
        self.add({name: own}, count=int(world.is_first))

    def take(self, world: World) -> dict[str, float]:
        """The means over all ranks since the last call. Every rank must call this."""
        if not self._sums:
            return {}
        names, total = sorted(self._sums), world.sum(self._table())
        self._sums, self._counts = {}, {}
        return dict(zip(names, (total[:, 0] / total[:, 1]).tolist(), strict=True))

    @property
    def finite(self) -> Tensor:
        """Whether every sum of this rank is a finite number; a tensor, so that nothing waits."""
        return self._table().isfinite().all()

    def state_dict(self, world: World) -> dict[str, Tensor]:
        """Of all ranks, by 'means/<rank>/<name>': [sum, count]. Every rank must call this."""
        if not self._sums:
            return {}
        own = self._table()
        tables = [torch.empty_like(own) for _ in range(world.size)]
        if world.size > 1:
            dist.all_gather(tables, own)
        else:
            tables = [own]
        return {
            f"{PREFIX}{rank}/{name}": row
            for rank, table in enumerate(tables)
            for name, row in zip(sorted(self._sums), table, strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Tensor], world: World) -> None:
        """Continues the means of a saved game; none where it has none.

        As many ranks as before take up their own. With another number rank 0 takes the sum of all,
        the others begin at zero of nothing. Raises ValueError where ranks differ in their names.
        """
        ranks = _by_rank(state)
        if len(ranks) == world.size:
            own = ranks[world.rank]
        else:
            names = ranks[0] if ranks else {}
            own = {name: torch.stack([rank[name] for rank in ranks]).sum(0) for name in names}
            if not world.is_first:
                own = {name: torch.zeros_like(row) for name, row in own.items()}
        self._sums = {
            name: row[0].to(self._device, self._dtype, copy=True) for name, row in own.items()
        }
        self._counts = {name: int(row[1]) for name, row in own.items()}

    def _table(self) -> Tensor:
        """Rows of [sum, count] by sorted name; float64 holds both exactly."""
        if not self._sums:
            return torch.zeros(0, 2, dtype=torch.float64, device=self._device)
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names]).double()
        counts = torch.tensor([self._counts[name] for name in names]).to(sums)
        return torch.stack([sums, counts], dim=1)


def _by_rank(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The [sum, count] of each rank by name."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, row in state.items():
        if key.startswith(PREFIX):
            rank, _, name = key.removeprefix(PREFIX).partition("/")
            if not rank.isdecimal() or row.shape != (2,):
                raise ValueError(f"{key} is no mean of a saved game")
            found.setdefault(int(rank), {})[name] = row
    ranks = [found.get(rank, {}) for rank in range(len(found))]
    if any(rank.keys() != ranks[0].keys() for rank in ranks):
        raise ValueError("the saved means differ in their names from rank to rank")
    return ranks
