"""The device that a process computes on, where Ray does not say; and the same bits each time."""

from __future__ import annotations

import os
from typing import Literal

import torch


def device_here(wanted: str = "auto") -> Literal["cpu", "cuda"]:
    """The GPU, but where the CPU is `wanted` or torch sees no GPU; `wanted` is an experiment's
    cluster.device.
    """
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def compute_repeatably(device: torch.device | str) -> None:
    """From now on this process computes on a GPU by kernels that give the same bits each time.

    A CPU's always do. An operation that has no such kernel raises RuntimeError; no game, and no
    judgement by `pixels` or `digits`, holds one (`tests/gan/test_any_game.py`, `test_devices.py`).
    """
    if torch.device(device).type == "cpu":
        return
    # cuBLAS looks for it at its first product, and torch refuses products without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # It would take time, and nothing reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore
    torch.use_deterministic_algorithms(True)
