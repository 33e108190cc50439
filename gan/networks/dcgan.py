"""The DCGAN family (Radford et al. 2016): strided 4x4 convolutions between 4x4 and the image's
size.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from gan.config import DiscriminatorConfig, GeneratorConfig
from gan.networks.parts import LEAK, LabelledLatent, channels_last, he_normal, normalization
from gan.widths import dcgan_channels


class Generator(nn.Module):
    """Latent to image: a linear map to 4x4, then a transposed convolution per doubling; tanh at
    the end.
    """

    def __init__(self, config: GeneratorConfig, shape: tuple[int, ...], *, num_classes: int):
        super().__init__()
        out_channels, size, _ = shape
        self.latent = LabelledLatent(config.latent_dim, num_classes=num_classes)
        self.first_channels = dcgan_channels(4, size=size, width=config.width)
        name = config.norm or "group"
        bias = name == "none"  # a normalization's own shift makes another one redundant
        self.to_4x4 = nn.Linear(self.latent.out_dim, self.first_channels * 16, bias=bias)
        he_normal(self.to_4x4, fan_in=2 * self.latent.out_dim)
        self.to_4x4_norm = normalization(name, self.first_channels)
        self.ups = nn.ModuleList()
        self.norms = nn.ModuleList()
        channels, resolution = self.first_channels, 8
        while resolution < size:
            wider = dcgan_channels(resolution, size=size, width=config.width)
            self.ups.append(nn.ConvTranspose2d(channels, wider, 4, 2, 1, bias=bias))
            he_normal(self.ups[-1], fan_in=4 * channels)
            self.norms.append(normalization(name, wider))
            channels, resolution = wider, resolution * 2
        self.to_image = nn.ConvTranspose2d(channels, out_channels, 4, 2, 1)
        he_normal(self.to_image, fan_in=8 * channels)

    def forward(
        self, z: Float[Tensor, "n z"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n c s s"]:
        x = channels_last(self.to_4x4(self.latent(z, labels)).view(-1, self.first_channels, 4, 4))
        x = F.relu(self.to_4x4_norm(x))
        for up, norm in zip(self.ups, self.norms, strict=True):
            x = F.relu(norm(up(x)))
        return self.to_image(x).tanh()


class Discriminator(nn.Module):
    """Image to logit: a strided convolution per halving down to 4x4, then linear."""

    def __init__(
        self,
        config: DiscriminatorConfig,
        shape: tuple[int, ...],
        *,
        head: Callable[[int], nn.Module],
    ):
        super().__init__()
        in_channels, size, _ = shape
        self.downs = nn.ModuleList()
        self.norms = nn.ModuleList()
        channels, resolution = in_channels, size // 2
        while resolution >= 4:
            wider = dcgan_channels(resolution, size=size, width=config.width)
            # The paper leaves D's first layer free; a spectral norm is of the weights.
            norm = config.norm if self.downs and config.norm != "spectral" else None
            norm = norm or "none"
            self.downs.append(nn.Conv2d(channels, wider, 4, 2, 1, bias=norm == "none"))
            he_normal(
                self.downs[-1], fan_in=16 * channels, slope=LEAK if resolution < size // 2 else 1
            )
            self.norms.append(normalization(norm, wider))
            channels, resolution = wider, resolution // 2
        self.head = head(channels * 16)

    def forward(
        self, images: Float[Tensor, "n c s s"], labels: Int64[Tensor, " n"] | None
    ) -> Float[Tensor, "n *scores"]:
        x = images
        for index, (down, norm) in enumerate(zip(self.downs, self.norms, strict=True)):
            x = norm(down(F.leaky_relu(x, LEAK) if index else x))
        # The head's gradient comes in its own layout, so the last activation is in that one too.
        return self.head(F.leaky_relu(x.flatten(1), LEAK), labels)
