"""One image as people have it to one as networks take it: decoded, upright, of a stated mode,
fitted by a named filter.

The rules, one a kind of pixel:
  1, L            grey
  P               the colours of its palette
  LA, PA, RGBA    and all else that is see-through: laid on white, as browsers show it
  CMYK, YCbCr     and the like: by Pillow's plain formulas; colour profiles are not applied
  16-bit grey     scaled by 255/65535 and rounded (Pillow's own conversion would clip)
  16-bit colour   the upper 8 bits of files, as Pillow decodes them; arrays are scaled as grey is
  32-bit          integers as 16-bit grey where they are within 0 to 65535; floats are refused
  several frames  the first one
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from pipeline.sources.source import BadImage

Fit = Literal["crop", "letterbox", "stretch", "pad", "exact"]
Filter = Literal["box", "bilinear", "bicubic", "lanczos"]
FITS: tuple[Fit, ...] = get_args(Fit)
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Only these decoders are asked: others start programs (EPS) or draw (WMF).
Image.init()  # else a format is known only once another one was tried in vain
WANTED = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
FORMATS = tuple(name for name in WANTED if name in Image.OPEN)
ORIENTATION = 0x0112  # EXIF's; from 5 on width and height change places
MAX_PIXELS = 64 * 2**20  # of one source image; more is refused from its header
# The tone curve of sRGB (IEC 61966-2-1) at its 256 values.
_CODES = np.arange(256) / 255
TO_LINEAR = np.where(_CODES <= 0.04045, _CODES / 12.92, ((_CODES + 0.055) / 1.055) ** 2.4).astype(
    np.float32
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """How images become square: all that their pixels depend on but the source itself.

    `fit` 'crop' scales the middle square; 'letterbox' scales the whole and puts black bars beside;
    'stretch' scales the whole, whatever its proportions; 'pad' scales nothing and puts a black
    border around; 'exact' takes images of the right size only. `linear` scales light, not sRGB's
    codes.
    """

    size_px: int
    channels: int
    fit: Fit = "crop"
    filter: Filter = "lanczos"
    linear: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One fitted image and what it was before."""

    image: np.ndarray  # uint8 (size, size, channels)
    width: int
    height: int
    mode: str  # Pillow's name
    enlarged: bool
    copy_key: bytes  # equal for images of equal decoded pixels; empty where not asked for


def decode(data: bytes | np.ndarray) -> Image.Image:
    """The picture, decoded and upright. Raises BadImage where it is broken or too large, which its
    header says before memory is taken.
    """
    if isinstance(data, np.ndarray):
        return _of_pixels(data)
    if not data:
        raise BadImage("empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                check_size(image.width, image.height)
                image.load()
                return ImageOps.exif_transpose(image)
    except BadImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadImage(f"more than {MAX_PIXELS} pixels, by its header") from None
    except Image.UnidentifiedImageError:
        raise BadImage(f"not an image ({', '.join(FORMATS)})") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        raise BadImage(f"damaged: {error or type(error).__name__}") from None


def size_of(data: bytes | np.ndarray) -> tuple[int, int]:
    """Width and height of a picture by its header, as `decode` finds them. Raises BadImage."""
    if isinstance(data, np.ndarray):
        return data.shape[1], data.shape[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                check_size(image.width, image.height)
                turned = image.getexif().get(ORIENTATION, 1) >= 5
                return (image.height, image.width) if turned else image.size
    except BadImage:
        raise
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make decoders raise nearly anything
        raise BadImage(f"damaged: {error or type(error).__name__}") from None


def check_size(width: int, height: int) -> None:
    """Raises BadImage where an image of this size is refused."""
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width} x {height} pixels are over {MAX_PIXELS}, by its header")
    if not width * height:
        raise BadImage("no pixels")


def fitted(picture: Image.Image, fitting: Fitting, *, copy_key: bool = False) -> Fitted:
    """The picture as it goes into a shard. Raises BadImage where it does not fit."""
    size = fitting.size_px
    plain = in_channels(picture, fitting.channels)
    width, height = plain.size
    key = b""
    if copy_key:
        key = hashlib.blake2b(
            f"{width} {height} ".encode() + plain.tobytes(), digest_size=16
        ).digest()
    enlarged = False
    box = (0.0, 0.0, float(width), float(height))
    if fitting.fit == "exact" and (width, height) != (size, size):
        raise BadImage(f"{width} x {height}, where --fit exact takes {size} x {size} only")
    if fitting.fit == "pad":
        if max(width, height) > size:
            raise BadImage(
                f"{width} x {height} is larger than {size}, and --fit pad scales nothing"
            )
        plain = _centred(plain, size)
    elif fitting.fit == "letterbox":
        enlarged = max(width, height) < size
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        plain = _centred(_scaled(plain, inner, box, fitting), size)
    elif fitting.fit == "crop":
        side = min(width, height)
        enlarged = side < size
        left, top = (width - side) / 2, (height - side) / 2
        plain = _scaled(plain, (size, size), (left, top, left + side, top + side), fitting)
    elif fitting.fit == "stretch":
        enlarged = min(width, height) < size
        plain = _scaled(plain, (size, size), box, fitting)
    return Fitted(
        image=np.asarray(plain).reshape(size, size, fitting.channels),
        width=width,
        height=height,
        mode=picture.mode,
        enlarged=enlarged,
        copy_key=key,
    )


def is_grey(picture: Image.Image) -> bool:
    """Whether the picture's mode has no colour."""
    return picture.mode in ("1", "L", "LA", "La", "I", "F") or picture.mode.startswith("I;16")


def in_channels(picture: Image.Image, channels: int) -> Image.Image:
    """The picture in mode L (1 channel) or RGB (3), by the rules above. Raises BadImage."""
    if picture.mode == "F":
        raise BadImage("32-bit float pixels, which have no stated range")
    if picture.mode.startswith("I"):
        wide = np.asarray(picture)
        if wide.min() < 0 or wide.max() > 65535:
            raise BadImage("32-bit pixels outside 0 to 65535")
        picture = Image.fromarray(_narrowed(wide))
    elif picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    target = "L" if channels == 1 else "RGB"
    if picture.mode in ("LAB", "HSV") and target == "L":
        picture = picture.convert("RGB")
    return picture if picture.mode == target else picture.convert(target)


def _of_pixels(pixels: np.ndarray) -> Image.Image:
    """A picture of an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of uint8, uint16 or bool."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    check_size(pixels.shape[1], pixels.shape[0])
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif pixels.dtype != np.uint8:
        pixels = _narrowed(pixels)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _narrowed(wide: np.ndarray) -> np.ndarray:
    return (wide.astype(np.float64) * (255 / 65535)).round().astype(np.uint8)


def _centred(picture: Image.Image, size: int) -> Image.Image:
    if picture.size == (size, size):
        return picture
    page = Image.new(picture.mode, (size, size))
    page.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return page


def _scaled(
    picture: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    fitting: Fitting,
) -> Image.Image:
    """The part of the picture within `box`, as large as `size`; untouched where that is all."""
    if picture.size == size:
        return picture
    resampling = FILTERS[fitting.filter]
    if not fitting.linear:
        return picture.resize(size, resampling, box=box)
    light = TO_LINEAR[np.asarray(picture)]
    planes = [light] if light.ndim == 2 else [light[:, :, c] for c in range(light.shape[2])]
    scaled = [
        np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, resampling, box=box))
        for plane in planes
    ]
    codes = [_from_linear(plane) for plane in scaled]
    return Image.fromarray(codes[0] if len(codes) == 1 else np.stack(codes, axis=-1))


def _from_linear(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    codes = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return (codes * 255).round().astype(np.uint8)
