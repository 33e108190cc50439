"""A bucket of an S3-compatible store as a storage.

AWS, Ceph, SeaweedFS, RustFS and others. `create` needs one that honours If-None-Match: rclone's
`serve s3`, for one, says yes to it and overwrites.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import ClientError

from pipeline import patience
from pipeline.folder import flocked, full_disk
from pipeline.patience import Patience, Taken, UploadGone, code_of
from pipeline.storage import Storage, StorageError, inside

LARGE_BYTES = 64 * 2**20  # from here on in parts
PART_BYTES = 16 * 2**20
MAX_PARTS = 10_000
NUM_THREADS = 4
PIECE_BYTES = 2**20  # of a download
PAGE_KEYS = 1000  # of a listing; the store's own limit
TIDY_SEC = 10  # for what may as well be done later
MAX_UPLOADS = 5  # of one object, where others keep aborting them
log = logging.getLogger(__name__)


def make_bucket(name: str) -> None:
    """Makes a bucket; one that is this owner's already stays as it is."""
    Patience(name, patience.RETRY_SEC).ask(
        f"making the bucket {name}", lambda store: store.create_bucket(Bucket=name)
    )


class Bucket(Storage):
    """The keys below a prefix of a bucket.

    A failed call is tried again for `retry_sec` (after the last byte that came or went) where the
    store is slow, busy or away; what no patience mends raises StorageError at once.
    """

    def __init__(self, bucket: str, prefix: str = "", *, retry_sec: float | None = None):
        self.bucket, self.prefix = bucket, inside(prefix.strip("/"), f"s3://{bucket}")
        self.retry_sec = patience.RETRY_SEC if retry_sec is None else retry_sec
        self._ask = Patience(bucket, self.retry_sec).ask

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def read(self, name: str) -> bytes:
        sink = io.BytesIO()
        self._fetch(name, sink)
        return sink.getvalue()

    def exists(self, name: str) -> bool:
        key = self._key(name)
        try:
            self._ask(
                f"looking for {self._told(name)}",
                lambda store: store.head_object(Bucket=self.bucket, Key=key),
            )
        except FileNotFoundError:
            return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        top = self._key(prefix)
        below = f"{top}/" if top else ""
        keys = self._all(
            "list_objects_v2", "Contents", Prefix=below, MaxKeys=PAGE_KEYS, field="Key"
        )
        start = len(self.prefix) + 1 if self.prefix else 0
        return sorted(key[start:] for key in keys if not key.endswith("/"))

    def write(self, name: str, data: bytes) -> None:
        view = memoryview(data)
        self._put(name, len(data), lambda start, stop: view[start:stop])

    def create(self, name: str, data: bytes) -> bool:
        key = self._key(name)
        arguments = {"Bucket": self.bucket, "Key": key, "Body": data, "ContentMD5": _md5(data)}
        while True:
            try:
                self._ask(
                    f"making {self._told(name)}",
                    lambda store: store.put_object(IfNoneMatch="*", **arguments),
                )
                return True
            except Taken:
                try:
                    return self.read(name) == data
                except FileNotFoundError:
                    continue  # gone again

    @contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        self._key(name)
        with _scratch() as path:
            path.touch()
            yield path
            with path.open("rb") as file:
                self._put(
                    name,
                    path.stat().st_size,
                    lambda start, stop: os.pread(file.fileno(), stop - start, start),
                )

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with _scratch() as path:
            with path.open("wb") as file:
                self._fetch(name, file)
            yield path

    def delete(self, name: str) -> None:
        key = self._key(name)
        self._ask(
            f"deleting {self._told(name)}",
            lambda store: store.delete_object(Bucket=self.bucket, Key=key),
        )

    def below(self, prefix: str) -> Bucket:
        return Bucket(self.bucket, self._key(prefix), retry_sec=self.retry_sec)

    def beside(self, name: str) -> Bucket:
        parent = self.prefix.rpartition("/")[0]
        return Bucket(self.bucket, f"{parent}/{name}", retry_sec=self.retry_sec)

    def sweep(self, *, but: str = "", deep: bool = True) -> list[str]:
        top = f"{self.prefix}/" if self.prefix else ""
        spared = f"{top}{but}/" if but else None

        def goes(key: str) -> bool:
            here = deep or "/" not in key[len(top) :]
            return here and (spared is None or not key.startswith(spared))

        swept = self._abort(top, goes)
        return sorted(key[len(top) :] for key in swept)

    @contextmanager
    def locked(self, refusal: str) -> Iterator[None]:
        folder = Path(tempfile.gettempdir()) / f"forger-locks-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        with flocked(folder / hashlib.sha256(self.uri.encode()).hexdigest()[:32], refusal):
            yield

    def _key(self, name: str) -> str:
        name = inside(name, self.uri)
        return f"{self.prefix}/{name}".strip("/")

    def _told(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def _fetch(self, name: str, sink: BinaryIO) -> None:
        """Writes the object into `sink`; what was cut goes on where it was."""
        key, etag = self._key(name), ""

        def fetch(store: Any) -> None:
            nonlocal etag
            done = sink.tell()
            rest = {"Range": f"bytes={done}-"} if done else {}
            try:
                answer = store.get_object(Bucket=self.bucket, Key=key, **rest)
            except ClientError as error:
                if not done or code_of(error) not in ("InvalidRange", "416"):
                    raise
                answer = None
            tag = answer.get("ETag", "") if answer is not None else ""
            if done and (not tag or tag != etag):
                sink.seek(0)  # it was written anew meanwhile
                sink.truncate()
                return fetch(store)
            assert answer is not None
            etag = tag
            try:
                for piece in answer["Body"].iter_chunks(PIECE_BYTES):
                    sink.write(piece)
            finally:
                answer["Body"].close()

        self._ask(f"reading {self._told(name)}", fetch, progress=sink.tell)

    def _put(
        self, name: str, num_bytes: int, piece: Callable[[int, int], bytes | memoryview]
    ) -> None:
        """Publishes the bytes that `piece(start, stop)` gives."""
        key, told = self._key(name), f"writing {self._told(name)}"
        if num_bytes < LARGE_BYTES:
            data = bytes(piece(0, num_bytes))
            self._ask(
                told,
                lambda store: store.put_object(
                    Bucket=self.bucket, Key=key, Body=data, ContentMD5=_md5(data)
                ),
            )
            return
        try:
            for _ in range(MAX_UPLOADS):
                if self._upload(key, told, num_bytes, piece):
                    return
        finally:
            self._tidy(key)
        raise StorageError(f"{told}: its upload was aborted {MAX_UPLOADS} times; who else writes?")

    def _upload(
        self, key: str, told: str, num_bytes: int, piece: Callable[[int, int], bytes | memoryview]
    ) -> bool:
        """Uploads in parts; False where somebody aborted it."""
        where = {"Bucket": self.bucket, "Key": key}
        begun = self._ask(told, lambda store: store.create_multipart_upload(**where))
        where["UploadId"] = begun["UploadId"]
        size = max(PART_BYTES, math.ceil(num_bytes / MAX_PARTS))

        def send(number: int) -> dict[str, Any]:
            start = (number - 1) * size
            data = bytes(piece(start, min(start + size, num_bytes)))
            part = {"PartNumber": number, "Body": data, "ContentMD5": _md5(data)}
            answer = self._ask(told, lambda store: store.upload_part(**where, **part))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        parts: list[dict[str, Any]] = []
        try:
            with ThreadPoolExecutor(NUM_THREADS) as pool:
                parts += list(pool.map(send, range(1, math.ceil(num_bytes / size) + 1)))
            whole = {"MultipartUpload": {"Parts": parts}}
            self._ask(told, lambda store: store.complete_multipart_upload(**where, **whole))
        except UploadGone:
            return bool(parts) and self._stands(key, told, [p["ETag"].strip('"') for p in parts])
        return True

    def _stands(self, key: str, told: str, etags: list[str]) -> bool:
        """Whether the object of these parts is there: a retried call can lose its own success."""
        joined = hashlib.md5(b"".join(map(bytes.fromhex, etags)), usedforsecurity=False)
        try:
            found = self._ask(told, lambda store: store.head_object(Bucket=self.bucket, Key=key))
        except FileNotFoundError:
            return False
        return found["ETag"].strip('"') == f"{joined.hexdigest()}-{len(etags)}"

    def _tidy(self, key: str) -> None:
        """Aborts the unfinished uploads of a key: an own one that failed, one whose beginning the
        store never confirmed, those of writers that were killed. One that is under way begins
        again.
        """
        try:
            below = Bucket(self.bucket, retry_sec=min(TIDY_SEC, self.retry_sec))
            below._abort(key, lambda found: found == key)
        except StorageError as error:
            log.warning("unfinished uploads may be left at %s/%s: %s", self.bucket, key, error)

    def _abort(self, prefix: str, applies: Callable[[str], bool]) -> list[str]:
        uploads = self._all("list_multipart_uploads", "Uploads", Prefix=prefix, field="")
        swept = []
        for upload in uploads:
            where = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            if not applies(upload["Key"]):
                continue
            try:
                self._ask(
                    f"tidying s3://{self.bucket}/{upload['Key']}",
                    lambda store, where=where: store.abort_multipart_upload(**where),
                )
            except UploadGone:
                continue
            swept.append(upload["Key"])
        return swept

    def _all(self, call: str, field_of_page: str, *, field: str, **arguments: Any) -> list[Any]:
        """Every entry of all pages of a listing."""
        found, more = [], {}
        while True:
            page = self._ask(
                f"listing {self.uri}",
                lambda store, more=more: getattr(store, call)(
                    Bucket=self.bucket, **arguments, **more
                ),
            )
            entries = page.get(field_of_page, [])
            found += [entry[field] for entry in entries] if field else entries
            if not page.get("IsTruncated"):
                return found
            if call == "list_objects_v2":
                more = {"ContinuationToken": page["NextContinuationToken"]}
            else:
                more = {
                    "KeyMarker": page["NextKeyMarker"],
                    "UploadIdMarker": page["NextUploadIdMarker"],
                }


def _md5(data: bytes | memoryview) -> str:
    return b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


@contextmanager
def _scratch() -> Iterator[Path]:
    """A path for a temporary file of this machine; says what a full disk lacks."""
    with tempfile.TemporaryDirectory(prefix="forger-") as folder:
        path = Path(folder) / "object"
        try:
            yield path
        except OSError as error:
            ours = error.filename in (None, str(path))
            full = full_disk(error, Path(folder), None) if ours else None
            if full is None:
                raise
            raise StorageError(f"{full}; make room, or set TMPDIR to another disk") from error
