"""`splinterp serve`: the service on a socket, until Ctrl-C; jobs go on without it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from ..errors import SplinterpError
from .app import make_app
from .guard import LOOPBACK, Access, kept_token
from .schedule import Slots
from .service import TOKEN, Service

LOGGED = "warning"


@dataclass(frozen=True)
class ServeConfig:
    """What `splinterp serve` is told. `gpus`, `threads`: None: what the machine has. `slurm`: sbatch's options; None: no Slurm."""

    root: Path
    host: str = "127.0.0.1"
    port: int = 8321
    require_token: bool = False
    gpus: int | None = None
    threads: int | None = None
    job_threads: int | None = None
    most_jobs: int = 10_000
    grace: float = 300.0
    slurm: Sequence[str] | None = None
    slurm_jobs: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise SplinterpError(f"--port {self.port} is no port; give one from 0 (any that is free) to 65535.")
        for name in ("threads", "job_threads", "most_jobs", "slurm_jobs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SplinterpError(f"--{name.replace('_', '-')} {value} must be at least 1.")
        if self.gpus is not None and self.gpus < 0:
            raise SplinterpError(f"--gpus {self.gpus} must be zero or more.")

    @property
    def slots(self) -> Slots:
        threads = self.threads or len(os.sched_getaffinity(0))
        if self.slurm is not None:
            return Slots((), max(threads, 4096), self.slurm_jobs, scheduler="slurm")
        gpus = gpus_here() if self.gpus is None else self.gpus
        return Slots(tuple(f"cuda:{i}" for i in range(gpus)), threads)


class _Server(uvicorn.Server):
    """uvicorn's, which lets its streams know of the end: else it would wait for them."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.streams.closing = True  # pyright: ignore[reportAttributeAccessIssue, reportFunctionMemberAccess]
        super().handle_exit(sig, frame)


def serve(config: ServeConfig, tell: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        SplinterpError: the root, the address or the token's file cannot be used.
    """
    slots = config.slots
    job_threads = config.job_threads or min(8, max(1, slots.threads // 2))
    service = Service(
        config.root, slots, threads=job_threads, sbatch=config.slurm, most_jobs=config.most_jobs, grace=config.grace
    )  # fmt: skip
    try:
        access, fresh = Access(None), False
        if config.require_token or config.host not in LOOPBACK:
            token, fresh = kept_token(service.state / TOKEN)
            access = Access(token)
        with _bound(config.host, config.port) as listening:
            host = f"[{config.host}]" if ":" in config.host else config.host
            tell(
                f"Serving {service.root.path} at http://{host}:{listening.getsockname()[1]} ({_has(slots)}). Ctrl-C ends it; jobs go on."
            )
            if access.token is not None:
                kept = f"it is kept in {service.state / TOKEN}, and not shown again"
                tell(
                    f"The token, for the browser and SPLINTERP_TOKEN: {access.token} ({kept})."
                    if fresh
                    else f"Token: {service.state / TOKEN}."
                )
                tell(
                    "What goes over the wire is not encrypted: beyond a network that you trust, use ssh -L or a proxy with TLS."
                )
            app = make_app(service, access)
            server = _Server(
                uvicorn.Config(app, log_level=LOGGED, server_header=False, timeout_graceful_shutdown=5, timeout_keep_alive=30)
            )
            with suppress(KeyboardInterrupt):  # uvicorn raises the signal again that ended it
                server.run(sockets=[listening])
    finally:
        service.close()


def gpus_here() -> int:
    """How many NVIDIA GPUs the driver lists; importing torch for it would take hundreds of MB."""
    found = shutil.which("nvidia-smi")
    if found is None:
        return 0
    try:
        told = subprocess.run([found, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines()) if told.returncode == 0 else 0


def _has(slots: Slots) -> str:
    if slots.scheduler:
        return f"jobs through Slurm, {slots.most} at a time"
    gpus = f"{len(slots.gpus)} GPU{'s' * (len(slots.gpus) != 1)}, " if slots.gpus else "no GPU, "
    return f"{gpus}{slots.threads} threads"


def _bound(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise SplinterpError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); give another --host or --port."
        ) from None
