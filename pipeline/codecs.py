"""Single images to encoded bytes and back: PNG and lossless WebP bit for bit, JPEG nearly."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},  # the fast search
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
LOSSLESS = ("raw", "png", "webp")


def encode(image: np.ndarray, encoding: str) -> bytes:
    """The bytes of a uint8 image (h, w, 1 or 3)."""
    file = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(
        file, **OPTIONS[encoding]
    )
    return file.getvalue()


def decode(data: bytes, *, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 image (h, w, c) in encoded bytes.

    Raises OSError or ValueError where they are broken or hold another shape.
    """
    with Image.open(io.BytesIO(data)) as image:
        height, width, channels = shape
        if image.size != (width, height):  # known from the header, before anything is decoded
            raise ValueError(f"{image.width} x {image.height} px instead of {width} x {height}")
        return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(shape)


def decode_all(images: list[bytes], *, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 images (n, h, w, c) of one shard. Raises as `decode` does."""
    pixels = np.empty((len(images), *shape), np.uint8)
    for row, data in enumerate(images):
        pixels[row] = decode(data, shape=shape)
    return pixels
