"""The registered model's code, as MLflow runs it: rows of (seed, label, truncation) to images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from pipeline.snapshot import read_snapshot
from pipeline.storage import Folder


class ServedGenerator(PythonModel):
    """Draws images from a registered generator."""

    def load_context(self, context: Any) -> None:
        """Reads the weights, checked against their sha256."""
        bundle = Path(context.artifacts["generator"])
        self.snapshot = read_snapshot(Folder(bundle.parent), bundle.name)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        """A NumPy array of uint8 images (n, h, w, c), one for each row.

        The columns `label` and `truncation` may be left out or empty.
        """
        rows = model_input.reset_index(drop=True)
        labels = None
        if "label" in rows and bool(rows["label"].notna().any()):
            labels = [None if pd.isna(value) else int(value) for value in rows["label"]]
        truncation = 1.0
        if "truncation" in rows:
            truncation = [1.0 if pd.isna(value) else float(value) for value in rows["truncation"]]
        seeds = [int(value) for value in rows["seed"]]
        images = self.snapshot.images(seeds, labels=labels, truncation=truncation)
        return images.permute(0, 2, 3, 1).contiguous().numpy()


set_model(ServedGenerator())
