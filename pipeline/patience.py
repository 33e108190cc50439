"""Calls to an S3 store: tried again while that can help, and what went wrong in words if not.

With bucket.py the only one to know boto3. Credentials come from AWS's usual places alone.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError

from pipeline.storage import StorageError, StorageMistake

RETRY_SEC = 120  # without any progress; then the storage has failed
CONNECT_SEC = 5
READ_SEC = 20  # without a byte; then the connection is given up
FIRST_PAUSE_SEC = 0.25  # doubles; each pause is drawn from 0 to it (full jitter)
LONGEST_PAUSE_SEC = 8
MAX_CONNECTIONS = 16

# By code, what is worth another try though its status is not 5xx or 429.
PASSING = {
    "RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "SlowDown",
    "OperationAborted", "ConditionalRequestConflict", "Throttling", "ThrottlingException",
}  # fmt: skip
LASTING = (501, 505, 507)  # of the 5xx, what another try does not mend
PASSING_ERRORS = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.ChecksumError,
    boto.CredentialRetrievalError,
    ResponseParserError,  # an answer that was cut
)
REMEDIES = {
    "NoSuchBucket": "there is no bucket {bucket!r} at {endpoint}; make it, or correct the name",
    "InvalidAccessKeyId": "{endpoint} does not know the access key; correct AWS_ACCESS_KEY_ID "
    "or the profile",
    "SignatureDoesNotMatch": "the secret key is not the access key's; correct "
    "AWS_SECRET_ACCESS_KEY or the profile",
    "AccessDenied": "no permission; the key's policy must allow s3:GetObject, s3:PutObject, "
    "s3:DeleteObject, s3:AbortMultipartUpload, s3:ListBucket and s3:ListBucketMultipartUploads",
    "ExpiredToken": "the session's token has expired; sign in again",
    "RequestTimeTooSkewed": "this machine's clock and the store's differ too much; set it",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the region is another; set AWS_DEFAULT_REGION",
    "QuotaExceeded": "the quota of the bucket or the user is reached; make room",
}
STATUS_REMEDIES = {403: "AccessDenied", 301: "PermanentRedirect"}
T = TypeVar("T")
log = logging.getLogger(__name__)
_dice = random.Random()  # not the global one, which is the game's
_clients: dict[tuple, Any] = {}
_clients_lock = threading.Lock()
_known_buckets: set[tuple[str, str]] = set()


class Taken(Exception):
    """Something stands where nothing should."""


class UploadGone(Exception):
    """An upload in parts is over: completed, or aborted by somebody."""


def client() -> Any:
    """This process's client, made anew where AWS's variables have changed since."""
    words = [(k, v) for k, v in os.environ.items() if k.startswith("AWS_")]
    asked = (os.getpid(), CONNECT_SEC, READ_SEC, *sorted(words))
    with _clients_lock:
        if asked not in _clients:
            _clients.clear()
            config = Config(
                connect_timeout=CONNECT_SEC,
                read_timeout=READ_SEC,
                retries={"mode": "standard", "total_max_attempts": 1},  # ours decide
                max_pool_connections=MAX_CONNECTIONS,
                # Stores other than AWS's choke on the newer checksums; every PUT has its MD5.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            _clients[asked] = boto3.Session().client("s3", config=config)
        return _clients[asked]


def forget_client() -> None:
    """The next call reads the credentials again."""
    with _clients_lock:
        _clients.clear()


@dataclass(frozen=True, slots=True)
class Patience:
    """How long calls to a bucket are tried again: `retry_sec` since they last got on."""

    bucket: str
    retry_sec: float

    def ask(
        self, what: str, call: Callable[[Any], T], *, progress: Callable[[], int] = lambda: 0
    ) -> T:
        """`call(client)`, again and again where that helps; `what` names it in errors.

        Whenever `progress()` has grown there is new patience. Raises FileNotFoundError for a key
        that is not there, Taken, UploadGone, and StorageError for all else.
        """
        seen, deadline = progress(), time.monotonic() + self.retry_sec
        renewed = False
        attempt = 0
        for number in itertools.count(1):
            try:
                return self._once(call)
            except (*PASSING_ERRORS, boto.ClientError, boto.BotoCoreError) as error:
                if code_of(error) == "ExpiredToken" and not renewed:
                    renewed = True
                    forget_client()
                    continue
                if not _passing(error):
                    self._refuse(what, error)
                reason = error
            if progress() != seen:
                seen, deadline, attempt = progress(), time.monotonic() + self.retry_sec, 0
            longest = min(LONGEST_PAUSE_SEC, FIRST_PAUSE_SEC * 2**attempt)
            pause = _dice.uniform(0, longest)
            if time.monotonic() + pause > deadline:
                raise StorageError(
                    f"{what}: given up after {number} attempts, {self.retry_sec:g} s without "
                    f"getting on; the last error was: {_words(reason)}"
                ) from reason
            if number == 1:
                log.warning("%s: %s; trying again for %g s", what, _words(reason), self.retry_sec)
            time.sleep(pause)
            attempt += 1
        raise AssertionError

    def _once(self, call: Callable[[Any], T]) -> T:
        store = client()
        try:
            return call(store)
        except boto.ClientError as error:
            code, known = code_of(error), (store.meta.endpoint_url, self.bucket)
            if (
                code.isdigit()
                and not _passing(error)
                and not (code == "404" and known in _known_buckets)
            ):
                # The answer to HEAD has no room for the reason; a listing tells it.
                store.list_objects_v2(Bucket=self.bucket, MaxKeys=1)
                _known_buckets.add(known)
            raise

    def _refuse(self, what: str, error: Exception) -> NoReturn:
        code, status = code_of(error), _status(error)
        if status == 412:
            raise Taken from error
        if code == "NoSuchUpload":
            raise UploadGone from error
        if status == 404 and code != "NoSuchBucket":
            raise FileNotFoundError(f"{what}: not there") from error
        if status in (400, 401, 403):
            forget_client()  # the next call reads the credentials again
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        remedy = REMEDIES.get(code) or REMEDIES.get(STATUS_REMEDIES.get(status, ""))
        nobody = isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError)
        if nobody:
            remedy = (
                "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
                "or give the machine a role"
            )
        if remedy is None:
            raise StorageError(f"{what}: {_words(error)}") from error
        told = remedy.format(bucket=self.bucket, endpoint=endpoint or "AWS")
        kind = StorageMistake if nobody or code == "NoSuchBucket" else StorageError
        raise kind(f"{what}: {told} ({code or type(error).__name__})") from error


def code_of(error: Exception) -> str:
    """The store's code for what went wrong; "" where the store did not answer."""
    if not isinstance(error, boto.ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: Exception) -> int:
    if not isinstance(error, boto.ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _passing(error: Exception) -> bool:
    """Whether it may be over soon."""
    if isinstance(error, boto.SSLError):
        return "CERTIFICATE" not in str(error).upper()
    if not isinstance(error, boto.ClientError):
        return isinstance(error, PASSING_ERRORS)
    status = _status(error)
    if status in LASTING:
        return False
    return status >= 500 or status == 429 or code_of(error) in PASSING


def _words(error: Exception) -> str:
    return " ".join(str(error).split())
