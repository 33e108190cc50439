"""Feature extractors by name: Forger's own, those of installed packages, those trained on a data
set of one's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from gan.config import ConfigError
from gan.featurenets import efficientnet_lite0 as lite0_net
from gan.featurenets import inception as inception_net
from gan.features import (
    PIXELS_RECIPE,
    POOLED_PX,
    Classifier,
    Extractor,
    classifier_sha256,
    extractor_sha256,
    pixels,
)
from pipeline.experiment import EvaluateConfig
from pipeline.extractor_names import (
    BUILT_IN,
    LITE0_PACKAGE,
    LITE0_REMEDY,
    SHIPPED,
    check_trained,
    local_path,
    origin,
    plugins,
)
from pipeline.extractor_plugins import described, plugin_extractor
from pipeline.folder import Folder
from pipeline.trained_extractor import load_trained, read_card
from pipeline.weights import load_strictly, package_file, read_weights, tensors

LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INCEPTION_REMEDY = (
    "set evaluate.weights to the file or URI of pt_inception-2015-12-05-6726825d.pth"
)


def load_extractor(
    name: str,
    shape: tuple[int, ...],
    *,
    weights: str | None = None,
    sha256: str | None = None,
) -> Extractor:
    """The extractor called `name` for samples of `shape`.

    'pixels' needs no weights; 'digits' ships with Forger; 'lite0' takes its weights from the extra
    `lite0`; 'inception' and the extractors of installed packages take theirs from `weights`,
    a file or URI whose checksum is `sha256` (the official one, where left out for 'inception');
    anything else is the folder that `forger extractor train` made.

    A package registers its own as an entry point of the group forger.extractors: a name, and a
    function without arguments that returns an nn.Module from float images (n, c, h, w) in [-1, 1]
    to features (n, d). Names are looked up among installed packages only, because experiment files
    and model cards come from storage and must not be able to name arbitrary code.

    Raises ConfigError where there is none of that name, its weights are missing or not those
    stated, or it was made for other samples.
    """
    if name == "inception":
        return _inception(shape, weights, sha256 or inception_net.OFFICIAL_SHA256)
    if name not in BUILT_IN and (point := plugins().get(name)) is not None:
        return plugin_extractor(point, shape, weights=weights, sha256=sha256)
    if weights is not None or sha256 is not None:
        raise ConfigError(
            [
                "evaluate.weights is for 'inception' and for extractors of installed packages; "
                f"leave it out for {name!r}, which has its own"
            ]
        )
    if name == "pixels":
        return pixels(shape)
    if name == "lite0":
        return _lite0(shape)
    if name in SHIPPED:
        return load_trained(shipped(name), shape)
    return load_trained(_folder(name), shape, taken=BUILT_IN)


def configured_extractor(evaluate: EvaluateConfig, shape: tuple[int, ...]) -> Extractor:
    """The extractor that an experiment names, for samples of `shape`. Raises ConfigError."""
    return load_extractor(
        evaluate.extractor, shape, weights=evaluate.weights, sha256=evaluate.weights_sha256
    )


def absolute_name(name: str) -> str:
    """`name` as it is understood from any folder: workers run in one of Ray's."""
    if name in BUILT_IN or name in plugins():
        return name
    return str(Path(name).expanduser().resolve())


def absolute_weights(weights: str | None) -> str | None:
    """`weights` as they are understood from any folder."""
    if weights is None or "://" in weights:
        return weights
    return str(local_path(weights))


@dataclass(frozen=True, slots=True)
class Known:
    """An extractor that has a name here."""

    name: str
    dim: int | None  # None where only its package knows
    sha256: str | None  # None where it depends on weights that the experiment names
    lacks: str  # what to do before it can be used; empty where nothing is missing


def known_extractors() -> list[Known]:
    """Forger's own extractors, then those of installed packages."""
    official = inception_net.OFFICIAL_SHA256
    lite0 = extractor_sha256(lite0_net.RECIPE, weights_sha256=LITE0_SHA256)
    inception = extractor_sha256(inception_net.RECIPE, weights_sha256=official)
    return [
        Known("pixels", 3 * POOLED_PX**2, extractor_sha256(PIXELS_RECIPE), ""),
        *(
            Known(
                name, Classifier.FEATURES, classifier_sha256(read_card(shipped(name)).sha256), ""
            )
            for name in SHIPPED
        ),
        Known("lite0", lite0_net.FEATURES, lite0, "" if _lite0_file() else LITE0_REMEDY),
        Known("inception", inception_net.FEATURES, inception, INCEPTION_REMEDY),
        *(
            Known(name, None, None, f"of {origin(point)}; set evaluate.weights where it has any")
            for name, point in plugins().items()
            if name not in BUILT_IN
        ),
    ]


def shipped(name: str) -> Folder:
    """Where the trained extractor `name` of Forger's own is."""
    return Folder(str(files("pipeline") / "embedded" / f"extractor-{name}"))


def _folder(name: str) -> Folder:
    check_trained(name)
    return Folder(name)


def _lite0(shape: tuple[int, ...]) -> Extractor:
    _check_pictures("lite0", shape)
    path = _lite0_file()
    if path is None:
        raise ConfigError([f"evaluate.extractor = 'lite0' needs its weights: {LITE0_REMEDY}"])
    network, source = lite0_net.EfficientNetLite0(), str(path)
    data = read_weights(source, sha256=LITE0_SHA256)
    load_strictly(network, tensors(data, source=source), source=source)
    return lite0_net.lite0(network, shape, weights_sha256=LITE0_SHA256)


def _lite0_file() -> Path | None:
    return package_file(LITE0_PACKAGE, LITE0_FILE)


def _inception(shape: tuple[int, ...], weights: str | None, sha256: str) -> Extractor:
    _check_pictures("inception", shape)
    if weights is None:
        raise ConfigError(
            [f"evaluate.extractor = 'inception' has no weights of its own: {INCEPTION_REMEDY}"]
        )
    network = inception_net.Inception()
    data = read_weights(weights, sha256=sha256)
    load_strictly(network, tensors(data, source=weights), source=weights)
    return inception_net.inception(network, shape, weights_sha256=sha256)


def _check_pictures(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigError(
            [
                f"evaluate.extractor = {name!r} looks at grey or colour images, the data has "
                f"samples of {described(shape)}; choose 'pixels'"
            ]
        )
