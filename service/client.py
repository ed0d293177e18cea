"""A small typed client of the job service, over HTTP."""

from __future__ import annotations

import builtins
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from typing_extensions import Self

from etd_ds.contract import errors, rundir
from service import pulling

ENDED = frozenset(("succeeded", "failed", "cancelled"))
_RECONNECT_SECONDS = 1.0
_RECONNECTS = 60
_BUSY = frozenset((429, 502, 503, 504))
"""What a service, or a proxy before it, answers while it is restarted."""


class ServiceError(errors.EtdError):
    """The service answered with a problem; `problem` is its document, `status` the HTTP status."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))
        self.status = status
        self.problem = problem

    @property
    def fields(self) -> list[str]:
        """The fields of the request that were refused."""
        return [str(one["field"]) for one in self.problem.get("errors", []) if one.get("field")]


@contextlib.contextmanager
def answering(url: str) -> Iterator[None]:
    """Raises `EtdError` when the service at `url`, which is asked within, does not answer."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise errors.EtdError(f"{url} does not answer ({error}); is `etd-jobs serve` running?") from None


class Client:
    """The service at `url`. Creating a job may take as long as its extraction, so that call has no time limit.

    One client may be used from several threads.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", *, key: str = "", timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def create(self, spec: Mapping[str, Any], *, idempotency_key: str = "", background: bool = False) -> dict[str, Any]:
        """Make a job of a spec: `{"layers": 3, "hidden": 192}`. Returns when the student has been extracted.

        In the `background` the extraction goes on, and the job that is returned is `extracting`.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        headers |= {"Prefer": "respond-async"} if background else {}
        job = self._json("POST", "/v1/jobs", json=dict(spec), headers=headers, timeout=None)
        return job if background else self.extracted(job)

    def extracted(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job, once it is not `extracting` any more. Raises `ServiceError` with its error if it has no student."""
        if job["status"] != "extracting":
            return job
        for event in self.events(job["id"]):
            if event["type"] == "status" and event["status"] != "extracting":
                break
        job = self.get(job["id"])
        if job["student"] is None and job["error"] is not None:
            raise ServiceError(0, {"detail": job["error"]["message"], **job["error"]})
        return job

    def plan(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """What a job of this spec would make and cost; nothing is made."""
        return self._json("POST", "/v1/plan", json=dict(spec), timeout=None)

    def get(self, job_id: str) -> dict[str, Any]:
        """The job as JSON."""
        return self._json("GET", f"/v1/jobs/{job_id}")

    def page(self, **filters: Any) -> dict[str, Any]:
        """One page: `data`, the newest jobs first, and `next`; filters are `after`, `limit`, `status`, `label`."""
        return self._json("GET", "/v1/jobs", params=filters)

    def list(self, **filters: Any) -> builtins.list[dict[str, Any]]:
        """All jobs that the filters let through, the newest first."""
        found: builtins.list[dict[str, Any]] = []
        while True:
            page = self.page(**filters)
            found += page["data"]
            if page["next"] is None:
                return found
            filters["after"] = page["next"]

    def webhook_secret(self, *, new: bool = False) -> str:
        """What webhooks are signed with; a `new` one signs from now on."""
        return str(self._json("POST" if new else "GET", "/v1/webhooks/secret")["secret"])

    def cancel(self, job_id: str) -> dict[str, Any]:
        """End the job; the answer may still say `running`, with `asked` = `cancel`."""
        return self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def pause(self, job_id: str) -> dict[str, Any]:
        """Have a job write a checkpoint and leave its slots to others."""
        return self._json("POST", f"/v1/jobs/{job_id}/pause")

    def resume(self, job_id: str) -> dict[str, Any]:
        """Queue a paused job again."""
        return self._json("POST", f"/v1/jobs/{job_id}/resume")

    def retry(self, job_id: str) -> dict[str, Any]:
        """Queue a failed or cancelled job again."""
        return self._json("POST", f"/v1/jobs/{job_id}/retry")

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended or is paused, and its files."""
        self._checked(self._http.delete(f"/v1/jobs/{job_id}"))

    def checkpoints(self, job_id: str) -> builtins.list[dict[str, Any]]:
        """The checkpoints of a job, in the order of their steps."""
        found: builtins.list[dict[str, Any]] = self._json("GET", f"/v1/jobs/{job_id}/checkpoints")["data"]
        return found

    def log(self, job_id: str, lines: int = 1000) -> str:
        """The last lines that the trainer printed."""
        return self._checked(self._http.get(f"/v1/jobs/{job_id}/log", params={"lines": lines})).text

    def follow_log(self, job_id: str, lines: int = 20) -> Iterator[str]:
        """The last lines, and those to come until the job has ended. Raises `ServiceError` if it was cut off before."""
        with self._http.stream(
            "GET", f"/v1/jobs/{job_id}/log", params={"lines": lines, "follow": True}, timeout=None
        ) as response:
            if response.is_error:
                response.read()
                self._checked(response)
            yield from _lines(response)
        if self.get(job_id)["status"] not in ENDED:
            raise ServiceError(0, {"detail": f"the log was cut off, and {job_id} goes on; ask for it again"})

    def events(self, job_id: str, after: int | None = None) -> Iterator[dict[str, Any]]:
        """Events from offset `after` on until the job has ended, each with its `id`; connects anew when cut off."""
        failures = 0
        refusal: ServiceError | None = None
        while True:
            try:
                for event in self._events_once(job_id, after):
                    failures = 0
                    after = event["id"]
                    yield event
                    if event["type"] == "status" and event["status"] in ENDED:
                        return
            except httpx.TransportError:
                refusal = None
            except ServiceError as error:
                if error.status not in _BUSY:
                    raise
                refusal = error
            failures += 1
            if failures > _RECONNECTS:
                raise refusal or ServiceError(0, {"detail": f"{self._http.base_url} does not answer any more"})
            time.sleep(_RECONNECT_SECONDS)

    def wait(self, job_id: str) -> dict[str, Any]:
        """The job, once it has ended."""
        for _ in self.events(job_id):
            pass
        return self.get(job_id)

    def pull(
        self,
        job_id: str,
        folder: Path,
        *,
        progress: Callable[[int, int], None] | None = None,
        connections: int = 4,
    ) -> builtins.list[Path]:
        """Download the student's files into `folder`, in pieces over several connections, and check their sha256.

        What was cut off before goes on; `progress` gets the bytes done and their total, from any thread.
        """
        job = self.get(job_id)
        if job["result"] is None:
            raise ServiceError(409, {"detail": f"{job_id} is {job['status']}, so it has no student to download"})
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for name, one in job["result"]["files"].items():
            if Path(name).name != name:
                raise ServiceError(0, {"detail": f"the service names a file {name!r}, which is no plain name"})
            digest = rundir.FileDigest(size=one["size"], sha256=one["sha256"])
            files[name] = (f"/v1/jobs/{job_id}/student/{name}", digest)
        try:
            pulling.Pull(self._http, self._checked, connections=connections, progress=progress).run(folder, files)
        except (pulling.Damaged, pulling.Unanswered) as failure:
            raise ServiceError(0, {"detail": str(failure)}) from None
        return [folder / name for name in sorted(files)]

    def _events_once(self, job_id: str, after: int | None) -> Iterator[dict[str, Any]]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(after)} if after is not None else {})
        with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=60.0) as response:
            if response.is_error:
                response.read()
                self._checked(response)
            event: dict[str, str] = {}
            for line in _lines(response):
                if line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    event[name] = value
                elif not line and "data" in event:
                    yield {"id": int(event.get("id", after or 0)), **json.loads(event["data"])}
                    event = {}

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._checked(self._http.request(method, path, **options)).json()
        return found

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        problem: Mapping[str, Any] = {}
        with contextlib.suppress(ValueError):
            problem = response.json()
        raise ServiceError(response.status_code, problem if isinstance(problem, dict) else {})


def _lines(response: httpx.Response) -> Iterator[str]:
    """The lines of an answer as they come. Only line feeds end them: JSON may hold other separators as they are."""
    rest = ""
    for piece in response.iter_text():
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest
