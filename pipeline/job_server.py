"""A Ray cluster's job server: the only door to Ray's Jobs API.

"Cannot reach" is an error of its own, Unreachable: it says nothing of a job.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gan.config import ConfigError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS = "RAY_API_SERVER_ADDRESS"
ASK_SEC = 10.0
SEND_SEC = 120.0  # for a package, or a job that the head's disk is slow to take
LOOPBACK = ("localhost", "127.0.0.1", "::1")
STOP_WAIT_SEC = 900  # what a stopped job may take for its checkpoint; Ray would kill it after 3 s
NONCE = "forger.submission"  # tells whose submission took an id
JOB = "FORGER_JOB"  # its own id, in a job's environment
CHATTY = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


class Unreachable(Exception):
    """The cluster did not answer, or not as one; what it is doing is not known."""


class Forgotten(Unreachable):
    """The cluster answers and knows the job no more: it was started anew."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster knows it."""

    id: str
    status: str  # PENDING, RUNNING, or one of OVER
    metadata: dict[str, str] = field(default_factory=dict)
    message: str = ""
    started_ms: int | None = None
    ended_ms: int | None = None
    exit_code: int | None = None  # of its command, once that ended by itself

    @property
    def over(self) -> bool:
        """Whether it runs no more."""
        return self.status in OVER


@dataclass(slots=True)
class JobServer:
    """The connection. `here` says whether the cluster's head is this very machine."""

    address: str
    here: bool
    _client: JobSubmissionClient

    @classmethod
    def connect(
        cls, *, allow_http: bool = False, allow_unauthenticated: bool = False
    ) -> JobServer:
        """The server at RAY_API_SERVER_ADDRESS, with the token that Ray's own variables name.

        Raises ConfigError where none is named, where it refuses the token, and, on an address that
        is not loopback, where it is plain HTTP or asks for no token, unless that is allowed; and
        Unreachable where it does not answer.
        """
        address = _address()
        loopback = (urlsplit(address).hostname or "") in LOOPBACK
        if not loopback and address.startswith("http://") and not allow_http:
            raise ConfigError(
                [
                    f"{ADDRESS} = {address!r} is plain HTTP to another machine, where anybody on "
                    f"the way reads the token; use https://, or a tunnel (ssh -L 8265:HEAD:8265, "
                    f"kubectl port-forward) to http://127.0.0.1:8265, or say --allow-http"
                ]
            )
        if _asks_for_token(address):
            _name_token(address)
        elif not (loopback or allow_unauthenticated):
            raise ConfigError(
                [
                    f"the head at {address} asks for no token, so anybody who reaches it runs "
                    f"code there; start it with RAY_AUTH_MODE=token, or say "
                    f"--allow-unauthenticated"
                ]
            )
        client = _client(address)
        return cls(address, _is_here(client, loopback=loopback), client)

    def jobs(self) -> list[Job]:
        """Every job that Forger submitted, the oldest first."""
        details = self._ask(lambda: self._client.list_jobs())
        found = [_job(each) for each in details if NONCE in (each.metadata or {})]
        return sorted(found, key=lambda job: job.started_ms or 0)

    def job(self, job_id: str) -> Job:
        """The job of this id. Raises ConfigError where the cluster knows none."""
        job = self.find(job_id)
        if job is None:
            raise ConfigError(
                [
                    f"the cluster at {self.address} knows no job {job_id}; `forger jobs` lists "
                    f"them (a cluster that was started anew has forgotten those before)"
                ]
            )
        return job

    def find(self, job_id: str) -> Job | None:
        """The job of this id, if the cluster knows it."""
        details = self._ask(lambda: self._client.get_job_info(job_id), absent=True)
        return None if details is None else _job(details)

    def submit(
        self,
        job_id: str,
        command: str,
        *,
        package: Path,
        variables: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> bool:
        """Starts `command` as a job where `package` is the current folder. `metadata` has NONCE.

        Returns whether the id was still free: two who submit the same at once cannot both have it.
        Raises Unreachable where it is not known whether the cluster took it.
        """
        env = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_SEC), JOB: job_id} | dict(variables)
        try:
            self._client.submit_job(
                entrypoint=command,
                submission_id=job_id,
                runtime_env={"working_dir": str(package), "env_vars": env},
                metadata=dict(metadata),
            )
        except (RuntimeError, OSError) as error:  # requests' errors are OSErrors
            try:
                job = self.find(job_id)
            except Unreachable:
                job = None
            if job is None:
                raise Unreachable(
                    f"{self.address} did not say whether it took the job ({_short(error)}); "
                    f"nothing was sent twice: `forger logs {job_id}` tells, once it answers"
                ) from error
            return job.metadata.get(NONCE) == metadata[NONCE]
        return True

    def stop(self, job_id: str) -> None:
        """Asks a job to end. It gets SIGTERM, and is killed only STOP_WAIT_SEC later."""
        self._ask(lambda: self._client.stop_job(job_id))

    def log(self, job_id: str) -> str:
        """All that the job wrote so far; '' before it began to."""
        return self._ask(lambda: self._client.get_job_logs(job_id), absent=True) or ""

    async def tail(self, job_id: str) -> AsyncGenerator[str, None]:
        """The job's log from its beginning, as it grows, until the job or the connection ends."""
        import aiohttp

        try:
            async for text in self._client.tail_job_logs(job_id):
                yield text
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise Unreachable(f"{self.address}: {_short(error)}") from error

    def _ask(self, question: Any, *, absent: bool = False) -> Any:
        """The answer; None for a thing that is not there, where it may be `absent`."""
        from ray.exceptions import AuthenticationError

        try:
            return question()
        except AuthenticationError as error:
            raise _refused(self.address) from error
        except (RuntimeError, OSError) as error:
            if absent and "status code 404" in str(error):
                return None
            raise Unreachable(f"{self.address} cannot be asked: {_short(error)}") from error


def _address() -> str:
    address = os.environ.get(ADDRESS) or os.environ.get("RAY_ADDRESS", "")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            [
                f"{ADDRESS} must be the address of the cluster's dashboard, such as "
                f"http://127.0.0.1:8265, got {os.environ.get(ADDRESS, '')!r}; `forger up` starts "
                f"a cluster on this machine and prints it"
            ]
        )
    return address.rstrip("/")


def _asks_for_token(address: str) -> bool:
    """Whether the server turns away who has none; this question carries none."""
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=ASK_SEC):
            return False
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return True
        raise ConfigError(
            [f"{ADDRESS} = {address!r} is no Ray dashboard: it answers {error.code}"]
        ) from None
    except (OSError, ValueError) as error:
        raise Unreachable(
            f"{ADDRESS} = {address!r} does not answer within {ASK_SEC:g} s "
            f"({getattr(error, 'reason', error)}); start the cluster, or correct the address; "
            f"nothing was submitted or changed"
        ) from None


def _name_token(address: str) -> None:
    """Lets Ray use the token that is there. Raises ConfigError for none, or one that others of
    this machine can read.
    """
    os.environ["RAY_AUTH_MODE"] = "token"  # else Ray's client sends none
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or "~/.ray/auth_token").expanduser()
    if not path.is_file():
        raise ConfigError(
            [
                f"the cluster at {address} asks for a token, and there is none in {path}; name "
                f"the file with RAY_AUTH_TOKEN_PATH"
            ]
        )
    status = path.stat()
    if status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(
            [f"others can read the cluster's token in {path}: chmod 600 {path}, and renew it"]
        )


def _refused(address: str) -> ConfigError:
    where = "RAY_AUTH_TOKEN"
    if not os.environ.get(where):
        where = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    return ConfigError(
        [f"the cluster at {address} refuses the token in {where}; is it another cluster's?"]
    )


def _client(address: str) -> JobSubmissionClient:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)

    class Patient(JobSubmissionClient):
        """Ray's client, which would wait for an answer for ever."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            patience = ASK_SEC if method == "GET" else SEND_SEC
            options.setdefault("timeout", patience)
            return super()._do_request(method, endpoint, **options)

    os.environ[ADDRESS] = address  # RAY_ADDRESS would win over the argument
    verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    try:
        return Patient(address, verify=verify)
    except AuthenticationError as error:
        raise _refused(address) from error
    except (RuntimeError, OSError) as error:
        raise Unreachable(f"{ADDRESS} = {address!r} cannot be asked: {_short(error)}") from None


def _is_here(client: Any, *, loopback: bool) -> bool:
    """Whether the head's name is this machine's: a tunnel too has an end on loopback."""
    if not loopback:
        return False
    try:  # as the dashboard's own page asks; there is no public call
        answer = client._do_request("GET", "/nodes?view=summary").json()
        nodes = answer["data"]["summary"]
        heads = [node["hostname"] for node in nodes if node["raylet"].get("isHeadNode")]
    except (RuntimeError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return heads[:1] == [socket.gethostname()]


def _job(details: JobDetails) -> Job:
    return Job(
        id=details.submission_id or "",
        status=str(details.status.value),
        metadata=dict(details.metadata or {}),
        message=details.message or "",
        started_ms=details.start_time,
        ended_ms=details.end_time,
        exit_code=details.driver_exit_code,
    )


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[-1] if lines else type(error).__name__)[:300]
