"""The loop that moves jobs: recover what a restart left, watch what runs, start what may, stop what must."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

from ..errors import SplinterpError
from . import commands
from .jobs import ACTIVE, ENDED, Job
from .paths import Root
from .queue import Queue
from .runner import LOG, Alive, Ended, Gone, Runner
from .schedule import Slots, startable

EVERY, LEAST = 0.5, 0.1  # seconds
GRACE = 300.0  # seconds that a job has for its last checkpoint
MOST_RESTARTS = 20
_TAIL = 4096
_FRAME = " \t\r│╭╮╰╯─"
_NOT_FOR_JOBS = ("SPLINTERP_TOKEN", "SPLINTERP_SERVER")


class RefusedChange(SplinterpError):
    """What was asked of a job does not go with its state."""


class Manager:
    """Moves the jobs of one queue. `tick` is called by one thread (`run`); the rest by any.

    Args:
        grace: seconds between the signal that asks a job to stop and the one that ends it.
    """

    def __init__(self, queue: Queue, runner: Runner, root: Root, slots: Slots, grace: float = GRACE) -> None:
        self.queue, self.runner, self.root, self.slots, self.grace = queue, runner, root, slots, grace
        self._wake, self._closed = threading.Event(), False
        self._recovered = False
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Begin the loop, in a thread."""
        self._thread = threading.Thread(target=self._loop, name="splinterp-manager", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the loop. Jobs go on."""
        self._closed = True
        self._wake.set()
        if self._thread:
            self._thread.join()

    def wake(self) -> None:
        """Something has changed: look at once."""
        self._wake.set()

    def _loop(self) -> None:
        while not self._closed:
            begun = monotonic()
            try:
                self.tick()
            except Exception as error:  # a full disk, say: jobs are watched on when there is room again
                print(f"splinterp serve: {error!r}; trying again.", file=sys.stderr, flush=True)
            sleep(LEAST)  # however often it is woken
            self._wake.wait(max(0.0, EVERY - (monotonic() - begun)))
            self._wake.clear()

    def tick(self) -> None:
        """Look at every job that runs, and start those that may."""
        for job in self.queue.active():
            self._watch(job)
        self._recovered = True
        active = self.queue.active()
        if self.slots.has_room(active):  # else nobody need read a long queue
            for job, slot in startable(active, self.queue.jobs(("queued",)), self.slots, self._lacks):
                self._start(job, slot)

    # What clients ask for.

    def stop(self, id: int, *, now: bool = False) -> None:
        """Stop a job: one that waits at once, one that runs with a checkpoint where it has such (`now`: without).

        Raises:
            RefusedChange: it has ended. KeyError: there is none.
        """
        self.queue.get(id)
        if self.queue.change(id, ("queued",), state="stopped", ended=time(), message="Stopped before it began."):
            return
        until = time() if now else time() + self.grace
        if not self.queue.change(id, ACTIVE, state="stopping", stop_at=until, message="Asked to stop."):
            raise RefusedChange(f"Job {id} has ended; there is nothing to stop.")
        self.wake()

    def again(self, id: int, mode: commands.Mode) -> None:
        """Queue a job that has ended once more: to go on (`resume`), or anew (`retry`).

        Raises:
            RefusedChange: it has not ended, is done, or cannot be resumed. KeyError: there is none.
        """
        job = self.queue.get(id)
        if job.state not in ENDED:
            raise RefusedChange(f"Job {id} has not ended; stop it first.")
        if mode == "resume" and not commands.KINDS[job.work.command].resumes:
            raise RefusedChange(f"{job.work.command} cannot be resumed; retry it.")
        if mode == "resume" and job.state == "done":
            raise RefusedChange(f"Job {id} is done: there is nothing to resume.")
        if set(job.work.writes) & self.queue.claims():
            raise RefusedChange(f"Another job writes {job.work.out}; wait for it.")
        values: dict[str, Any] = {
            "state": "queued",
            "mode": mode,
            "ended": None,
            "stop_at": None,
            "message": "",
            "exit_code": None,
        }
        if job.begun is None:
            values["mode"] = "first"
        if not self.queue.change(id, ENDED, **values, result=None, restarts=0):
            raise RefusedChange(f"Job {id} has not ended; stop it first.")
        self.wake()

    # What becomes of a job.

    def _watch(self, job: Job) -> None:
        match self.runner.poll(job):
            case Alive() as found:
                if job.state == "starting" and not found.waiting:
                    self.queue.change(job.id, ("starting",), state="running")
                if job.state == "stopping":
                    self._press(job)
            case Ended() as ended:
                self._settle(job, ended)
            case Gone() as gone:
                self._settle_gone(job, gone)

    def _press(self, job: Job) -> None:
        if job.stop_at is not None and time() >= job.stop_at:
            self.runner.stop(job, now=True)
        elif "asked" not in job.handle and self.runner.stop(job):
            # Written down, for a second signal would not wait for the checkpoint.
            self.queue.change(job.id, ("stopping",), handle={**job.handle, "asked": time()})

    def _settle(self, job: Job, ended: Ended) -> None:
        told: dict[str, Any] = {"ended": time(), "exit_code": ended.code, "stop_at": None}
        if ended.code == 0:
            self._end(job, **told, state="done", message="", result=self._result(job))
        elif job.state == "stopping":
            self._end(job, **told, state="stopped", message=_last_line(self.runner.folder(job) / LOG) or "Stopped.")
        elif ended.asked:
            self._go_on(job, "The machine told it to end")
        else:
            self._end(job, **told, state="failed", message=self._why(job, ended.code))

    def _settle_gone(self, job: Job, gone: Gone) -> None:
        """Nobody wrote down how it ended: a machine that was restarted, or a job that was killed with its keeper."""
        if job.state == "stopping":
            self._end(job, ended=time(), state="stopped", stop_at=None, message="Killed.")
        elif not gone.begun and job.state == "starting":
            self.queue.change(job.id, ("starting",), state="queued", slot=None, handle={})
        elif self._recovered:
            why = "It ended without a word: killed by the system, perhaps for want of memory."
            self._end(job, ended=time(), state="failed", message=why)
        elif commands.is_finished(self.root, job.work, job.begun or 0.0):
            self._end(job, ended=time(), state="done", exit_code=0, message="It ended while the service was away.")
        else:
            self._go_on(job, "The machine was restarted")

    def _go_on(self, job: Job, why: str) -> None:
        """Queue a job that was interrupted from outside again, to go on where it can."""
        if job.restarts >= MOST_RESTARTS:
            self._end(
                job, ended=time(), state="failed", message=f"{why}, for the {MOST_RESTARTS + 1}th time; resume it by hand."
            )
            return
        mode = "resume" if commands.KINDS[job.work.command].resumes else "retry"
        self._end(
            job, state="queued", mode=mode, restarts=job.restarts + 1, message=f"{why}; it goes on.", slot=None, handle={}, stop_at=None
        )  # fmt: skip

    def _end(self, job: Job, **values: Any) -> None:
        self.queue.change(job.id, ACTIVE, **values)

    def _lacks(self, job: Job) -> bool:
        """Whether a queued job must wait for what it reads; if so, it says for what. Who writes that has been stopped, perhaps."""
        found = commands.lacking(self.root, job.work)
        told = f"Waits for {found}." if found else ""
        if told and told != job.message:
            self.queue.change(job.id, ("queued",), message=told)
        return bool(told)

    def _start(self, job: Job, slot: str) -> None:
        """Begin an attempt. The queue says `starting` before anything is started, and the job's lock is held as soon as something is."""
        now, since = time(), job.begun or time()
        try:
            work = commands.work_of(self.root, job.work.command, job.work.arguments)
            if (work.reads, work.writes) != (job.work.reads, job.work.writes):
                raise SplinterpError("Its paths lead elsewhere than when it was submitted; submit it again.")
            line = commands.next_arguments(self.root, job.work, job.mode, since)
        except (SplinterpError, OSError) as error:
            self.queue.change(job.id, ("queued",), state="failed", ended=now, message=str(error))
            return
        begun: dict[str, Any] = {
            "state": "starting", "attempt": job.attempt + 1, "slot": slot, "handle": {}, "line": line, "begun": since, "started": now, "message": ""
        }  # fmt: skip
        if not self.queue.change(job.id, ("queued",), **begun):
            return  # somebody has stopped it
        job = self.queue.get(job.id)
        try:
            handle = self.runner.start(job, [job.work.command, *line], environment(job))
            self.queue.change(job.id, ACTIVE, handle=handle)
        except (SplinterpError, OSError) as error:
            self._end(job, state="failed", ended=time(), message=str(error))

    def _why(self, job: Job, code: int) -> str:
        if code < 0:
            with suppress(ValueError):
                name = signal.Signals(-code).name
                return f"Killed by {name}{', perhaps for want of memory' if name == 'SIGKILL' else ''}."
        return _last_line(self.runner.folder(job) / LOG) or f"It ended with exit code {code}."

    def _result(self, job: Job) -> dict[str, Any] | None:
        if not commands.KINDS[job.work.command].as_json:
            return None
        with suppress(ValueError):
            found = json.loads(_last_line(self.runner.folder(job) / LOG))
            return found if isinstance(found, dict) else None
        return None


def environment(job: Job, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A job's environment: as many threads as it was given, and no GPU but its own."""
    told = {name: value for name, value in base.items() if name not in _NOT_FOR_JOBS}
    told["PYTHONUNBUFFERED"] = "1"
    if job.slot == "cpu":
        told |= {"OMP_NUM_THREADS": str(job.threads), "CUDA_VISIBLE_DEVICES": ""}
    elif job.slot and job.work.device in ("auto", "cuda"):  # one that names its GPU finds it among all
        told["CUDA_VISIBLE_DEVICES"] = job.slot.removeprefix("cuda:")
    return told


def _last_line(path: Path) -> str:
    """The last line of a log that says something; usage errors stand in a frame."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((told for line in reversed(lines) if (told := line.strip(_FRAME))), "")
