"""What some of a source's images tell before the work: the size and the channels that nobody
said.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping

from gan.config import MLP_MAX_VALUES, ConfigError, is_playable
from pipeline.fitting import Filter, Fit, Fitting, decode, is_grey, size_of
from pipeline.sources.source import BadImage, Source

log = logging.getLogger(__name__)

LOOKED_AT = 64  # images, or up to twice as many
BORDER_PX = 4  # that a size may lack of a playable one, as MNIST's 28 do of 32
LISTED = 6  # sizes that a refusal names
ADVISED_PX = 256  # at most

Sizes = Mapping[tuple[int, int], int]  # how many images are so wide and high


def fitting_of(
    images: Source,
    *,
    size_px: int | None,
    channels: int | None,
    fit: Fit | None,
    filter: Filter,
    linear: bool,
) -> Fitting:
    """How images are fitted; what is not given is taken from some of them, spread evenly.

    Raises ConfigError where none of them can be read, and without `size_px` where they have
    several sizes or one that no network plays; up to a narrow border, they are padded to the next.
    """
    sizes, colour = _looked_at(images, colours=channels is None, all_sizes=size_px is None)
    padded = False
    if size_px is None:
        size_px = _size(images, sizes, fit)
        padded = (size_px, size_px) not in sizes
    fitting = Fitting(
        size_px=size_px,
        channels=channels or (3 if colour else 1),
        fit=fit or ("pad" if padded else "crop"),
        filter=filter,
        linear=linear,
    )
    if not is_playable(size_px):
        mlp = fitting.channels * size_px**2 <= MLP_MAX_VALUES
        log.warning(
            "%s plays images of %d px: 'mlp' plays those of up to %d values, all others 8, 16, "
            "32, ... px",
            "only network = 'mlp'" if mlp else "no network",
            size_px,
            MLP_MAX_VALUES,
        )
    return fitting


def _looked_at(images: Source, *, colours: bool, all_sizes: bool) -> tuple[Sizes, bool]:
    """Sizes of some images, one where not `all_sizes`, and whether any has colour. Headers do,
    once what is asked for is known.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    colour, reason = not colours, ""
    for number in range(0, len(images), max(1, len(images) // LOOKED_AT)):
        try:
            data = images.load(number)
            if colour and sizes:
                sizes[size_of(data)] += 1
                continue
            picture = decode(data)
        except (BadImage, OSError) as error:
            reason = f"{images.key(number)}: {error}"
            continue
        sizes[picture.size] += 1
        colour = colour or not is_grey(picture)
        if colour and not all_sizes:
            break
    if not sizes:
        raise ConfigError([f"none of the {images.name} images can be read; one is {reason}"])
    return sizes, colour


def _size(images: Source, sizes: Sizes, fit: Fit | None) -> int:
    """The playable size of images that all have it, or nearly. Raises ConfigError."""
    if len(sizes) == 1:
        ((width, height),) = sizes
        playable = 8
        while playable < width:
            playable *= 2
        missing = playable - width
        if width == height and (not missing or (missing <= BORDER_PX and fit != "exact")):
            return playable
    shortest = min(min(size) for size in sizes)
    advised = 2 ** int(math.log2(min(max(shortest, 8), ADVISED_PX)))
    seen = sorted(sizes.items(), key=lambda one: (-one[1], one[0]))
    listed = ", ".join(f"{w} x {h} ({count})" for (w, h), count in seen[:LISTED])
    more = f" and {len(seen) - LISTED} other sizes" if len(seen) > LISTED else ""
    raise ConfigError(
        [
            f"--size must be given unless all images have one size that networks play, which is "
            f"8 x 8, 16 x 16, 32 x 32, ... (mlp plays others too), got {listed}{more} in "
            f"{sum(sizes.values())} of {len(images)} images; say --size {advised}, and --fit "
            f"where the middle square is not what you want"
        ]
    )
