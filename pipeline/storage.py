"""Named bytes under one root, in a folder or in a bucket, published whole or not at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from gan.config import ConfigError


class StorageError(Exception):
    """The storage failed for good: what was written before is as it was, this write is not there.

    Raised after retries where trying again could help, at once where it could not (no permission,
    a wrong key, no such bucket); the text says which, and what to do.
    """


class StorageMistake(StorageError):
    """There is no such bucket, or nobody said who asks: only the user can mend it."""


class Storage(ABC):
    """Named bytes under one root. A name is a relative path with '/'; one that points outside
    raises ValueError. Every method raises StorageError where the storage fails for good.
    """

    @property
    @abstractmethod
    def uri(self) -> str:
        """Where it is: what `open_storage` takes."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of `name`. Raises FileNotFoundError."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether `name` was published."""

    @abstractmethod
    def names(self, prefix: str = "") -> list[str]:
        """Names of all published files below the folder `prefix`, sorted."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Publishes `data` as `name`: readers see the old bytes or the new ones, even after a
        power cut. The last of several writers wins.
        """

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Publishes `data` as `name` where there is none: of several writers exactly one wins.

        True where `data` stands there now, False where other bytes do. Writers that must not be
        taken for each other put something of their own into the bytes.
        """

    @abstractmethod
    @contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        """Gives a temporary path to write to; publishes it as `name` when the block ends well."""
        yield Path()

    @abstractmethod
    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A file of this machine with the bytes of `name`, to read within the block.

        Raises FileNotFoundError.
        """
        yield Path()

    @abstractmethod
    def delete(self, name: str) -> None:
        """Removes `name` if it is there."""

    @abstractmethod
    def below(self, prefix: str) -> Storage:
        """The storage whose root is the folder `prefix` of this one."""

    @abstractmethod
    def beside(self, name: str) -> Storage:
        """The storage `name` in the folder that this one is in."""

    @abstractmethod
    def sweep(self, *, but: str = "", deep: bool = True) -> list[str]:
        """Removes what writers that were killed left unfinished, and says what it was; nothing
        below the folder `but`, where one is named, and without `deep` nothing in any folder below.

        Only for who alone writes here: it ends a write that is under way too.
        """

    @abstractmethod
    @contextmanager
    def locked(self, refusal: str) -> Iterator[None]:
        """Holds the storage for one process of this machine. Raises ConfigError with `refusal`
        where another one has it.
        """
        yield


def open_storage(uri: str | Path) -> Storage:
    """The storage at `uri`: a folder, or s3://bucket/prefix (boto3: its address and secrets come
    from AWS's usual places, such as AWS_ENDPOINT_URL and AWS_ACCESS_KEY_ID).

    Nothing is asked of it yet. Raises ConfigError for a kind that is not supported.
    """
    scheme, colon, rest = str(uri).partition("://")
    if not colon:
        from pipeline.folder import Folder

        return Folder(uri)
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ConfigError(
            [f"storage must be a folder that every node sees or s3://bucket/prefix, got {uri!s}"]
        )
    from pipeline.bucket import Bucket  # boto3 takes a while to import

    try:
        return Bucket(bucket, prefix)
    except ValueError as error:
        raise ConfigError([str(error)]) from None


def download_object(uri: str) -> bytes:
    """The bytes of s3://bucket/key; address and secrets come from AWS's own variables.

    Raises ConfigError where it cannot be had.
    """
    place, _, name = uri.rpartition("/")
    try:
        return open_storage(place).read(name)
    except (FileNotFoundError, StorageError) as error:
        raise ConfigError([f"{uri} cannot be read: {error}"]) from None


def inside(name: str, root: str) -> str:
    """`name` without detours. Raises ValueError for one that points outside of `root`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} lies outside {root}")
    return "" if path == PurePosixPath() else path.as_posix()
