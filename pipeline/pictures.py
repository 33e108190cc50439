"""Images to PNG bytes."""

from __future__ import annotations

import io
import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gan.sampling import grid

CARD_PX, CARD_COLUMNS = (480, 240), 44
MIN_CELL_PX = 48  # smaller images are enlarged by a whole factor, so that a person can see them


def png(pixels: np.ndarray) -> bytes:
    """uint8 (h, w, c) with 1 or 3 channels as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def grid_png(images: Tensor, *, columns: int | None = None) -> bytes:
    """uint8 images (n, c, h, w) side by side as a PNG, pixels enlarged where they are few."""
    factor = max(1, MIN_CELL_PX // images.shape[-1])
    large = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return png(grid(large, columns=columns))


def points_png(points: Tensor, *, size_px: int = 480) -> bytes:
    """Points (n, 2) as black dots on white, the plane's origin in the middle, as a PNG."""
    reach = float(points.abs().max()) * 1.1 or 1.0
    place = ((points / reach + 1) / 2 * (size_px - 1)).round().long().clamp(0, size_px - 1)
    page = np.full((size_px, size_px, 1), 255, np.uint8)
    page[size_px - 1 - place[:, 1].numpy(), place[:, 0].numpy()] = 0
    return png(page)


def card_png(text: str) -> bytes:
    """A sentence or two on a plain card, for where pictures are looked through, as a PNG."""
    lines = textwrap.fill(text, CARD_COLUMNS)
    card = Image.new("RGB", CARD_PX, "white")
    draw = ImageDraw.Draw(card)
    draw.multiline_text((16, 16), lines, fill="black", font=ImageFont.load_default(18))
    buffer = io.BytesIO()
    card.save(buffer, "PNG")
    return buffer.getvalue()


def neighbours_png(forged: Tensor, nearest: Tensor) -> bytes:
    """Forged images (n, c, h, w) in one row, and below each its `nearest` (n, k, c, h, w)."""
    rows = torch.cat([forged[:, None], nearest], dim=1).transpose(0, 1)
    return grid_png(rows.flatten(0, 1), columns=len(forged))
