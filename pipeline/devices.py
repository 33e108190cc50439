"""The device of a process that Ray gave none: a GPU that it sees, or the CPU."""

from __future__ import annotations

from typing import Literal

import torch


def device_here(wanted: str = "auto") -> Literal["cpu", "cuda"]:
    """The GPU, but where the CPU is `wanted` or torch sees no GPU; `wanted` is an experiment's
    cluster.device.
    """
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
