"""Doubling and halving of feature maps through a small binomial filter, on any device."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Maps = Float[Tensor, "n c h w"]
Resized = Float[Tensor, "n c _h _w"]


class Filter(nn.Module):
    """A low-pass filter of `taps` along both axes, channel by channel; zeros lie outside the map.

    (1, 2, 1) interpolates linearly; (1, 3, 3, 1) is what StyleGAN2 uses (Karras et al. 2020,
    CVPR, section 2 and Zhang 2019 on why features are filtered before they are thinned out).
    Convolutions, not `F.interpolate`, whose gradient on a GPU sums in an order of its own.
    """

    kernel: Tensor

    def __init__(self, *taps: float):
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.register_buffer("kernel", torch.outer(line, line)[None, None], persistent=False)
        self.odd = len(taps) % 2

    def halved(self, x: Maps) -> Float[Tensor, "n c h//2 w//2"]:
        """Half the height and width, which are even."""
        return self._convolved(x, padding=1, stride=2)

    def doubled(self, x: Maps) -> Float[Tensor, "n c 2*h 2*w"]:
        """Twice the height and width."""
        channels = x.shape[1]
        kernel = (4 * self.kernel).to(x.dtype).expand(channels, -1, -1, -1)
        return F.conv_transpose2d(
            x, kernel, stride=2, padding=1, output_padding=self.odd, groups=channels
        )

    def smoothed(self, x: Maps, *, padding: int, gain: float = 1.0) -> Resized:
        """The filter alone, between zeros of `padding` on each side."""
        return self._convolved(x, padding=padding, stride=1, gain=gain)

    def _convolved(self, x: Maps, *, padding: int, stride: int, gain: float = 1.0) -> Resized:
        channels = x.shape[1]
        kernel = (gain * self.kernel).to(x.dtype).expand(channels, -1, -1, -1)
        return F.conv2d(x, kernel, padding=padding, stride=stride, groups=channels)
