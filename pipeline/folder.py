"""Storage in a folder of the file system."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gan.config import ConfigError
from pipeline.storage import Storage, StorageError

LOCK = "lock"
PART = ".part"
UMASK = os.umask(0o022)  # reading it means setting it: once, before there are threads
os.umask(UMASK)
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
OF_THE_DISK = (*FULL, *REFUSED, errno.EIO, errno.ESTALE, errno.EISDIR, errno.ENOTDIR)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Folder(Storage):
    """A folder of the file system (a shared one, where several nodes take part)."""

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().resolve()

    @property
    def uri(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """The file that holds `name`. Raises ValueError for a name that points outside."""
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise ValueError(f"{name!r} lies outside {self.root}")
        return path

    def read(self, name: str) -> bytes:
        path = self.path(name)
        with _told(path):
            return path.read_bytes()

    def exists(self, name: str) -> bool:
        path = self.path(name)
        with _told(path):
            return path.is_file()

    def names(self, prefix: str = "") -> list[str]:
        def stop(error: OSError) -> None:
            if not isinstance(error, ABSENT):  # a folder may go while we look
                raise _storage_error(error, top)

        top = self.path(prefix) if prefix else self.root
        found = []
        for folder, _, files in os.walk(top, onerror=stop):
            place = Path(folder).relative_to(self.root)
            found += [(place / file).as_posix() for file in files if not file.endswith(PART)]
        return sorted(found)

    def write(self, name: str, data: bytes) -> None:
        with self._publishing(name, num_bytes=len(data)) as part:
            part.write_bytes(data)

    def create(self, name: str, data: bytes) -> bool:
        target = self.path(name)
        while True:
            with self._part(target, num_bytes=len(data)) as part:
                part.write_bytes(data)
                _finish(part)
                try:
                    os.link(part, target)
                except FileExistsError:
                    pass
                except OSError as error:
                    if error.errno not in NO_LINKS:
                        raise
                    raise StorageError(
                        f"{self.root} lies on a file system without hard links, and what only one "
                        f"of several writers may make is made with them; use another storage"
                    ) from error
                else:
                    _sync_folder(target.parent)
                    return True
            try:
                return self.read(name) == data
            except FileNotFoundError:
                if os.path.lexists(target):
                    raise StorageError(f"{target} is in the way: it is no file") from None

    @contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        with self._publishing(name) as part:
            yield part

    @contextmanager
    def _publishing(self, name: str, *, num_bytes: int | None = None) -> Iterator[Path]:
        target = self.path(name)
        with self._part(target, num_bytes=num_bytes) as part:
            yield part
            _finish(part)
            os.replace(part, target)
            _sync_folder(target.parent)

    @contextmanager
    def _part(self, target: Path, *, num_bytes: int | None) -> Iterator[Path]:
        """A temporary file beside the target, gone at the end; says what a full disk lacks."""
        part = _new_part(target)
        try:
            yield part
        except OSError as error:
            ours = error.filename in (None, str(part), str(target))
            if error.errno not in OF_THE_DISK or not ours:
                raise  # of what the caller does in the block
            raise _storage_error(error, target, part, num_bytes) from error
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        path = self.path(name)
        if not self.exists(name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield path

    def delete(self, name: str) -> None:
        """Removes `name` if it is there, and folders that it leaves empty."""
        path = self.path(name)
        try:
            path.unlink()
        except ABSENT:
            pass
        except OSError as error:
            raise _storage_error(error, path) from error
        for parent in path.parents:
            if parent == self.root:
                return
            try:
                parent.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # not empty
                return

    def below(self, prefix: str) -> Folder:
        return Folder(self.path(prefix))

    def beside(self, name: str) -> Folder:
        return Folder(self.root.parent / name)

    def sweep(self, *, but: str = "", deep: bool = True) -> list[str]:
        spared = self.root / but if but else None
        find = self.root.rglob if deep else self.root.glob
        left = [
            p
            for p in find(f".*{PART}")
            if p.is_file() and (spared is None or spared not in p.parents)
        ]
        for path in left:
            with _told(path):
                path.unlink(missing_ok=True)
        return sorted(path.relative_to(self.root).as_posix() for path in left)

    @contextmanager
    def locked(self, refusal: str) -> Iterator[None]:
        with _told(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with flocked(self.path(LOCK), refusal):
            yield


@contextmanager
def flocked(path: Path, refusal: str) -> Iterator[None]:
    """Holds the lock file `path`. Raises ConfigError with `refusal` where another process does."""
    with _told(path):
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError([refusal]) from None
        yield


def full_disk(error: OSError, folder: Path, num_bytes: int | None) -> str | None:
    """What a full disk lacks, in words; None for another error."""
    if error.errno not in FULL:
        return None
    free = shutil.disk_usage(folder).free
    need = "more is" if num_bytes is None else f"{num_bytes:,} bytes are"
    quota = " (a quota is reached)" if error.errno == errno.EDQUOT else ""
    return f"the disk of {folder} is full{quota}: {need} needed, {free:,} bytes are free"


def _new_part(target: Path) -> Path:
    """An empty temporary file in the target's folder, which is made where it is missing."""
    while True:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(
                dir=target.parent, prefix=f".{target.name}-", suffix=PART
            )
        except FileNotFoundError:
            continue  # another process deleted the folder's last file, and the folder with it
        except OSError as error:
            raise _storage_error(error, target) from error
        os.close(handle)
        return Path(part)


def _finish(part: Path) -> None:
    """Brings a written file to the disk, readable for whom the umask lets."""
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.chmod(0o666 & ~UMASK)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What is not there raises FileNotFoundError, any other error of the disk StorageError."""
    try:
        yield
    except ABSENT as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except OSError as error:
        raise _storage_error(error, path) from error


def _storage_error(
    error: OSError, path: Path, part: Path | None = None, num_bytes: int | None = None
) -> StorageError:
    if error.errno in FULL:
        if num_bytes is None and part is not None:
            num_bytes = part.stat().st_size + 1  # at least
        folder = next(p for p in path.parents if p.is_dir())
        full = full_disk(error, folder, num_bytes)
        return StorageError(f"{path} was not written: {full}; make room, then go on")
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in REFUSED:
        return StorageError(
            f"no permission for {path} ({reason}); let user {os.getuid()} read and write there, "
            f"or choose another storage"
        )
    return StorageError(f"{path}: {reason}")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
