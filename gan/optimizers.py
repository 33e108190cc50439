"""How a player steps: its optimizer by name, its rates of this turn, and what it remembers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gan.config import PlayerConfig


def build_optimizer(player: nn.Module, config: PlayerConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names; `set_rates` gives it the rates of each turn."""
    # Adam refuses an integer 0; the rates are placeholders.
    parameters, beta1 = list(player.parameters()), float(config.beta1)
    # One kernel for each parameter on CPUs, where "foreach" is still one operation after another.
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    way = {"fused": True} if on_cpu else {"foreach": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=1.0, momentum=beta1, **way)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=1.0, momentum=beta1, eps=1e-8, foreach=True)
    how = {"lr": 1.0, "betas": (beta1, 0.0), "eps": 1e-8, **way}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, weight_decay=config.weight_decay, **how)
    return torch.optim.Adam(parameters, **how)


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, beta2: float) -> None:
    """The learning rate and the weight of the past in the mean square, for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if "betas" in group:
            group["betas"] = (group["betas"][0], beta2)
        elif "alpha" in group:
            group["alpha"] = beta2


def remembered(config: PlayerConfig) -> tuple[str, ...]:
    """The names of what the optimizer keeps for each parameter that has taken a step."""
    momentum = ("momentum_buffer",) if config.beta1 > 0 else ()
    return {
        "adam": ("step", "exp_avg", "exp_avg_sq"),
        "adamw": ("step", "exp_avg", "exp_avg_sq"),
        "rmsprop": ("step", "square_avg", *momentum),
        "sgd": momentum,
    }[config.optimizer]


def recalled(parameter: Tensor, saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an optimizer keeps for `parameter`, from its saved values."""
    # Steps are counted in a CPU tensor; all else lies in memory as the parameter does.
    return {
        key: value.clone() if key == "step" else torch.empty_like(parameter).copy_(value)
        for key, value in saved.items()
    }
