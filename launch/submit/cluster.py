"""Ray's job API, with patience: a lost connection is tried again for some time, a refusal is explained."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, cast

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from launch.submit.job import JobRequest
from trd_ray.errors import ClusterError, ConfigError, describe

log = logging.getLogger(__name__)
T = TypeVar("T")

_GATEWAY_STATUSES = (502, 503, 504)
_UNKNOWN, _UNAUTHORIZED, _FORBIDDEN = 404, 401, 403
# Ray prefers these to the address that it is given.
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
# One request, an upload of the largest package over a slow line included.
_CONNECT_S, _ANSWER_S = 10.0, 300.0


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a cluster that does not answer is asked again."""

    total_s: float = 60.0
    first_pause_s: float = 0.5
    most_pause_s: float = 5.0


class StatusError(Exception):
    """The job API answered with an HTTP status that is an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status = status
        self.text = text


class JobClient(Protocol):
    """What is used of Ray's client."""

    def submit_job(
        self,
        *,
        entrypoint: str,
        submission_id: str,
        runtime_env: dict[str, object],
        metadata: dict[str, str],
        entrypoint_num_cpus: float | None,
        entrypoint_resources: dict[str, float] | None,
    ) -> str: ...
    def get_job_info(self, job_id: str) -> JobDetails: ...
    def list_jobs(self) -> list[JobDetails]: ...
    def stop_job(self, job_id: str) -> bool: ...
    def get_job_logs(self, job_id: str) -> str: ...
    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...


class _LimitedClient(JobSubmissionClient):
    """Ray's own has no time limit on a request, and puts the status of an error into a text."""

    def _do_request(self, method: str, endpoint: str, **options: object) -> requests.Response:
        options.setdefault("timeout", (_CONNECT_S, _ANSWER_S))
        response: requests.Response = super()._do_request(method, endpoint, **options)
        if response.status_code in _GATEWAY_STATUSES:
            self._raise_error(response)
        return response

    def _raise_error(self, r: requests.Response) -> None:
        raise StatusError(r.status_code, r.text)


def connect(address: str) -> JobClient:
    """A client whose first request was answered. Raises what `requests` and Ray raise."""
    # Ray tells of each upload and of each connection's end.
    for module in ("dashboard_sdk", "job.sdk"):
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    with _without(_ADDRESS_VARIABLES):
        return cast("JobClient", _LimitedClient(address))


class Cluster:
    """The job API of one cluster.

    Each method raises `ClusterError` when the cluster does not answer within the patience or answers with
    an error, and `ConfigError` when it refuses this user or knows no such job.
    """

    def __init__(
        self,
        address: str,
        *,
        connect: Callable[[str], JobClient] = connect,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address = address
        self.patience = patience or Patience()
        self._connect = connect
        self._clock = clock
        self._sleep = sleep
        self._client: JobClient | None = None

    def check(self) -> None:
        """Ask for the version: the cheapest question, which tells whether the rest makes sense."""
        self._call("its version", lambda _: None)

    def submit(self, request: JobRequest, package: Path) -> str:
        """Send the package, if the cluster does not have it, and start the job."""

        def send(client: JobClient) -> str:
            try:
                return client.submit_job(
                    entrypoint=request.entrypoint,
                    submission_id=request.submission_id,
                    runtime_env={"working_dir": str(package), "env_vars": dict(request.env_vars)},
                    metadata=dict(request.metadata),
                    entrypoint_num_cpus=request.num_cpus or None,
                    entrypoint_resources=dict(request.resources) or None,
                )
            except StatusError as error:
                # The answer to an earlier try was lost on the way.
                if request.submission_id in error.text and "already exists" in error.text:
                    return request.submission_id
                raise

        return self._call("to start a job", send)

    def job(self, job_id: str) -> JobDetails:
        """What is known of one job."""
        return self._call("about a job", lambda client: client.get_job_info(job_id), job_id=job_id)

    def jobs(self) -> list[JobDetails]:
        """All jobs that the cluster remembers."""
        return self._call("for its jobs", lambda client: client.list_jobs())

    def stop(self, job_id: str) -> bool:
        """Ask a job to stop. False if it had ended."""
        return self._call("to stop a job", lambda client: client.stop_job(job_id), job_id=job_id)

    def logs(self, job_id: str) -> str:
        """All that a job has printed until now."""
        return self._call("for a job's log", lambda client: client.get_job_logs(job_id), job_id=job_id)

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """A job's log from its beginning, as it grows. One connection; raises what it raises."""
        return self._call("for a job's log", lambda client: client.tail_job_logs(job_id))

    def _call(self, what: str, ask: Callable[[JobClient], T], *, job_id: str | None = None) -> T:
        began, pause_s, tries = self._clock(), self.patience.first_pause_s, 0
        while True:
            tries += 1
            try:
                if self._client is None:
                    self._client = self._connect(self.address)
                return ask(self._client)
            except AuthenticationError as error:
                raise self._refused(error) from error
            except requests.exceptions.SSLError as error:
                raise self._no_answer(what, error, tries=1, took_s=0.0) from error
            except StatusError as error:
                if error.status not in _GATEWAY_STATUSES:
                    raise self._bad_status(what, error, job_id=job_id) from error
                lost: Exception = error
            except (ConnectionError, requests.exceptions.RequestException) as error:
                lost = error
            waited_s = self._clock() - began
            if waited_s + pause_s > self.patience.total_s:
                raise self._no_answer(what, lost, tries=tries, took_s=waited_s) from lost
            if tries == 1:
                log.warning(
                    "%s does not answer; it is asked again for %.0f s", self.address, self.patience.total_s
                )
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, self.patience.most_pause_s)

    def _no_answer(self, what: str, error: Exception, *, tries: int, took_s: float) -> ClusterError:
        return ClusterError(
            describe(
                "the cluster does not answer",
                where=f"--address {self.address}, asked {what}",
                got=f"{_innermost(error)} ({tries} tries in {took_s:.0f} s)",
                expected="the dashboard of a running Ray cluster",
                remedy="check host and port; `ray start --head` needs --dashboard-host with an address that "
                "is reached from here; or open a tunnel to it: ssh -L, kubectl port-forward",
            )
        )

    def _bad_status(self, what: str, error: StatusError, *, job_id: str | None) -> Exception:
        if error.status in (_UNAUTHORIZED, _FORBIDDEN):
            return self._refused(error)
        if error.status == _UNKNOWN and job_id is not None:
            return ConfigError(
                describe(
                    "the cluster knows no such job",
                    where=f"--address {self.address}",
                    got=job_id,
                    expected="the id of a job of this cluster",
                    remedy="list them: trd-ray submit status --address " + self.address,
                )
            )
        lines = [line for line in error.text.strip().splitlines() if line.strip()]
        return ClusterError(
            describe(
                "the cluster answers with an error",
                where=f"--address {self.address}, asked {what}",
                got=f"HTTP {error.status}: {lines[-1] if lines else 'no text'}",
                expected="an answer of Ray's job API (Ray 2.60 is what trd-ray is tested with)",
                remedy="check that the address is the dashboard's; the head's dashboard.log says more",
            )
        )

    def _refused(self, error: Exception) -> ConfigError:
        missing = "Missing" in str(error) or "required" in str(error)
        got = "it wants a token, and none was sent" if missing else "it does not take the token that was sent"
        return ConfigError(
            describe(
                "the cluster refuses this user",
                where=f"--address {self.address}",
                got=f"{got} ({token_source()})",
                expected="the token that the cluster was started with",
                remedy="`ray get-auth-token` on the head shows it; put it into ~/.ray/auth_token, into a "
                "file that RAY_AUTH_TOKEN_PATH names, or into RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token",
            )
        )


def token_source() -> str:
    """Where Ray would take a token from, never the token."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return f"RAY_AUTH_MODE={os.environ['RAY_AUTH_MODE']} switches tokens off"
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return f"{name} is set"
    file = Path.home() / ".ray" / "auth_token"
    return f"{file} is there" if file.is_file() else f"RAY_AUTH_TOKEN is not set, and there is no {file}"


def _innermost(error: BaseException) -> str:
    """What happened at the socket, out of what was wrapped around it."""
    seen: BaseException = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    text = str(seen).splitlines()
    return f"{type(seen).__name__}: {text[0]}" if text else type(seen).__name__


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    taken: Mapping[str, str] = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)
