"""Weights that somebody else published: found in a package, a file or at a URI, believed by their
checksum, read as plain tensors.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from gan.config import ConfigError
from pipeline.extractor_names import local_path
from pipeline.folder import Folder
from pipeline.storage import download_object

SCHEMES = "a file, file://, http(s):// or s3://"
TIMEOUT_SEC = 60
COUNTED_ONLY = "num_batches_tracked"  # batches seen in training: older files leave it out
NAMED = 3  # parameters that a message names; the rest are counted


def read_weights(uri: str, *, sha256: str | None) -> bytes:
    """The bytes at `uri`, whose sha256 is the one stated.

    A path is read where it is; what comes over a network is kept in a folder of the user's cache
    under its checksum, so that it comes once. Raises ConfigError where there is nothing, or
    something else than stated, or no checksum is stated.
    """
    if "://" in uri and not uri.startswith("file://"):
        return _read_remote(uri, sha256)
    path = local_path(uri)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"weights cannot be read: {path}: {error.strerror}"]) from None
    return _checked(data, sha256, source=str(path))


def package_file(package: str, name: str) -> Path | None:
    """The file `name` of an installed package, which is not imported; None where there is none."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / name
        if path.is_file():
            return path
    return None


def cache() -> Folder:
    """Where downloaded weights are kept: forger/weights in $XDG_CACHE_HOME, or in ~/.cache."""
    return Folder(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "forger" / "weights")


def tensors(data: bytes, *, source: str) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, or of what torch.save made of a state dict.

    Raises ConfigError for anything else; nothing in it can run.
    """
    try:
        if data[:2] == b"PK" or data[:1] == b"\x80":  # a zip or a bare pickle: torch.save's
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        else:
            state = safetensors.torch.load(data)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            [f"{source} is neither safetensors nor a state dict of plain tensors ({reason})"]
        ) from None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError([f"{source} holds no state dict (names and tensors)"])
    return dict(state)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Puts `state` into `module`. Raises ConfigError where a parameter is missing, unknown or of
    another shape.
    """
    needed = {k: v for k, v in module.state_dict().items() if not k.endswith(COUNTED_ONLY)}
    given = {k: v for k, v in state.items() if not k.endswith(COUNTED_ONLY)}
    shared = needed.keys() & given.keys()
    shapes = [
        f"{k} is {tuple(given[k].shape)}, not {tuple(needed[k].shape)}"
        for k in sorted(shared)
        if given[k].shape != needed[k].shape
    ]
    faults = [
        f"{what} {len(names)}: {', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''}"
        for what, names in (
            ("parameters missing", sorted(needed.keys() - shared)),
            ("parameters unknown", sorted(given.keys() - shared)),
            ("shapes differ in", shapes),
        )
        if names
    ]
    if faults:
        raise ConfigError([f"{source} is not of this network: {'; '.join(faults)}"])
    module.load_state_dict(given, strict=False)  # every name was compared above


def sha256_of(data: bytes) -> str:
    """The checksum of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _checked(data: bytes, sha256: str | None, *, source: str) -> bytes:
    found = sha256_of(data)
    if sha256 is None:
        raise ConfigError(
            [f"evaluate.weights_sha256 must state the checksum of {source}, which is {found}"]
        )
    if found != sha256:
        raise ConfigError([f"{source} has the sha256 {found}, not the stated {sha256}"])
    return data


def _read_remote(uri: str, sha256: str | None) -> bytes:
    source = uri.partition("?")[0]  # what follows may be a signature
    if sha256 is None:
        raise ConfigError([f"evaluate.weights_sha256 must state the checksum of {source}"])
    kept = cache()
    if kept.exists(sha256):
        data = kept.read(sha256)
        if sha256_of(data) == sha256:
            return data
    data = _checked(_download(uri, source), sha256, source=source)
    try:
        kept.write(sha256, data)
    except OSError as error:
        raise ConfigError(
            [f"weights cannot be kept in {kept.uri} ({error.strerror}); set XDG_CACHE_HOME"]
        ) from None
    return data


def _download(uri: str, source: str) -> bytes:
    scheme = urlsplit(uri).scheme
    if scheme == "s3":
        return download_object(uri)
    if scheme not in ("http", "https"):
        raise ConfigError([f"evaluate.weights must be {SCHEMES}, got {source}"])
    try:
        with urllib.request.urlopen(uri, timeout=TIMEOUT_SEC) as answer:
            return answer.read()
    except (OSError, HTTPException) as error:  # URLError and HTTPError are OSErrors
        raise ConfigError([f"weights cannot be fetched: {source}: {error}"]) from None
