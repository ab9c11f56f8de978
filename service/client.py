"""A service's API from Python, with the standard library alone; the command line's `submit`, `jobs`, `logs` and `stop` are this."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from ..errors import SplinterpError

DEFAULT = "http://127.0.0.1:8321"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ENDED = ("done", "failed", "stopped")
_PAUSE = 1.0


class ServiceError(SplinterpError):
    """What the service refused, in its words. `status`: HTTP's; 0: it could not be reached."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class Client:
    """One service. Jobs, stores and runs are dictionaries, as the API's description (/api/openapi.json) has them.

    Args:
        url: such as http://127.0.0.1:8321. token: where the service asks for one. patience: seconds for an answer.

    Every method raises ServiceError where the service refuses, or cannot be reached.
    """

    def __init__(self, url: str = DEFAULT, token: str | None = None, patience: float = 60.0) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise SplinterpError(f"'{url}' is no address of a service; write for example {DEFAULT}.")
        self.url, self._token, self._patience = url.rstrip("/"), token, patience
        here = urlsplit(url).hostname in _LOOPBACK
        self._opener: OpenerDirector = build_opener(*([ProxyHandler({})] if here else []))

    def submit(
        self,
        command: str,
        arguments: Sequence[str] = (),
        *,
        priority: int = 0,
        label: str = "",
        threads: int | None = None,
        ranks: int = 1,
        request: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Queue a job: `submit("train", store="acts.zarr", k=16)`, or with the command line's own `arguments`.

        Args:
            request: the same again gives the job that it made before; None: a new one, which is asked for again where the answer is lost.
        """
        told = {
            "command": command, "arguments": list(arguments), "options": options, "priority": priority, "label": label, "threads": threads,
            "ranks": ranks, "request": request or uuid.uuid4().hex,
        }  # fmt: skip
        try:
            return self._ask("POST", "/api/jobs", told)
        except ServiceError as error:
            if error.status:
                raise
        time.sleep(_PAUSE)
        return self._ask("POST", "/api/jobs", told)

    def jobs(self, *, state: Sequence[str] = (), limit: int = 100) -> dict[str, Any]:
        return self._ask("GET", "/api/jobs?" + urlencode([("limit", limit), *(("state", one) for one in state)]))

    def job(self, id: int) -> dict[str, Any]:
        return self._ask("GET", f"/api/jobs/{int(id)}")

    def stop(self, id: int, *, now: bool = False) -> dict[str, Any]:
        return self._ask("POST", f"/api/jobs/{int(id)}/stop", {"now": now})

    def resume(self, id: int) -> dict[str, Any]:
        return self._ask("POST", f"/api/jobs/{int(id)}/resume")

    def retry(self, id: int) -> dict[str, Any]:
        return self._ask("POST", f"/api/jobs/{int(id)}/retry")

    def prioritise(self, id: int, priority: int) -> dict[str, Any]:
        return self._ask("PATCH", f"/api/jobs/{int(id)}", {"priority": priority})

    def log(self, id: int, offset: int = 0, attempt: int | None = None) -> dict[str, Any]:
        """A part of a job's log: `text`, and the `offset` of the next part; a negative one counts from the end."""
        given = {"offset": offset, **({} if attempt is None else {"attempt": attempt})}
        return self._ask("GET", f"/api/jobs/{int(id)}/log?{urlencode(given)}")

    def follow_log(self, id: int, offset: int = 0) -> Iterator[str]:
        """A job's log as it grows, until it has ended; through its further attempts, too, and through restarts of the service."""
        attempt = None
        while True:
            try:
                part = self.log(id, offset)
            except ServiceError as error:
                if error.status:
                    raise
                time.sleep(_PAUSE)
                continue
            if attempt is not None and part["attempt"] != attempt:
                attempt, offset = part["attempt"], 0
                continue
            attempt, offset = part["attempt"], part["offset"]
            if part["text"]:
                yield part["text"]
            elif part["ended"]:
                return
            else:
                time.sleep(_PAUSE)

    def wait(self, id: int, *, every: float = _PAUSE) -> dict[str, Any]:
        """The job, once it has ended."""
        while True:
            try:
                job = self.job(id)
                if job["state"] in _ENDED:
                    return job
            except ServiceError as error:
                if error.status:
                    raise
            time.sleep(every)

    def stores(self) -> list[dict[str, Any]]:
        return self._ask("GET", "/api/stores")

    def runs(self) -> list[dict[str, Any]]:
        return self._ask("GET", "/api/runs")

    def run(self, name: str) -> dict[str, Any]:
        return self._ask("GET", f"/api/runs/{quote(name)}")

    def compare(self, names: Sequence[str]) -> dict[str, Any]:
        return self._ask("GET", "/api/compare?" + urlencode([("run", name) for name in names]))

    def metrics(self, run: str, offset: int = 0) -> dict[str, Any]:
        return self._ask("GET", f"/api/metrics/{quote(run)}?offset={int(offset)}")

    def events(self, run: str, offset: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
        """(event, data) of a run, as it goes: "metrics" with its new `lines`, "state", and "reset" where it went back to a checkpoint."""
        with self._open("GET", f"/api/events/runs/{quote(run)}?offset={int(offset)}", accept="text/event-stream") as answer:
            name = ""
            for raw in answer:
                line = raw.decode("utf-8").rstrip("\n")
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))

    def about(self) -> dict[str, Any]:
        return self._ask("GET", "/api/service")

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        with self._open(method, path, body) as answer:
            return json.loads(answer.read())

    def _open(self, method: str, path: str, body: Mapping[str, Any] | None = None, accept: str = "application/json") -> Any:
        headers = {"Accept": accept}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None
        if method != "GET":
            data, headers["Content-Type"] = json.dumps(body or {}).encode(), "application/json"
        try:
            return self._opener.open(Request(self.url + path, data, headers, method=method), timeout=self._patience)
        except HTTPError as error:
            with error:
                raise ServiceError(_detail(error), error.code) from None
        except (URLError, OSError) as error:
            raise ServiceError(
                f"No service answers at {self.url} ({getattr(error, 'reason', error)}); `splinterp serve` starts one.", 0
            ) from None


def _detail(error: HTTPError) -> str:
    try:
        return str(json.loads(error.read())["detail"])
    except (ValueError, KeyError, TypeError):
        return f"The service answers with {error.code} {error.reason}."
