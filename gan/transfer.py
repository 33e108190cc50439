"""What the CPU drew or read, on its way to the device."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`values`, of the CPU, on `device`: the host does not wait until what it asked for before is
    computed there, as it would for a copy from pageable memory. Nobody may write to them after.
    """
    values = values.to(dtype or values.dtype)  # a copy that converts would be through such memory
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
