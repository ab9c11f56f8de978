"""Commands of the service: `serve` runs it; the others speak with one."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .errors import SplinterpError
from .options import JsonOption, quantity
from .quantities import format_seconds

if TYPE_CHECKING:
    from .service.client import Client

out_console = Console()
err_console = Console(stderr=True)
SERVER, TOKEN = "SPLINTERP_SERVER", "SPLINTERP_TOKEN"
ServerOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help=f"The service. \\[default: ${SERVER}, or http://127.0.0.1:8321]"),
]
TokenOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help=f"That holds the service's token. \\[default: what ${TOKEN} holds]")
]
JobArgument = Annotated[int, typer.Argument(metavar="JOB", min=1, help="The job's number.")]


def serve(
    root: Annotated[Path, typer.Option(metavar="DIR", help="The directory of stores and runs.")] = Path("."),
    host: Annotated[
        str, typer.Option(help="The address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.")] = 8321,
    require_token: Annotated[
        bool, typer.Option("--require-token", help="Ask for a token on 127.0.0.1 too: where others have accounts here.")
    ] = False,
    gpus: Annotated[int | None, typer.Option(help="That jobs may have. \\[default: all that nvidia-smi lists]")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU, over all jobs that run there. \\[default: all]")] = None,
    job_threads: Annotated[
        int | None, typer.Option(help="Of the CPU that a job gets, where it does not say. \\[default: half of them, at most 8]")
    ] = None,
    most_jobs: Annotated[int, typer.Option(parser=quantity, help="That may wait or run at a time.")] = 10_000,
    grace: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="That a job has to stop by itself.")] = 300.0,
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="OPTIONS", help='Run jobs through Slurm, with these options of sbatch: "--partition=gpu --gres=gpu:1".'
        ),
    ] = None,
    slurm_jobs: Annotated[int, typer.Option(help="That may be in Slurm's queue at a time.")] = 20,
) -> None:
    """The trainer as a service: a queue of trainings and harvests over a directory, an API and a web page."""
    try:
        from .service.serve import ServeConfig
        from .service.serve import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "uvicorn", "starlette", "pydantic", "jinja2"):
            raise
        raise SplinterpError(f'`serve` needs {error.name}, which is not here: pip install "splinterp[serve]".') from None
    config = ServeConfig(
        root=root, host=host, port=port, require_token=require_token, gpus=gpus, threads=threads, job_threads=job_threads,
        most_jobs=most_jobs, grace=grace, slurm=None if slurm is None else shlex.split(slurm), slurm_jobs=slurm_jobs,
    )  # fmt: skip
    run(config, lambda sentence: out_console.print(sentence, markup=False, highlight=False, soft_wrap=True))


def submit(
    job: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="train, harvest, refit, encode, eval, …, with its own options.")
    ],
    server: ServerOption = None,
    token_file: TokenOption = None,
    priority: Annotated[int, typer.Option(help="The higher, the sooner.")] = 0,
    label: Annotated[str, typer.Option(help="A word of your own.")] = "",
    threads: Annotated[int | None, typer.Option(help="Of the CPU. \\[default: the service's --job-threads]")] = None,
    ranks: Annotated[int, typer.Option(help="Processes of torchrun, under Slurm.")] = 1,
) -> None:
    """Queue a job with a service: `splinterp submit train --store acts.zarr --k 16`. Paths are relative to the service's root."""
    made = _client(server, token_file).submit(job[0], job[1:], priority=priority, label=label, threads=threads, ranks=ranks)
    out_console.print(f"Job {made['id']}: {made['command_line']}", markup=False, highlight=False, soft_wrap=True)


def jobs(
    server: ServerOption = None,
    token_file: TokenOption = None,
    state: Annotated[list[str] | None, typer.Option(help="queued, running, done, failed, stopped, …; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to show.")] = 30,
    as_json: JsonOption = False,
) -> None:
    """The jobs of a service: those that run, those that wait, and those that have ended."""
    found = _client(server, token_file).jobs(state=state or (), limit=limit)
    if as_json:
        print(json.dumps(found))
        return
    for job in found["jobs"]:
        out_console.print(f"{job['id']:>5}  {job['state']:<8} {_how(job)}", markup=False, highlight=False, soft_wrap=True)
        out_console.print(f"       {job['command_line']}", style="dim", markup=False, highlight=False, soft_wrap=True)
    if found["total"] > len(found["jobs"]):
        out_console.print(f"… and {found['total'] - len(found['jobs']):,} more (--limit).")
    if not found["jobs"]:
        out_console.print("There are no jobs.")


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of its attempts. \\[default: the last one]")] = None,
    server: ServerOption = None,
    token_file: TokenOption = None,
) -> None:
    """What a job has printed."""
    client, offset = _client(server, token_file), 0
    if follow and attempt is not None:
        raise typer.BadParameter("give --follow or --attempt, not both")
    if follow:
        for text in client.follow_log(job):
            print(text, end="", flush=True)
        ended = client.job(job)
        err_console.print(f"Job {job}: {ended['state']}. {ended['message']}", style="yellow", markup=False, soft_wrap=True)
        return
    while (part := client.log(job, offset, attempt))["text"]:
        print(part["text"], end="")
        offset = part["offset"]


def stop(
    job: JobArgument,
    now: Annotated[bool, typer.Option("--now", help="At once, without a last checkpoint.")] = False,
    server: ServerOption = None,
    token_file: TokenOption = None,
) -> None:
    """Stop a job: with a checkpoint, where it has such."""
    _say(_client(server, token_file).stop(job, now=now))


def resume(job: JobArgument, server: ServerOption = None, token_file: TokenOption = None) -> None:
    """Let a training or harvest that has stopped go on where it was."""
    _say(_client(server, token_file).resume(job))


def retry(job: JobArgument, server: ServerOption = None, token_file: TokenOption = None) -> None:
    """Do a job again, anew: what it has written is replaced."""
    _say(_client(server, token_file).retry(job))


def _client(server: str | None, token_file: Path | None) -> Client:
    from .service.client import DEFAULT, Client

    token = token_file.read_text(encoding="utf-8").strip() if token_file else os.environ.get(TOKEN)
    return Client(server or os.environ.get(SERVER) or DEFAULT, token)


def _say(job: dict[str, Any]) -> None:
    out_console.print(
        f"Job {job['id']}: {job['state']}. {job['message']}".rstrip(), markup=False, highlight=False, soft_wrap=True
    )


def _how(job: dict[str, Any]) -> str:
    """How a job is getting on, in a line."""
    told = [job["label"]] if job["label"] else []
    how = job["progress"]
    if how["share"] is not None:
        told.append(f"{how['share']:.0%}")
    told += [f"{name} {value:.4g}" for name, value in how["figures"].items() if name in ("fvu", "held_out_fvu")]
    if how["seconds_left"] is not None:
        told.append(f"{format_seconds(how['seconds_left'])} left")
    if job["state"] == "queued" and job["waits_seconds"]:
        told.append(f"begins in about {format_seconds(job['waits_seconds'])}")
    if job["slot"] and job["state"] != "queued":
        told.append(f"on {job['slot']}")
    return "  ".join([*told, job["message"]]).strip()
