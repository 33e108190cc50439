"""Makes huggingface.parquet and huggingface.arrow; needs `pip install datasets pillow`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from datasets import (  # pyright: ignore[reportMissingImports]
    ClassLabel,
    Dataset,
    Features,
    Image,
    Value,
)
from PIL import Image as Picture

here = Path(sys.argv[1])
names = ["red", "green", "blue"]
rows = {"image": [], "label": [], "note": []}
for number in range(12):
    colour = [0, 0, 0]
    colour[number % 3] = 100 + number
    rows["image"].append(Picture.new("RGB", (8, 8), tuple(colour)))
    rows["label"].append(number % 3)
    rows["note"].append(f"number {number}")
features = Features({"image": Image(), "label": ClassLabel(names=names), "note": Value("string")})
made = Dataset.from_dict(rows, features=features)
made.to_parquet(here / "huggingface.parquet")
made.save_to_disk(here / "saved")
shutil.copy(here / "saved" / "data-00000-of-00001.arrow", here / "huggingface.arrow")
shutil.rmtree(here / "saved")
