"""The command line itself, and the service's forms, jobs and requests."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer.main
from splinterp import cli, harvest
from splinterp.errors import SplinterpError
from splinterp.sae import save_sae
from splinterp.service import commands, forms, offered
from splinterp.service.guard import Access, Guard
from splinterp.service.models import Submission
from splinterp.service.paths import Root
from starlette.datastructures import Headers

from .kit import Prepared, Target
from .results import leave_run
from .saes import an_sae
from .stores import make

# Neither long nor on a network; `harvest` and `train` are stopped where they have said what they will do.
HARMLESS = ("harvest", "import", "info", "verify", "merge", "subset", "copy", "train", "eval", "encode", "refit", "compare", "report", "spectrum", "export", "--help", "--version")  # fmt: skip
LINES = (
    "info acts.zarr --json", "verify acts.zarr --full", "compare one two --json", "import rows.npy --out new.zarr --site s", "merge acts.zarr acts.zarr --out m.zarr --force",
    "subset acts.zarr --out s.zarr --rows 10 --position 3", "copy acts.zarr c.zarr --compress --force", "train --store acts.zarr --k 2 --latents 5 --sweep seed=0,1",
    "train --store acts.zarr --lr auto --ridge 0.1 --jitter 0.2 --memory 1GiB --batch-size 10k --resume --out r", "eval sae --store acts.zarr --encoder omp --k 2 --json",
    "encode sae --store acts.zarr --out codes.zarr --split held_out --force", "refit sae --store acts.zarr --out refitted --ridge auto --force",
    "report sae --store acts.zarr --out r.html --latent 3 --force", "spectrum sae --store acts.zarr", "export sae --to saelens --out e",
    "harvest --model tiny --layer 2 --dataset text.jsonl::0.5 --tokens 10k --positions 1:64,last --memory 1GiB", "harvest --model model --dataset stdlib --dry-run", "--debug info acts.zarr", "gap --help",
)  # fmt: skip


def _safe(arguments: list[str]) -> bool:
    """Whether a line stays in its folder, off the network and short."""
    if not arguments or (arguments[0] not in HARMLESS and "--help" not in arguments):
        return False
    text = " ".join(arguments)
    outside = any(
        part.startswith(("/", "~")) for one in arguments for part in (one, one.partition("=")[2], one.partition(":")[2])
    )
    return not outside and ".." not in text and "://" not in text and "hub" not in text and "cuda" not in text


@contextmanager
def quiet() -> Iterator[None]:
    """Standard output as a pipe's in a UTF-8 world, thrown away; consoles that were made at import follow it."""
    old = sys.stdout, sys.stderr
    with (
        open(os.devnull, "w", encoding="utf-8") as out,
        open(os.devnull, "w", encoding="utf-8", errors="backslashreplace") as err,
    ):
        sys.stdout, sys.stderr = out, err
        try:
            yield
        finally:
            sys.stdout, sys.stderr = old


def command_line(folder: Path) -> Prepared:
    """Arguments, one a line."""
    import datasets  # noqa: F401  it takes more memory than an input may
    import numpy as np

    made, here = folder / "made", folder / "here"
    make(made / "acts.zarr")
    save_sae(an_sae(), made / "sae")
    for name in ("one", "two"):
        leave_run(made / name)
    np.save(made / "rows.npy", np.ones((300, 3), np.float32))
    (made / "text.jsonl").write_text('{"text": "def f(): return 1"}\n')
    shutil.copytree(made, here)
    names = sorted(path.name for path in made.iterdir())
    built = typer.main.get_command(cli.app)  # anew with every call it takes most of the time

    def one(data: bytes) -> None:
        # With it a refusal would be an exception; and no system passes a zero byte on.
        arguments = [a for a in data.replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n") if a != "--debug"]
        if not _safe(arguments):
            return
        if sorted(path.name for path in here.iterdir()) != names:
            shutil.rmtree(here)
            shutil.copytree(made, here)
        before = Path.cwd()
        os.chdir(here)
        try:
            with stopped_short(), quiet(), patch.object(typer.main, "get_command", lambda app: built):
                cli.main(arguments)
        except SystemExit as end:
            if end.code not in (0, 1, 2, None):
                raise AssertionError(f"exit code {end.code}") from None
        finally:
            os.chdir(before)

    seeds = ["\n".join(line.split(" ")).encode() for line in LINES]
    for seed in seeds:  # what they import takes seconds
        one(seed)
    flags = [
        flag
        for name in HARMLESS
        if name in offered.commands()
        for o in offered.commands()[name].options
        for flag in (o.flag, o.off)
        if flag
    ]
    return Prepared(
        seeds,
        one,
        (*dict.fromkeys((*HARMLESS, *flags, *names)), "auto", "10k", "0.5", "held_out", "tiny", "stdlib", "k=2,4", "h", "topk"),
    )


@contextmanager
def stopped_short() -> Iterator[None]:
    """Harvest and train go as far as their plan."""

    def stopped(*_: object, **__: object) -> Any:
        raise SplinterpError("That is enough.")

    job = importlib.import_module("splinterp.train.job").Job
    with ExitStack() as stack:
        for where, name in ((harvest, "harvest"), (harvest, "probe"), (job, "train"), (job, "train_sweep")):
            stack.enter_context(patch.object(where, name, stopped))
        yield


def forms_and_jobs(folder: Path) -> Prepared:
    """A submission, or a form's fields, as JSON."""
    root = Root.at(folder)
    make(folder / "acts.zarr")
    (folder / "link").symlink_to("/")

    def one(data: bytes) -> None:
        try:
            told = json.loads(data)
        except (ValueError, RecursionError):
            return
        if not isinstance(told, dict):
            return
        if isinstance(fields := told.get("fields"), dict):
            text = {str(k): str(v) for k, v in fields.items()}
            forms.settings_of(text)
            command = str(told.get("command"))
            arguments = commands.arguments_from(command, forms.options_of(command, text))
        else:
            try:
                job = Submission.model_validate(told)
            except ValueError:
                return
            command, arguments = job.command, [*commands.arguments_from(job.command, job.options), *job.arguments]
        work = commands.work_of(root, command, arguments)
        for claim in (*work.reads, *work.writes):
            assert (root.path / claim).resolve().is_relative_to(root.path)
        commands.check_places(root, work)
        commands.lacking(root, work)

    seeds: list[dict[str, Any]] = [
        {
            "command": "train",
            "arguments": ["--store", "acts.zarr", "--k", "2"],
            "options": {"seed": 1, "sweep": ["k=1,2"]},
            "priority": 3,
        },
        {"command": "harvest", "options": {"model": "tiny", "tokens": "10k", "dataset": ["stdlib::2"], "out": "x/y.zarr"}},
        {
            "command": "train",
            "fields": {"store": "acts.zarr", "k": "2", "job_priority": "-3", "job_label": "x", "sweep": "k=1\nseed=2"},
        },
        {"command": "eval", "arguments": ["link/etc", "--store=acts.zarr", "--encoder", "mlp:acts.zarr"]},
    ]
    assert set(offered.commands()) >= {"train", "harvest", "eval"}
    return Prepared([json.dumps(seed).encode() for seed in seeds], one)


def requests(folder: Path) -> Prepared:
    """A request's method, path and headers, a line each, as the guard looks at them before anything else."""
    guards = [Guard(None, Access(token)) for token in (None, "t" * 40)]  # pyright: ignore[reportArgumentType]

    def one(data: bytes) -> None:
        lines = data.split(b"\n")
        headers = [tuple(part.strip() for part in line.split(b":", 1)) for line in lines[2:] if b":" in line]
        scope = {
            "type": "http",
            "method": lines[0].decode("latin-1"),
            "path": lines[1].decode("latin-1") if lines[1:] else "/",
            "headers": [(k.lower(), v) for k, v in headers],
        }
        for guard in guards:
            guard._refused(scope)
        length = Headers(scope=scope).get("content-length")
        if length is not None:
            _length(guards[0], scope)

    seeds = [
        b"GET\n/api/jobs\nHost: 127.0.0.1:8321", b"POST\n/api/jobs\nHost: localhost\nOrigin: http://localhost\nContent-Length: 12", b"GET\n/\nHost: [::1]:80\nCookie: splinterp=abc; a=b",
        b"POST\n/\nHost: x\nAuthorization: Bearer abc\nSec-Fetch-Site: same-origin\nAccept: text/html",
    ]  # fmt: skip
    return Prepared(seeds, one)


def _length(guard: Guard, scope: dict[str, Any]) -> None:
    import asyncio

    from splinterp.service.guard import _body

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(_body(scope, receive))  # pyright: ignore[reportArgumentType]


TARGETS = (
    Target("command line", "arguments of the commands", command_line),
    Target("jobs", "what is submitted to the service, as JSON and as a form", forms_and_jobs),
    Target("requests", "a request's head, before the service's guard", requests),
)
