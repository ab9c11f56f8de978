"""Which queued jobs may start now: a pure function of the jobs and of what the machine has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from .jobs import Job


@dataclass(frozen=True)
class Slots:
    """What jobs share.

    Attributes:
        gpus: names of the GPUs, each for one job at a time. threads: of the CPU, over all jobs that run there.
        most: jobs at a time, of whatever kind.
        scheduler: the name of another scheduler that gives out devices itself; None: there is none.
    """

    gpus: tuple[str, ...] = ()
    threads: int = 1
    most: int = 64
    scheduler: str | None = None

    def wanted(self, device: str) -> tuple[str, ...]:
        """The slots that a job with this --device can have."""
        if self.scheduler:
            return (self.scheduler,)
        if device in ("auto", "cuda"):
            return self.gpus or (("cpu",) if device == "auto" else ())
        return (device,) if device == "cpu" or device in self.gpus else ()

    def has_room(self, active: Sequence[Job]) -> bool:
        """Whether any job at all could start beside those that run."""
        busy = {job.slot for job in active}
        threads = sum(job.threads for job in active if job.slot == "cpu")
        return len(active) < self.most and bool(self.scheduler or threads < self.threads or set(self.gpus) - busy)


def startable(
    active: Sequence[Job], queued: Sequence[Job], slots: Slots, lacking: Callable[[Job], bool] = lambda job: False
) -> list[tuple[Job, str]]:
    """(job, slot) of those queued jobs that may start, by their turn: `queued` is in order of priority.

    Args:
        lacking: whether a job would not find what it reads; it then waits, and nobody for it but those that want its files.

    Of two jobs of which one writes what the other reads or writes, the one that was submitted first comes first, whatever their priorities:
    a training waits for the harvest of its store, and a new harvest of it for the trainings. Where the next job for the CPU wants more threads
    than are free, the ones behind it wait too, so that it has its turn.
    """
    blocked = _blocked(active, queued)
    busy = Counter(job.slot for job in active)
    free = slots.threads - sum(job.threads for job in active if job.slot == "cpu")
    room, waiting, found = slots.most - len(active), False, list[tuple[Job, str]]()
    for job in queued:
        if job.id in blocked or len(found) >= room:
            continue
        if lacking(job):
            continue
        for slot in slots.wanted(job.work.device):
            if slot == "cpu":
                if waiting or min(job.threads, slots.threads) > free:
                    waiting = True
                    continue
                free -= min(job.threads, slots.threads)
            elif busy[slot] and slot != slots.scheduler:
                continue
            busy[slot] += 1
            found.append((job, slot))
            break
    return found


def _blocked(active: Sequence[Job], queued: Sequence[Job]) -> set[int]:
    """The ids of queued jobs that must wait for another one's files."""
    read, written, blocked = _Claims(), _Claims(), set[int]()
    for job in active:
        read.add(job.work.reads)
        written.add(job.work.writes)
    for job in sorted(queued, key=lambda job: job.id):
        if written.meet((*job.work.reads, *job.work.writes)) or read.meet(job.work.writes):
            blocked.add(job.id)
        read.add(job.work.reads)
        written.add(job.work.writes)
    return blocked


class _Claims:
    """Paths, and whether another one is, contains, or lies within one of them."""

    def __init__(self) -> None:
        self._paths, self._above = set[str](), set[str]()

    def add(self, claims: Iterable[str]) -> None:
        for claim in claims:
            self._paths.add(claim)
            self._above.update(map(str, PurePosixPath(claim).parents))

    def meet(self, claims: Iterable[str]) -> bool:
        return any(
            claim in self._paths or claim in self._above or not self._paths.isdisjoint(map(str, PurePosixPath(claim).parents))
            for claim in claims
        )
