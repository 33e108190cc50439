"""Where a generator comes from: the code's commit and the packages that trained it."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SHIPPED_COMMIT = "shipped-commit"  # beside this file, in what `forger submit` ships
PACKAGES = ("forger", "torch", "numpy", "ray", "mlflow", "pyarrow", "safetensors")


@cache
def code_and_packages() -> dict[str, Any]:
    """The commit of this code (with '-dirty' where files were changed), Python, and package
    versions.
    """
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """None where the code lies in no git checkout, and nobody who shipped it said where from."""
    shipped = Path(__file__).parent / SHIPPED_COMMIT
    if shipped.exists():
        return shipped.read_text()
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
