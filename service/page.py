"""The web page: rendered here, and kept up to date by fetching its parts again; it works without scripts, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from threading import Lock
from time import monotonic
from typing import Annotated, Any
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from ..errors import SplinterpError
from . import catalogue, commands, curves, forms, offered
from .guard import COOKIE, Access
from .jobs import ENDED, Job
from .rendering import render
from .runner import LOG
from .service import Service, describe

ON_A_PAGE = 50
SHOWN_LOG = 16 * 1024
MOST_FIELDS = 300
FRESH, MOST_KEPT = 1.0, 64
SESSION_SECONDS = 30 * 86400
# A report has scripts of its own; in a sandbox they are nobody's, and can ask for nothing here.
REPORT_POLICY = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; font-src data:"


def router(service: Service, access: Access) -> APIRouter:
    """The routes of the page."""
    page = APIRouter(default_response_class=HTMLResponse)

    def one(id: int) -> Job:
        try:
            return service.queue.get(id)
        except KeyError:
            raise HTTPException(404) from None

    def jobs_part(at: int) -> dict[str, Any]:
        counts = service.queue.counts()
        total = sum(counts.values())
        at = max(0, min(at, (total - 1) // ON_A_PAGE))
        found = service.seen(service.queue.jobs(limit=ON_A_PAGE, offset=at * ON_A_PAGE))
        pages = -(-total // ON_A_PAGE)
        return {"jobs": [describe(seen) for seen in found], "counts": counts, "at": at, "pages": pages, "total": total}

    def job_part(id: int) -> dict[str, Any]:
        job = one(id)
        log, _ = service.log(job, -SHOWN_LOG)
        run = job.work.out if job.work.command in ("train", "refit") else None
        return {
            "job": describe(service.seen([job])[0]), "log": log, "run": run, "curve": curves.curve(service.root, run) if run else None,
            "can_resume": commands.KINDS[job.work.command].resumes and job.state in ("failed", "stopped"), "ended": job.state in ENDED,
            "report": _report(service, job.work.out) if job.work.out else None, "log_file": f"{job.id}/{job.attempt}/{LOG}",
        }  # fmt: skip

    def run_part(name: str) -> dict[str, Any]:
        found = catalogue.run_at(service.root, service.root.inside(name, "run"))
        if found is None:
            raise HTTPException(404)
        job = service.job_of(name)
        return {
            "run": found, "curve": curves.curve(service.root, name), "job": job, "reports": _reports(service, name),
            "members": [m for one in found.members if (m := catalogue.run_at(service.root, service.root.path / one))],
        }  # fmt: skip

    kept: dict[tuple[str, int], tuple[float, int, str]] = {}
    rendering = Lock()

    def shared(key: tuple[str, int], make: Callable[[], str]) -> str:
        """A part that was rendered for another watcher within the last second, if no job has changed since; or a new one."""
        with rendering:  # one at a time: whoever waits finds what has just been made
            at, changed, text = kept.get(key, (-FRESH, -1, ""))
            if monotonic() - at > FRESH or changed != service.queue.changed:
                changed = service.queue.changed
                text = make()
                if len(kept) > MOST_KEPT:
                    kept.clear()
                kept[key] = monotonic(), changed, text
            return text

    @page.get("/")
    def jobs(p: Annotated[int, Query(ge=0, le=10**6)] = 0) -> str:
        return render("jobs.html", here="jobs", **jobs_part(p))

    @page.get("/part/jobs")
    def jobs_again(p: Annotated[int, Query(ge=0, le=10**6)] = 0) -> str:
        return shared(("jobs", p), lambda: render("_jobs.html", **jobs_part(p)))

    @page.get("/job/{id}")
    def job(id: int) -> str:
        return render("job.html", here="jobs", **job_part(id))

    @page.get("/part/job/{id}")
    def job_again(id: int) -> str:
        return shared(("job", id), lambda: render("_job.html", **job_part(id)))

    @page.post("/job/{id}/{what}")
    async def change(request: Request, id: int, what: str) -> Response:
        job = one(id)
        match what:
            case "stop":
                service.manager.stop(id, now="now" in await _fields(request))
            case "resume" | "retry":
                service.manager.again(id, what)
            case "sooner" | "later":
                service.set_priority(id, max(-1000, min(1000, job.priority + (1 if what == "sooner" else -1))))
            case _:
                raise HTTPException(404)
        return RedirectResponse(f"/job/{id}", 303)

    @page.get("/stores")
    def stores() -> str:
        return render("stores.html", here="stores", stores=service.catalogue.stores())

    @page.get("/runs")
    def runs() -> str:
        found = service.catalogue.runs()
        inside = {member for run in found for member in run.members}
        return render("runs.html", here="runs", runs=[run for run in found if run.name not in inside])

    @page.get("/run/{name:path}")
    def run(name: str) -> str:
        return render("run.html", here="runs", **run_part(name))

    @page.get("/part/run/{name:path}")
    def run_again(name: str) -> str:
        return render("_run.html", **run_part(name))

    @page.get("/compare")
    def compare(run: Annotated[list[str], Query(max_length=50)] = []) -> str:  # noqa: B006  FastAPI copies it
        from ..report import compare as report
        from ..report.runs import read_runs

        if not run:
            raise commands.RefusedError("Choose some runs to compare first.")
        found, lacking = read_runs([service.root.inside(name, "run") for name in run])
        return render("compare.html", here="runs", told=report.as_json(found, lacking), plots=report.plots(found))

    @page.get("/report/{name:path}")
    def report(name: str) -> Response:
        path = service.root.inside(name, "report")
        if path.suffix != ".html" or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    @page.get("/new/{command}")
    def new(request: Request, command: str) -> str:
        return form(
            command, {name: values[-1] for name, values in parse_qs(request.url.query, max_num_fields=MOST_FIELDS).items()}
        )

    @page.post("/new/{command}")
    async def submit(request: Request, command: str) -> Response:
        fields = await _fields(request)
        try:
            options, told = forms.options_of(command, fields), forms.settings_of(fields)
            made = service.submit(command, commands.arguments_from(command, options), **told)
        except SplinterpError as error:
            return HTMLResponse(form(command, fields, str(error)), 422)
        return RedirectResponse(f"/job/{made.id}", 303)

    def form(command: str, values: Mapping[str, str], problem: str = "") -> str:
        if command not in commands.KINDS:
            raise HTTPException(404)
        known = offered.commands()[command]
        return render(
            "form.html", here="new", command=known, available=list(commands.KINDS), groups=forms.fields_of(known, values), problem=problem,
            stores=[store.name for store in service.catalogue.stores()], runs=[run.name for run in service.catalogue.runs()],
            values=values, threads=service.threads, scheduler=service.slots.scheduler,
        )  # fmt: skip

    @page.get("/login")
    def login() -> str:
        return render("login.html", problem="")

    @page.post("/login")
    async def enter(request: Request) -> Response:
        if not access.is_token((await _fields(request)).get("token", "").strip()):
            return HTMLResponse(render("login.html", problem="That is not the token."), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, access.session, max_age=SESSION_SECONDS, httponly=True, samesite="strict")
        return answer

    return page


def problem(request: Request, status: int, sentence: str) -> Response:
    """A page that tells of a problem."""
    return HTMLResponse(render("problem.html", sentence=sentence), status)


async def _fields(request: Request) -> dict[str, str]:
    """The fields of a form. Raises RefusedError where the body is none."""
    try:
        found = parse_qs((await request.body()).decode("utf-8"), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise commands.RefusedError("The form cannot be read.") from None
    return {name: values[-1] for name, values in found.items()}


def _reports(service: Service, name: str) -> list[str]:
    """The pages in a run's directory, as links call them."""
    directory = service.root.inside(name, "run")
    return [quote(service.root.name(path)) for path in sorted(directory.glob("*.html")) if path.is_file()]


def _report(service: Service, out: str) -> str | None:
    """The page that a job has written, or that lies in its run."""
    if out.endswith(".html"):
        return quote(out) if (service.root.path / out).is_file() else None
    return next(iter(_reports(service, out)), None)
