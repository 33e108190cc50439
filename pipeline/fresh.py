"""What a logged model has to prove, and the fresh process that proves it: the trainer's end.

The other end is pipeline/proof.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.snapshot import Snapshot

REQUESTS = [{"n": 4, "seed": 0}, {"n": 1, "seed": 2**32 - 1, "truncation": 0.5}]
PATIENCE_SEC = 900  # a generator may be large, and the store far away


class NotProvedError(Exception):
    """The fresh process could not load the model, or not draw from it; its own words say why."""


@contextmanager
def fresh_process(folder: Path, tracking: str) -> Iterator[Callable[[str], dict[str, Any]]]:
    """A fresh Python that proves one model of the MLflow at `tracking`, by its URI, when asked.

    It starts at once, to import torch and MLflow while the model is still being logged; it is
    ended with the block. The proof is what pipeline/proof.py writes. Raises NotProvedError.
    """
    answer, said = folder / "proof.json", folder / "proof.log"
    # Isolated: neither PYTHONPATH nor the working folder can bring anything of ours into it.
    command = [sys.executable, "-I", str(files("pipeline") / "proof.py"), str(answer)]
    with said.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder, env=os.environ
        )

    def prove(model: str) -> dict[str, Any]:
        job = {"tracking": tracking, "model": model, "requests": REQUESTS}
        try:
            process.communicate(json.dumps(job).encode(), timeout=PATIENCE_SEC)
        except subprocess.TimeoutExpired:
            raise NotProvedError(f"{model} drew nothing within {PATIENCE_SEC} s") from None
        if process.returncode != 0:
            lines = said.read_text(errors="replace").strip().splitlines() or ["no reason given"]
            raise NotProvedError(f"{model} does not load in a fresh process: {lines[-1]}")
        return json.loads(answer.read_bytes())

    try:
        yield prove
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        process.wait()


def expected_pixels(snapshot: Snapshot) -> list[list[str]]:
    """The sha256 of the pixels (h, w, c) of each image that REQUESTS should give."""
    drawn = []
    for request in REQUESTS:
        seeds = range(request["seed"], request["seed"] + request["n"])
        images = snapshot.images(seeds, truncation=request.get("truncation", 1.0))
        pages = images.permute(0, 2, 3, 1).contiguous().numpy()
        drawn.append([hashlib.sha256(page.tobytes()).hexdigest() for page in pages])
    return drawn
