"""What a job takes along to a cluster: this program's own source, a few files, and variables that
are no secrets.

Ray shows a job's command, metadata, variables and package to whoever may ask the cluster. So
secrets stay where they are: a cluster's nodes have their own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from gan.config import ConfigError
from pipeline.lineage import SHIPPED_COMMIT, code_and_packages

PROGRAM = ("gan", "pipeline", "jobs")
EXCLUDED = ("__pycache__", "*.pyc", ".*")
MOST_MB = 50  # a job's package lies in the memory of the cluster's head
PASSED = (  # where things are and how to talk to them; everything else is the nodes' own
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_URI",
)
SECRET_WORDS = ("CREDENTIAL", "KEY", "PASSWORD", "PASSWD", "SECRET", "TOKEN")
SHORTEST_SECRET = 8  # a shorter value is found in any text


def environment(extra: Iterable[str] = ()) -> dict[str, str]:
    """The variables of this process that a job is told, and those named in `extra`.

    Raises ConfigError for a name that a secret has, and for an address with a password in it.
    """
    mistakes = [
        f"{name} is a secret by its name, and a job's variables can be read by all who may use "
        f"the cluster; set it on the cluster's nodes instead"
        for name in extra
        if is_secret(name)
    ]
    mistakes += [f"{name} is not set here" for name in extra if name not in os.environ]
    told = {name: os.environ[name] for name in (*PASSED, *extra) if os.environ.get(name)}
    mistakes += [
        f"{name} has a password in its address, which a job would show to all who may use the "
        f"cluster; leave it out here and set it on the cluster's nodes"
        for name, value in told.items()
        if has_password(value)
    ]
    if mistakes:
        raise ConfigError(mistakes)
    return told


def is_secret(name: str) -> bool:
    """Whether a variable of this name holds a secret. A file that does is named by _PATH."""
    return any(word in name.upper() for word in SECRET_WORDS) and not name.endswith("_PATH")


def has_password(text: str) -> bool:
    """Whether an address in the text carries a password."""
    for word in text.split():
        try:
            if "://" in word and urlsplit(word.strip("\"'(),")).password:
                return True
        except ValueError:  # no address after all
            continue
    return False


def refuse_secrets(texts: Mapping[str, str]) -> None:
    """Raises ConfigError where one of the texts, by what it is, would give a secret away: the
    value of a variable of this process that is one by its name, or an address with a password.
    """
    secrets = {
        name: value
        for name, value in os.environ.items()
        if is_secret(name) and len(value) >= SHORTEST_SECRET and not Path(value).exists()
    }
    mistakes = [
        f"{what} holds the value of {name}, which all who may use the cluster could read"
        for what, text in texts.items()
        for name, value in secrets.items()
        if value in text
    ]
    mistakes += [
        f"{what} holds an address with a password, which all who may use the cluster could read"
        for what, text in texts.items()
        if has_password(text)
    ]
    if mistakes:
        raise ConfigError(mistakes)


@contextmanager
def packed(files: Mapping[str, str]) -> Iterator[Path]:
    """A folder with the program's source and `files` (name to text), for the length of the block.

    Raises ConfigError where it would be larger than MOST_MB, naming what is large.
    """
    with TemporaryDirectory(prefix="forger-submit-") as folder:
        root = Path(folder)
        for name in PROGRAM:
            ignored = shutil.ignore_patterns(*EXCLUDED)
            shutil.copytree(_source(name), root / name, ignore=ignored)
        if commit := code_and_packages()["commit"]:
            (root / "pipeline" / SHIPPED_COMMIT).write_text(commit)
        for name, text in files.items():
            (root / name).write_text(text)
        _refuse_weight(root)
        yield root


def _source(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _refuse_weight(root: Path) -> None:
    sizes = {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    if sum(sizes.values()) <= MOST_MB * 2**20:
        return
    largest = sorted(sizes, key=lambda path: -sizes[path])[:3]
    named = ", ".join(f"{path.relative_to(root)} ({sizes[path] >> 20} MB)" for path in largest)
    raise ConfigError(
        [
            f"the program's source is {sum(sizes.values()) >> 20} MB, and {MOST_MB} MB may be "
            f"shipped; the largest files are {named}; keep data outside the source folders"
        ]
    )
