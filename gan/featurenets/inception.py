"""The Inception-v3 of the Fréchet inception distance, as ported from TensorFlow's graph of 2015.

Szegedy et al., "Rethinking the Inception architecture for computer vision" (2016), figures 5 to 7
and 10, with what the graph of Heusel et al. (2017) does differently: average pools leave the
padding out of the mean, the very last block pools by the maximum, and there are 1,008 classes.
Parameters are named as in the file that pytorch-fid publishes, so that it loads as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gan.features import Extractor, Photographs, extractor_sha256

RECIPE = "inception 1"  # of the architecture and preprocessing below
# Of pt_inception-2015-12-05-6726825d.pth as pytorch-fid and torch-fidelity publish it.
OFFICIAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES = 2048
CLASSES = 1008
INPUT_PX = 299


class Conv(NamedTuple):
    """One convolution of a branch; with a stride it is not padded."""

    outputs: int
    kernel: int | tuple[int, int]
    stride: int = 1


Fork = tuple[Conv, Conv]  # two convolutions of the same input, their outputs joined
Branches = Mapping[str, Sequence[Conv | Fork]]
ROW, COLUMN = (1, 7), (7, 1)


def inception(network: Inception, shape: tuple[int, ...], *, weights_sha256: str) -> Extractor:
    """The extractor that `network` makes for images of `shape` (1 or 3, s, s).

    They are resized to 299 px as pytorch-fid does it. Frechet distances on its features are FID
    with the official weights only.
    """
    photographs = Photographs(network.eval().fused(), size_px=INPUT_PX, filter="bilinear")
    return Extractor(
        "inception",
        extractor_sha256(RECIPE, weights_sha256=weights_sha256),
        FEATURES,
        photographs,
        shape,
        resize=photographs.resize_of(shape),
        fid=weights_sha256 == OFFICIAL_SHA256,
    )


class Inception(nn.Module):
    """Images (n, 3, 299, 299) in [-1, 1] to features (n, 2048) or logits (n, 1008)."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2, padding=0)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, padding=0)
        self.Mixed_5b = _mixed_35px(192, pooled=32)
        self.Mixed_5c = _mixed_35px(256, pooled=64)
        self.Mixed_5d = _mixed_35px(288, pooled=64)
        self.Mixed_6a = Mixed(
            288,
            {
                "branch3x3": [Conv(384, 3, 2)],
                "branch3x3dbl": [Conv(64, 1), Conv(96, 3), Conv(96, 3, 2)],
            },
        )
        self.Mixed_6b = _mixed_17px(128)
        self.Mixed_6c = _mixed_17px(160)
        self.Mixed_6d = _mixed_17px(160)
        self.Mixed_6e = _mixed_17px(192)
        self.Mixed_7a = Mixed(
            768,
            {
                "branch3x3": [Conv(192, 1), Conv(320, 3, 2)],
                "branch7x7x3": [Conv(192, 1), Conv(192, ROW), Conv(192, COLUMN), Conv(192, 3, 2)],
            },
        )
        self.Mixed_7b = _mixed_8px(1280, pool="mean")
        self.Mixed_7c = _mixed_8px(2048, pool="max")
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
        """The last block's output, averaged over the picture (the graph's pool_3)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))

    def logits(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits of the graph's classes, as the Inception score uses them."""
        return self.fc(self(x))

    def fused(self) -> Inception:
        """The same map for evaluation, each normalization folded into the convolution before
        it.
        """
        for module in self.modules():
            if isinstance(module, Unit):
                module.fuse()
        return self


class Unit(nn.Module):
    """Convolution, normalization, ReLU; padded to keep the size, where not told otherwise."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | None = None,
    ):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        pads = (height // 2, width // 2) if padding is None else (padding, padding)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, pads, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        return F.relu(self.bn(self.conv(x)))

    def fuse(self) -> None:
        """Folds the normalization into the convolution."""
        assert isinstance(self.bn, nn.BatchNorm2d)
        self.conv, self.bn = fuse_conv_bn_eval(self.conv, self.bn), nn.Identity()


class Mixed(nn.Module):
    """Branches side by side, their outputs joined, with a pool as the last branch.

    `branches` are chains by name; a chain of one convolution bears the branch's name, the links of
    a longer one are numbered from 1, the two of a fork lettered. `pooled` is the number of
    channels that the pool is projected to; without it the block halves the picture.
    """

    def __init__(
        self,
        width: int,
        branches: Branches,
        *,
        pooled: int | None = None,
        pool: str = "mean",
    ):
        super().__init__()
        self.pool = pool if pooled else "halve"
        self.chains: list[list[tuple[str, ...]]] = []
        for branch, chain in branches.items():
            inputs, links = width, []
            for number, link in enumerate(chain, start=1):
                stem = branch if len(chain) == 1 else f"{branch}_{number}"
                convs = _named(stem, link)
                for name, conv in convs:
                    padding = 0 if conv.stride > 1 else None
                    unit = Unit(
                        inputs, conv.outputs, conv.kernel, stride=conv.stride, padding=padding
                    )
                    self.add_module(name, unit)
                links.append(tuple(name for name, _ in convs))
                inputs = sum(conv.outputs for _, conv in convs)
            self.chains.append(links)
        if pooled:
            self.branch_pool = Unit(width, pooled, 1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        return torch.cat([*(self._along(chain, x) for chain in self.chains), self._pooled(x)], 1)

    def _along(self, chain: Iterable[tuple[str, ...]], x: Tensor) -> Tensor:
        for names in chain:
            outputs = [self.get_submodule(name)(x) for name in names]
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "halve":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "max":
            return self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))
        means = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return self.branch_pool(means)


def _named(stem: str, link: Conv | Fork) -> list[tuple[str, Conv]]:
    if isinstance(link, Conv):
        return [(stem, link)]
    return [(f"{stem}{letter}", conv) for letter, conv in zip("ab", link, strict=True)]


def _mixed_35px(width: int, *, pooled: int) -> Mixed:
    branches: Branches = {
        "branch1x1": [Conv(64, 1)],
        "branch5x5": [Conv(48, 1), Conv(64, 5)],
        "branch3x3dbl": [Conv(64, 1), Conv(96, 3), Conv(96, 3)],
    }
    return Mixed(width, branches, pooled=pooled)


def _mixed_17px(inner: int) -> Mixed:
    branches: Branches = {
        "branch1x1": [Conv(192, 1)],
        "branch7x7": [Conv(inner, 1), Conv(inner, ROW), Conv(192, COLUMN)],
        "branch7x7dbl": [
            Conv(inner, 1),
            Conv(inner, COLUMN),
            Conv(inner, ROW),
            Conv(inner, COLUMN),
            Conv(192, ROW),
        ],
    }
    return Mixed(768, branches, pooled=192)


def _mixed_8px(width: int, *, pool: str) -> Mixed:
    fork: Fork = (Conv(384, (1, 3)), Conv(384, (3, 1)))
    branches: Branches = {
        "branch1x1": [Conv(320, 1)],
        "branch3x3": [Conv(384, 1), fork],
        "branch3x3dbl": [Conv(448, 1), Conv(384, 3), fork],
    }
    return Mixed(width, branches, pooled=192, pool=pool)
