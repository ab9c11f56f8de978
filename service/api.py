"""The HTTP API: jobs, stores, runs. Everything that changes something is a POST or PATCH with a JSON body."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, HTTPException, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from .. import __version__
from ..errors import SplinterpError
from . import catalogue, commands, models, offered
from .events import MOST, Streams
from .follow import METRICS, lines_from
from .jobs import ENDED, Job, State
from .manager import RefusedChange
from .queue import QueueFullError
from .service import Service, describe

Id = Annotated[int, Path(ge=1, le=models.LARGEST_ID)]
Name = Annotated[str, Path(max_length=600)]
Offset = Annotated[int, Query(ge=-(2**40), le=2**40)]
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {"model": models.Problem, "description": told}
    for code, told in {
        400: "Not JSON.", 401: "A token is needed.", 403: "Another site's page.", 413: "Too large.", 421: "Another host.", 422: "It cannot be.",
        429: "The queue is full.",
    }.items()
}  # fmt: skip
MISSING: dict[int | str, dict[str, Any]] = {404: {"model": models.Problem, "description": "There is none."}}
ENDED_ALREADY: dict[int | str, dict[str, Any]] = {
    409: {"model": models.Problem, "description": "It does not go with the job's state."}
}


def router(service: Service, streams: Streams) -> APIRouter:
    """The routes under /api."""
    api = APIRouter(prefix="/api", responses=REFUSALS)

    def one(id: int) -> Job:
        try:
            return service.queue.get(id)
        except KeyError:
            raise HTTPException(404, f"There is no job {id}.") from None

    def told(id: int) -> dict[str, Any]:
        return describe(service.seen([one(id)])[0])

    def run_at(name: str) -> catalogue.RunFound:
        found = catalogue.run_at(service.root, service.root.inside(name, "run"))
        if found is None:
            raise HTTPException(404, f"There is no run at {name}.")
        return found

    @api.get("/service", response_model=models.ServiceOut)
    def about() -> dict[str, Any]:
        """What this service is, and what it has."""
        slots = service.slots
        return {
            "version": __version__, "root": str(service.root.path), "runner": service.runner.name, "gpus": list(slots.gpus),
            "threads": slots.threads, "counts": service.queue.counts(),
        }  # fmt: skip

    @api.get("/commands", response_model=list[models.CommandOut])
    def kinds() -> list[dict[str, Any]]:
        """The commands that may be jobs, with the options that the command line gives them."""
        found = offered.commands()
        return [asdict(found[name]) for name in commands.KINDS]

    @api.post("/jobs", response_model=models.JobSeen, status_code=201)
    def submit(job: models.Submission) -> dict[str, Any]:
        """Queue a job; once this is answered, it is kept."""
        arguments = [*commands.arguments_from(job.command, job.options), *job.arguments]
        made = service.submit(
            job.command, arguments, priority=job.priority, threads=job.threads, ranks=job.ranks, label=job.label, request=job.request
        )  # fmt: skip
        return told(made.id)

    @api.get("/jobs", response_model=models.JobList)
    def jobs(
        state: Annotated[list[State] | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0, le=2**40)] = 0,
    ) -> Response:
        """Those that run, then those that wait, in the order of their turn, then those that ended, the last one first."""
        states, counts = tuple(state or ()), service.queue.counts()
        listed = models.JobList.model_validate(
            {
                "total": sum(n for name, n in counts.items() if not states or name in states),
                "counts": counts,
                "jobs": [describe(seen) for seen in service.seen(service.queue.jobs(states, limit, offset))],
            }
        )
        # Written by pydantic at once: of 1,000 jobs the framework's way (Python's objects, then json) takes twice as long.
        return Response(listed.model_dump_json(), media_type="application/json")

    @api.get("/jobs/{id}", response_model=models.JobSeen, responses=MISSING)
    def job(id: Id) -> dict[str, Any]:
        return told(id)

    @api.patch("/jobs/{id}", response_model=models.JobSeen, responses=MISSING)
    def change(id: Id, change: models.Change) -> dict[str, Any]:
        """Give a job that waits another turn."""
        one(id)
        service.set_priority(id, change.priority)
        return told(id)

    @api.get("/jobs/{id}/log", response_model=models.LogPart, responses=MISSING)
    def log(id: Id, offset: Offset = 0, attempt: Annotated[int | None, Query(ge=1, le=2**31)] = None) -> dict[str, Any]:
        """A part of what a job has printed, of its last attempt or another one; a negative offset counts from the end."""
        found = one(id)
        text, after = service.log(found, offset, attempt)
        ended = found.state in ENDED or (attempt is not None and attempt < found.attempt)
        return {"text": text, "offset": after, "attempt": attempt or found.attempt, "ended": ended}

    @api.post("/jobs/{id}/stop", response_model=models.JobSeen, responses={**MISSING, **ENDED_ALREADY})
    def stop(id: Id, how: Annotated[models.Stop, Body()] = models.Stop()) -> dict[str, Any]:  # noqa: B008  it is never changed
        """Stop a job: with a checkpoint, where it has such."""
        one(id)
        service.manager.stop(id, now=how.now)
        return told(id)

    @api.post("/jobs/{id}/resume", response_model=models.JobSeen, responses={**MISSING, **ENDED_ALREADY})
    def resume(id: Id) -> dict[str, Any]:
        """Queue an interrupted training or harvest again, to go on where it was."""
        one(id)
        service.manager.again(id, "resume")
        return told(id)

    @api.post("/jobs/{id}/retry", response_model=models.JobSeen, responses={**MISSING, **ENDED_ALREADY})
    def retry(id: Id) -> dict[str, Any]:
        """Queue a job again, to be done anew: what it has written is replaced."""
        one(id)
        service.manager.again(id, "retry")
        return told(id)

    @api.get("/stores", response_model=list[models.StoreOut])
    def stores() -> list[dict[str, Any]]:
        return [asdict(store) for store in service.catalogue.stores()]

    @api.get("/stores/{name:path}", response_model=models.StoreOut, responses=MISSING)
    def store(name: Name) -> dict[str, Any]:
        found = catalogue.store_at(service.root, service.root.inside(name, "store"))
        if found is None:
            raise HTTPException(404, f"There is no store at {name}.")
        return asdict(found)

    @api.get("/runs", response_model=list[models.RunOut])
    def runs() -> list[dict[str, Any]]:
        """The latest first."""
        return [asdict(run) for run in service.catalogue.runs()]

    @api.get("/runs/{name:path}", response_model=models.RunOut, responses=MISSING)
    def run(name: Name) -> dict[str, Any]:
        return asdict(run_at(name))

    @api.get("/metrics/{name:path}", response_model=models.MetricsPart, responses=MISSING)
    def metrics(name: Name, offset: Annotated[int, Query(ge=0, le=2**40)] = 0) -> dict[str, Any]:
        """A run's figures from an offset of its metrics.jsonl on."""
        run_at(name)
        lines, after = lines_from(service.root.inside(name, "run") / METRICS, offset)
        return {"lines": lines, "offset": after}

    @api.get("/compare", responses=MISSING)
    def compare(run: Annotated[list[str], Query(min_length=1, max_length=50)]) -> dict[str, Any]:
        """What `splinterp compare --json` says of runs."""
        from ..report import compare as report
        from ..report.runs import read_runs

        found, lacking = read_runs([service.root.inside(name, "run") for name in run])
        return report.as_json(found, lacking)

    @api.get("/events/queue", include_in_schema=True, response_class=StreamingResponse)
    async def queue_events() -> StreamingResponse:
        """Server-sent events: the queue's counts, with every change."""
        return _stream(streams, streams.queue(service.queue.counts, lambda: service.queue.changed))

    @api.get("/events/runs/{name:path}", response_class=StreamingResponse)
    async def run_events(
        name: Name, offset: Annotated[int, Query(ge=0, le=2**40)] = 0, last_event_id: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        """Server-sent events: a run's figures from an offset of its metrics.jsonl on (or from the last event), and its state."""
        directory = service.root.inside(name, "run")
        if last_event_id and last_event_id.isdigit() and len(last_event_id) < 14:
            offset = int(last_event_id)

        def state() -> str:
            job = service.job_of(name)
            if job is not None:
                return job.state
            found = catalogue.run_at(service.root, directory)
            return found.state if found else "missing"

        return _stream(streams, streams.run(directory, offset, state))

    return api


def _stream(streams: Streams, events: Any) -> StreamingResponse:
    if streams.open >= MOST:
        raise HTTPException(503, "As many streams are open as the service keeps.")
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def status_of(error: SplinterpError) -> int:
    """The HTTP status that tells of an error."""
    if isinstance(error, QueueFullError):
        return 429
    return 409 if isinstance(error, RefusedChange) else 422


def told_problem(request: Request, error: Exception) -> tuple[int, str]:
    assert isinstance(error, SplinterpError)
    return status_of(error), str(error)
