"""A job, as the queue keeps it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from .commands import Mode, Work

State = Literal["queued", "starting", "running", "stopping", "done", "failed", "stopped"]
ACTIVE: tuple[State, ...] = ("starting", "running", "stopping")
OPEN: tuple[State, ...] = ("queued", *ACTIVE)
ENDED: tuple[State, ...] = ("done", "failed", "stopped")
STATES: tuple[State, ...] = (*OPEN, *ENDED)


@dataclass(frozen=True)
class Job:
    """One job. Times are seconds since 1970.

    Attributes:
        priority: the higher, the sooner; jobs of one priority in the order of their ids.
        threads: that it may take on a CPU. ranks: processes of torchrun (Slurm alone; 1: without torchrun).
        mode: how its next (or present) attempt begins. attempt: how often it was started. restarts: how often of these it went on by itself.
        slot: the device it has been given, such as "cpu" or "cuda:0". handle: what the runner finds it by.
        line: the arguments of the present attempt. begun: when the first attempt began; started: the present one.
        stop_at: when it is killed, if it has not stopped by then. message: why it is in its state. result: the figures of `eval`.
    """

    id: int
    work: Work
    state: State
    priority: int
    threads: int
    ranks: int
    label: str
    mode: Mode = "first"
    attempt: int = 0
    restarts: int = 0
    slot: str | None = None
    handle: dict[str, Any] = field(default_factory=dict)
    line: tuple[str, ...] = ()
    submitted: float = 0.0
    begun: float | None = None
    started: float | None = None
    ended: float | None = None
    stop_at: float | None = None
    exit_code: int | None = None
    message: str = ""
    result: dict[str, Any] | None = None

    @property
    def command_line(self) -> str:
        """What repeats the present attempt by hand, in the service's root."""
        return _line(self.work.command, self.line or self.work.arguments)


@lru_cache(maxsize=4096)
def _line(command: str, arguments: tuple[str, ...]) -> str:
    return shlex.join(["splinterp", command, *arguments])
