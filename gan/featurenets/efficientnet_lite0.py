"""EfficientNet-Lite0, whose last features before the head see texture, blur and lost modes.

Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks" (2019), in
the variant published for small devices ("EfficientNet-Lite", 2020): no squeeze-and-excitation,
ReLU6 for swish, stem and head of fixed width. Parameters are named as in the public PyTorch
conversion, so that its file loads as it is.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gan.features import Extractor, Photographs, extractor_sha256

RECIPE = "lite0 1"  # of the architecture and preprocessing below; another version is another name
FEATURES = 320
MIN_PX, MAX_PX = 64, 224
STEM, HEAD, CLASSES = 32, 1280, 1000
STAGES = (  # (blocks, kernel, stride of the first, expansion, channels out), table 1 of the paper
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, FEATURES),
)


def lite0(network: EfficientNetLite0, shape: tuple[int, ...], *, weights_sha256: str) -> Extractor:
    """The extractor that `network` makes for images of `shape` (1 or 3, s, s).

    It sees them at their own size, rounded up to a multiple of 32 px, but not below 64 px nor
    above the 224 px that it was trained at. Counted in spreads of the distance, faults of small
    images show up to twice as clearly at 64 px as at 32 px, where the last maps are single pixels;
    128 px is up to twice as clear again, for four times the work. Shrunk photographs lose most of
    it (`python -m tests.bench.extractors sizes`).
    """
    size_px = min(MAX_PX, max(MIN_PX, -(-shape[1] // 32) * 32))
    photographs = Photographs(network.eval().fused(), size_px=size_px, filter="bicubic")
    return Extractor(
        "lite0",
        extractor_sha256(RECIPE, weights_sha256=weights_sha256),
        FEATURES,
        photographs,
        shape,
        resize=photographs.resize_of(shape),
    )


class EfficientNetLite0(nn.Module):
    """Images (n, 3, h, w) in [-1, 1] to features (n, 320) or ImageNet logits (n, 1000)."""

    def __init__(self):
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, stride=2)
        self._bn0 = _norm(STEM)
        blocks, width = [], STEM
        for count, kernel, stride, expansion, out in STAGES:
            for number in range(count):
                first = stride if number == 0 else 1
                blocks.append(Block(width, out, kernel=kernel, stride=first, expansion=expansion))
                width = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(width, HEAD, 1)
        self._bn1 = _norm(HEAD)
        self._fc = nn.Linear(HEAD, CLASSES)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n f"]:
        """The mean over the picture of the last block's output, which is linear in its last
        convolution and smaller than the head's, so that fewer images do for a distance.
        """
        return self._maps(x).mean((2, 3))

    def logits(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits of ImageNet's classes, without dropout."""
        return self._fc(F.relu6(self._bn1(self._conv_head(self._maps(x)))).mean((2, 3)))

    def _maps(self, x: Tensor) -> Tensor:
        x = (x * 127.5 + 0.5) / 128  # the network was trained on (byte - 127) / 128
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return x

    def fused(self) -> EfficientNetLite0:
        """The same map for evaluation, each normalization folded into the convolution before
        it.
        """
        _fuse(self, "_conv_stem", "_bn0")
        _fuse(self, "_conv_head", "_bn1")
        for block in self._blocks:
            if hasattr(block, "_expand_conv"):
                _fuse(block, "_expand_conv", "_bn0")
            _fuse(block, "_depthwise_conv", "_bn1")
            _fuse(block, "_project_conv", "_bn2")
        return self


class Block(nn.Module):
    """An inverted residual: expand, filter each channel, project (Sandler et al. 2018)."""

    def __init__(self, width: int, out: int, *, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = width * expansion
        if expansion > 1:
            self._expand_conv = SameConv(width, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride=stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = SameConv(inner, out, 1)
        self._bn2 = _norm(out)
        self.expands, self.is_residual = expansion > 1, stride == 1 and width == out

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.is_residual else y


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME: the odd pixel goes to the end."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
    ):
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (input.shape[3], input.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:  # then the convolution pads, in one pass
            around = (pads[2], pads[0])
        else:
            input, around = F.pad(input, pads), (0, 0)
        return F.conv2d(input, self.weight, self.bias, stride, around, 1, self.groups)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


def _fuse(module: nn.Module, convolution: str, norm: str) -> None:
    fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
    setattr(module, convolution, fused)
    setattr(module, norm, nn.Identity())
