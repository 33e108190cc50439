"""A registered generator's manifest: its files by their sha256, and where they come from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gan.config import ConfigError

MANIFEST = "manifest.json"
SCHEMA = 1


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(folder: Path) -> dict[str, str]:
    """The sha256 of every file below `folder`, by its name from there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def check_files(folder: Path) -> dict[str, Any]:
    """The manifest in `folder`, where every file there is the one that it lists.

    Raises ConfigError naming each file that is another, missing, or not listed.
    """
    try:
        record = json.loads((folder / MANIFEST).read_bytes())
        listed = dict(record["files"])
        if record["schema"] != SCHEMA:
            raise ValueError(f"its schema is {record['schema']}, not {SCHEMA}")
    except FileNotFoundError:
        raise ConfigError([f"{folder} holds no {MANIFEST}"]) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"{folder}/{MANIFEST} is damaged: {error}"]) from None
    found = listing(folder)
    found.pop(MANIFEST)
    check_listing(found, listed, where=str(folder), by=MANIFEST)
    return record


def check_listing(found: dict[str, str], listed: dict[str, str], *, where: str, by: str) -> None:
    """Raises ConfigError where the files found below `where` are not those that `by` lists."""
    mistakes = []
    for name in sorted(found.keys() | listed.keys()):
        if name not in found:
            mistakes.append(f"{where}/{name} is missing ({by} lists it)")
        elif name not in listed:
            mistakes.append(f"{where}/{name} does not belong there ({by} does not list it)")
        elif found[name] != listed[name]:
            mistakes.append(f"{where}/{name} is not the file that was registered (its sha256 "
                            f"is {found[name][:12]}, {by} says {listed[name][:12]})")  # fmt: skip
    if mistakes:
        raise ConfigError(mistakes)
