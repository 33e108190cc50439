"""The registered model's own code, as MLflow runs it: requests to images.

`pipeline.bundle` puts it into one file with all that it imports from gan/ and pipeline/.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gan.config import ConfigError
from gan.sampling import MAX_SEED
from pipeline.card import CARD, TENSORS
from pipeline.manifest import check_files
from pipeline.pictures import png
from pipeline.snapshot import load_snapshot

MAX_IMAGES = 256  # of one request


class Request(BaseModel):
    """`n` images, of the seeds seed, seed + 1, ...; without a label each seed picks its class."""

    model_config = ConfigDict(extra="forbid")

    n: int = Field(1, ge=1, le=MAX_IMAGES)
    seed: int = Field(0, ge=0, le=MAX_SEED)
    label: int | None = None
    truncation: float = Field(1.0, ge=0, le=1)

    @classmethod
    def model_validate(cls, *args: Any, **kwargs: Any) -> Request:
        """As ever, but what is wrong is said in one line: MLflow would add the fields' classes."""
        try:
            return super().model_validate(*args, **kwargs)
        except ValidationError as error:
            said = (
                f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}, got {wrong['input']!r}"
                for wrong in error.errors()
            )
            raise MlflowException.invalid_parameter_value("; ".join(said)) from None


class Drawn(BaseModel):
    """One image: its seed, its class where the generator knows classes, and a PNG in base64."""

    seed: int
    label: int | None = None
    png: str

    @property
    def pixels(self) -> np.ndarray:
        """The image as uint8 (h, w, c), with 1 or 3 channels."""
        with Image.open(io.BytesIO(base64.b64decode(self.png))) as picture:
            pixels = np.asarray(picture)
        return pixels.reshape(*pixels.shape[:2], -1)


class ServedGenerator(PythonModel):
    """Draws images from a registered generator."""

    def load_context(self, context: Any) -> None:
        """Reads the generator, every file checked against the manifest. Raises ConfigError."""
        bundle = Path(context.artifacts["generator"])
        check_files(bundle)
        card, weights = ((bundle / name).read_bytes() for name in (CARD, TENSORS))
        self.snapshot = load_snapshot(card, weights, where=str(bundle))

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model_input: list[Request]
    ) -> list[list[Drawn]]:
        """A list of images for each request, in their order.

        Raises MlflowException (HTTP 400) for a label or a seed that there is not.
        """
        try:
            return [self._drawn(request) for request in model_input]
        except ConfigError as error:
            raise MlflowException.invalid_parameter_value("; ".join(error.mistakes)) from None

    def _drawn(self, request: Request) -> list[Drawn]:
        seeds = range(request.seed, request.seed + request.n)
        asked = None if request.label is None else [request.label] * request.n
        images = self.snapshot.images(seeds, labels=asked, truncation=request.truncation)
        shown = self.snapshot.labels(seeds, labels=asked) or [None] * request.n
        pages = images.permute(0, 2, 3, 1).numpy()
        return [
            Drawn(seed=seed, label=label, png=base64.b64encode(png(pixels)).decode())
            for seed, label, pixels in zip(seeds, shown, pages, strict=True)
        ]


set_model(ServedGenerator())
