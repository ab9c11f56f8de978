"""One service: a root, its queue, what runs its jobs, and what is asked of them all; the API and the page are two faces of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from time import monotonic, time
from typing import Any

from ..errors import SplinterpError
from . import commands, locks, progress
from .catalogue import Catalogue
from .jobs import ACTIVE, OPEN, Job
from .manager import Manager
from .paths import Root
from .queue import Queue
from .runner import LOG, LocalRunner, Runner
from .schedule import Slots
from .slurm import SlurmRunner

STATE = ".splinterp"  # hidden: no client can name it
QUEUE, JOBS, LOCK, TOKEN = "queue.sqlite", "jobs", "lock", "token"
LARGEST_LOG = 256 * 1024
WAITS_OLD, _REMEMBER = 5.0, 2.0


@dataclass(frozen=True)
class Seen:
    """A job with what is known of its progress. `waits`: seconds until it may begin; `expected`: that such jobs take."""

    job: Job
    progress: progress.Progress
    waits: float | None = None
    expected: float | None = None


class Service:
    """A root that is served by this process alone, from construction to `close`.

    Args:
        sbatch: arguments for Slurm's sbatch, whose queue then runs the jobs; None: this machine runs them.
        threads: that a job for the CPU gets, where it does not say.
        most_jobs: that may wait or run at a time.

    Raises:
        SplinterpError: there is no such directory, or another process serves it.
    """

    def __init__(
        self,
        root: Path,
        slots: Slots,
        *,
        threads: int = 1,
        sbatch: Sequence[str] | None = None,
        most_jobs: int = 10_000,
        grace: float = 300.0,
    ) -> None:
        self.root = Root.at(root)
        self.state = self.root.path / STATE
        self.state.mkdir(mode=0o700, exist_ok=True)
        lock = locks.acquire(self.state / LOCK)
        if lock is None:
            raise SplinterpError(f"{self.root.path} is served by another process already.")
        self._lock = lock
        self.slots, self.threads = slots, min(threads, slots.threads)
        self.queue = Queue(self.state / QUEUE, most_jobs)
        folder = self.state / JOBS
        self.runner: Runner = (
            LocalRunner(folder, self.root.path) if sbatch is None else SlurmRunner(folder, self.root.path, sbatch)
        )
        self.manager = Manager(self.queue, self.runner, self.root, slots, grace)
        self.catalogue = Catalogue(self.root)
        self._submitting = threading.Lock()
        self._looking = threading.Lock()
        self._waits: tuple[float, dict[int, float | None]] = (-WAITS_OLD, {})

    def close(self) -> None:
        """Leave the root. Jobs go on."""
        self.manager.close()
        self.queue.close()
        os.close(self._lock)

    def submit(
        self,
        command: str,
        arguments: Sequence[str],
        *,
        priority: int = 0,
        threads: int | None = None,
        ranks: int = 1,
        label: str = "",
        request: str | None = None,
    ) -> Job:
        """Queue a job.

        Raises:
            SplinterpError: it cannot be: its arguments, its paths, its device or the length of the queue.
        """
        if request is not None and (job := self.queue.of_request(request)):
            return job
        with self._submitting:  # so that no two jobs are given one output
            claims = self.queue.claims()
            work = commands.work_of(self.root, command, arguments, claims)
            if not self.slots.wanted(work.device):
                there = ", ".join(("auto", "cpu", *(("cuda",) if self.slots.gpus else ()), *self.slots.gpus))
                raise commands.RefusedError(f"There is no --device {work.device} here; there are {there}.")
            if ranks > 1 and (self.slots.scheduler is None or not commands.KINDS[command].resumes):
                raise commands.RefusedError(
                    "Several ranks are for trainings and harvests under Slurm (serve --slurm) alone; leave them out."
                )
            commands.check_places(self.root, work, claims)
            threads = min(threads or self.threads, self.slots.threads)
            job = self.queue.submit(work, priority=priority, threads=threads, ranks=ranks, label=label, request=request)
        self.manager.wake()
        return job

    def set_priority(self, id: int, priority: int) -> None:
        """Raises KeyError where there is no such job; one that has ended is left alone."""
        self.queue.get(id)
        self.queue.change(id, OPEN, priority=priority)

    def seen(self, jobs: Sequence[Job]) -> list[Seen]:
        """Jobs with their progress."""
        waits = self._waiting_times() if any(job.state == "queued" for job in jobs) else {}
        usual = {name: self._usual(name, self._when()) for name in {job.work.command for job in jobs}}
        return [
            Seen(
                job, progress.progress_of(self.root, job) if job.state in ACTIVE else progress.Progress(), waits.get(job.id),
                usual[job.work.command],
            )
            for job in jobs
        ]  # fmt: skip

    def log(self, job: Job, offset: int = 0, attempt: int | None = None) -> tuple[str, int]:
        """(the log of an attempt from `offset` on, at most LARGEST_LOG bytes; the offset to go on from). Negative: from the end.

        The offset counts bytes; characters are never cut, but for those at the edge of an offset that was made up.
        """
        path = self.state / JOBS / str(job.id) / str(attempt or job.attempt) / LOG
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                begin = max(0, size + offset) if offset < 0 else min(offset, size)
                file.seek(begin)
                data = file.read(LARGEST_LOG)
        except FileNotFoundError:
            return "", 0
        if begin + len(data) < size or data[-4:].decode("utf-8", "ignore").encode() != data[-4:]:
            data = data.decode("utf-8", "ignore").encode() or data  # what is cut off at the end comes next time
        return data.decode("utf-8", "replace"), begin + len(data)

    def job_of(self, name: str) -> Job | None:
        """The job that writes a run or store, of those that have not ended."""
        return self.queue.writer_of(self.root.claim(name))

    def _when(self) -> int:
        return int(monotonic() / _REMEMBER)

    @lru_cache(maxsize=64)  # noqa: B019  one service a process
    def _usual(self, command: str, when: int) -> float | None:
        return progress.usual(self.queue.durations(command))

    def _waiting_times(self) -> dict[int, float | None]:
        """By job; up to WAITS_OLD seconds old, for a long queue takes its time to read. One thread looks, and others take what there is."""
        at, found = self._waits
        if monotonic() - at > WAITS_OLD and self._looking.acquire(blocking=False):
            try:
                queued = self.queue.jobs(("queued",))
                active = [(job, self._left(job)) for job in self.queue.active()]
                expected = {name: self._usual(name, self._when()) for name in {job.work.command for job in queued}}
                found = progress.waiting_times(active, queued, expected, self.slots)
                self._waits = monotonic(), found
            finally:
                self._looking.release()
        return found

    def _left(self, job: Job) -> float | None:
        """Seconds until a running job ends: by its own progress, or by what such jobs take."""
        left = progress.progress_of(self.root, job).left
        if left is not None or job.started is None:
            return left
        usual = self._usual(job.work.command, self._when())
        return None if usual is None else max(0.0, usual - (time() - job.started))


def describe(seen: Seen) -> dict[str, Any]:
    """What the API says of a job."""
    job, how = seen.job, seen.progress
    return {
        "id": job.id, "command": job.work.command, "arguments": list(job.work.arguments), "command_line": job.command_line,
        "out": job.work.out, "state": job.state, "message": job.message, "label": job.label, "priority": job.priority,
        "device": job.work.device, "slot": job.slot, "threads": job.threads, "ranks": job.ranks, "attempt": job.attempt,
        "restarts": job.restarts, "submitted": job.submitted, "begun": job.begun, "started": job.started, "ended": job.ended,
        "exit_code": job.exit_code, "result": job.result, "waits_seconds": seen.waits, "expected_seconds": seen.expected,
        "progress": {
            "done": how.done, "total": how.total, "share": how.share, "rows_per_second": how.rate, "seconds_left": how.left,
            "figures": how.figures or {},
        },
    }  # fmt: skip
