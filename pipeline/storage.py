"""Named bytes under one root, published whole or not at all."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gan.config import ConfigError

LOCK = "lock"
UMASK = os.umask(0o022)  # reading it means setting it: once, before there are threads
os.umask(UMASK)


class Folder:
    """A folder of the file system (a shared one, where several nodes take part)."""

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().resolve()

    @property
    def uri(self) -> str:
        """Where it is, absolute."""
        return str(self.root)

    def path(self, name: str) -> Path:
        """The file that holds `name`. Raises ValueError for a name that points outside."""
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise ValueError(f"{name!r} lies outside {self.root}")
        return path

    def read(self, name: str) -> bytes:
        """The bytes of `name`. Raises FileNotFoundError."""
        return self.path(name).read_bytes()

    def exists(self, name: str) -> bool:
        """Whether `name` was published."""
        return self.path(name).is_file()

    def names(self, prefix: str = "") -> list[str]:
        """Names of all published files below the folder `prefix`, sorted."""
        top = self.path(prefix) if prefix else self.root
        files = (p for p in top.rglob("*") if p.is_file() and not p.name.endswith(".part"))
        return sorted(p.relative_to(self.root).as_posix() for p in files)

    def write(self, name: str, data: bytes) -> None:
        """Publishes `data` as `name`: readers see the old bytes or the new ones, even after a
        power cut.
        """
        with self.publishing(name) as part:
            part.write_bytes(data)

    @contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        """Gives a temporary path to write to; publishes it as `name` when the block ends well."""
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.name}-", suffix=".part"
        )
        os.close(handle)
        try:
            yield Path(part)
            with open(part, "rb") as written:
                os.fsync(written.fileno())
            os.chmod(part, 0o666 & ~UMASK)
            os.replace(part, target)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    @contextmanager
    def locked(self, refusal: str) -> Iterator[None]:
        """Holds the folder for one process of this machine. Raises ConfigError with `refusal`
        where another one has it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.path(LOCK), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError([refusal]) from None
            yield

    def delete(self, name: str) -> None:
        """Removes `name` if it is there, and folders that it leaves empty."""
        path = self.path(name)
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == self.root:
                return
            try:
                parent.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # not empty
                return


def open_storage(uri: str | Path) -> Folder:
    """The storage at `uri`. Raises ConfigError for a kind that is not supported."""
    if "://" in str(uri):
        raise ConfigError(
            [f"storage must be a folder that every node sees (no s3:// yet), got {str(uri)!r}"]
        )
    return Folder(uri)


def download_object(uri: str) -> bytes:
    """The bytes of s3://bucket/key; address and secrets come from AWS's own variables.

    Raises ConfigError where it cannot be had.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        # A session of its own: the shared one keeps secrets that have changed since.
        client = boto3.Session().client("s3")
        return client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except (BotoCoreError, ClientError) as error:
        raise ConfigError([f"{uri} cannot be read: {error}"]) from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
