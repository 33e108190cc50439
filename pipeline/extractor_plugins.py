"""Feature extractors that installed packages bring, as entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import torch
from torch import nn

from gan.config import ConfigError
from gan.features import Extractor, extractor_sha256
from pipeline.extractor_names import origin
from pipeline.weights import load_strictly, read_weights, sha256_of, tensors


def plugin_extractor(
    point: EntryPoint, shape: tuple[int, ...], *, weights: str | None, sha256: str | None
) -> Extractor:
    """The extractor of an entry point, with `weights` in it, for samples of `shape`.

    Its checksum covers the package's version and the weights. Raises ConfigError where it cannot
    be made, or does not map such samples to features (n, d).
    """
    what = f"evaluate.extractor = {point.name!r} ({origin(point)})"
    try:
        module = point.load()()
    except Exception as error:  # it is somebody else's code: whatever it raises
        raise ConfigError([f"{what} cannot be made: {type(error).__name__}: {error}"]) from error
    if not isinstance(module, nn.Module):
        raise ConfigError([f"{what} must be an nn.Module, got {type(module).__name__}"])
    if (weights is not None) != bool(module.state_dict()):
        rule = "has no parameters; leave out" if weights else "has parameters; name their file as"
        raise ConfigError([f"{what} {rule} evaluate.weights"])
    checksum = ""
    if weights is not None:
        data = read_weights(weights, sha256=sha256)
        load_strictly(module, tensors(data, source=weights), source=weights)
        checksum = sha256_of(data)
    recipe = f"plug-in {point.name} {origin(point)}"
    digest = extractor_sha256(recipe, weights_sha256=checksum)
    dim = _probed_dim(module.eval(), shape, what=what)
    return Extractor(point.name, digest, dim, module, shape)


@torch.no_grad()
def _probed_dim(module: nn.Module, shape: tuple[int, ...], *, what: str) -> int:
    """How many features the module gives of two empty samples."""
    try:
        features = module(torch.zeros(2, *shape))
    except Exception as error:
        raise ConfigError([f"{what} fails on samples of {described(shape)}: {error}"]) from error
    if features.ndim != 2 or len(features) != 2 or not features.is_floating_point():
        raise ConfigError(
            [
                f"{what} must give float features (n, d) of n samples of {described(shape)}, got "
                f"{tuple(features.shape)} of {features.dtype} for n = 2"
            ]
        )
    return features.shape[1]


def described(shape: tuple[int, ...]) -> str:
    """(3, 32, 32) as '3 x 32 x 32'."""
    return " x ".join(map(str, shape))
