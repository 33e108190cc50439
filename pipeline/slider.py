"""The slider of a run's pictures in MLflow: one picture a step, however often it is sent."""

from __future__ import annotations

import io
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PICTURES = "samples"
IMAGES = "images"  # MLflow's own folder for what has a slider
FILES = 2  # of a picture: itself, and what shows in the slider
THUMBNAIL_PX = 256


@dataclass(frozen=True, slots=True)
class Picture:
    """What is shown at a step; `data` reads the PNG when it has to be sent, None for one that is
    gone. The step's time is the same at every try.
    """

    step: int
    time_ms: int
    data: Callable[[], bytes | None]


class Slider:
    """The pictures of one MLflow run. `client` is MLflow's, opened elsewhere; `run_id` is the
    run's own id, and makes the files' names.
    """

    def __init__(self, client: Any, mlflow_run_id: str, *, run_id: str):
        self._client, self._mlflow_run_id, self._run_id = client, mlflow_run_id, run_id

    def show(self, pictures: Sequence[Picture]) -> None:
        """Sends the pictures that are not there whole: an upload can break off."""
        if not pictures:
            return
        files = self._client.list_artifacts(self._mlflow_run_id, IMAGES)
        there = Counter(_step_of(Path(file.path).name) for file in files)
        for picture in pictures:
            if there[picture.step] < FILES and (data := picture.data()) is not None:
                self._send(picture, data)
        self._client.set_tag(self._mlflow_run_id, "mlflow.loggedImages", "true")

    def _send(self, picture: Picture, data: bytes) -> None:
        """As MLflow's log_image, which names its two files anew each time: a repeated call would
        double the slider's tick, and one that was left out after the first would show none.
        """
        from PIL import Image

        same = uuid.uuid5(uuid.NAMESPACE_OID, f"{self._run_id} {picture.step}")
        name = f"{PICTURES}+step+{picture.step}+timestamp+{picture.time_ms}+{same}"
        with tempfile.TemporaryDirectory() as folder, Image.open(io.BytesIO(data)) as image:
            whole = image.convert("RGB")
            small = whole.copy()
            small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            for file, content in ((f"{name}.png", whole), (f"{name}+compressed.webp", small)):
                content.save(Path(folder) / file)
                self._client.log_artifact(self._mlflow_run_id, str(Path(folder) / file), IMAGES)


def _step_of(file_name: str) -> int | None:
    """The step in the name that log_image gives: key%step%1000%timestamp%...; None for other
    files.
    """
    parts = file_name.replace("+", "%").split("%")
    return int(parts[2]) if len(parts) > 2 and parts[1] == "step" and parts[2].isdigit() else None
