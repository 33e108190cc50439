"""A process of its own that loads a logged model as a stranger would, and tells what it draws.

Run as a script, with nothing of Forger in reach: `gan`, `pipeline`, `jobs` and jaxtyping cannot be
imported there. It reads one JSON object from stdin, {"tracking": ..., "model": ..., "requests":
[...]}, and writes one to the file that its argument names: the sha256 of each file of the model,
and of each drawn image's pixels.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import json
import sys
import tempfile
from pathlib import Path

HIDDEN = ("gan", "pipeline", "jobs", "jaxtyping")


class Hidden(importlib.abc.MetaPathFinder):
    """Refuses every import of Forger, installed or not."""

    def find_spec(self, fullname: str, path=None, target=None) -> None:
        if fullname.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{fullname} is not in reach where a model is proved")


def main(answer: Path) -> None:
    """Proves the model that stdin names."""
    sys.meta_path.insert(0, Hidden())
    import mlflow.pyfunc
    import torch
    from mlflow import artifacts

    torch.set_num_threads(1)  # another count than a trainer may have used: bytes must not care
    job = json.loads(sys.stdin.read())
    mlflow.set_tracking_uri(job["tracking"])
    mlflow.set_registry_uri(job["tracking"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(artifacts.download_artifacts(job["model"], dst_path=folder))
        files = {
            file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
        drawn = mlflow.pyfunc.load_model(str(path)).predict(job["requests"])
    pixels = [
        [hashlib.sha256(image.pixels.tobytes()).hexdigest() for image in images]
        for images in drawn
    ]
    answer.write_text(json.dumps({"files": files, "pixels": pixels}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
