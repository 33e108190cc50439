"""Both players, G's average and the optimizers as flat named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gan.config import PlayerConfig
from gan.optimizers import recalled, remembered


class Saved:
    """What of `modules` (by name) and `optimizers` (by the name of the module that each moves) a
    game's future depends on: 'G/layer.weight', 'G_optimizer/layer.weight/exp_avg'.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, tuple[torch.optim.Optimizer, PlayerConfig]],
    ):
        self._modules, self._optimizers = modules, optimizers

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors themselves, not copies."""
        state = {
            f"{name}/{key}": value
            for name, module in self._modules.items()
            for key, value in module.state_dict().items()
        }
        for player, (optimizer, _) in self._optimizers.items():
            for name, parameter in self._modules[player].named_parameters():
                for key, value in optimizer.state.get(parameter, {}).items():
                    state[f"{player}_optimizer/{name}/{key}"] = value
        return state

    def keys(self, *, stepped: Mapping[str, bool]) -> set[str]:
        """The names that a state must have, by which of the optimizers have taken a step."""
        of_modules = {
            f"{name}/{key}"
            for name, module in self._modules.items()
            for key in module.state_dict()
        }
        return of_modules | {
            f"{player}_optimizer/{name}/{key}"
            for player, (_, config) in self._optimizers.items()
            if stepped[player]
            for name, _ in self._modules[player].named_parameters()
            for key in remembered(config)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up a state of these `keys`. Raises ValueError for a tensor of another shape."""
        for name, module in self._modules.items():
            try:
                module.load_state_dict(_below(f"{name}/", state))
            except RuntimeError as error:
                raise ValueError(f"the saved game does not fit this one: {error}") from error
        for player, (optimizer, _) in self._optimizers.items():
            for name, parameter in self._modules[player].named_parameters():
                saved = _below(f"{player}_optimizer/{name}/", state)
                optimizer.state[parameter] = recalled(parameter, saved)


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
