"""What runs jobs: the interface, and the one that runs them here, each in a session of its own that survives the service."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import SplinterpError
from . import keeper, locks
from .jobs import Job

LOG, JOB_LOCK = "log", "lock"


@dataclass(frozen=True)
class Alive:
    """The job is there; `waiting`: it has its place in another scheduler's queue, and has not begun."""

    waiting: bool = False


@dataclass(frozen=True)
class Ended:
    """The job has ended with an exit code (minus a signal's number). `asked`: somebody told it to end, by a signal to all its processes."""

    code: int
    asked: bool


@dataclass(frozen=True)
class Gone:
    """Nothing is left of the attempt, and nothing says how it ended. `begun`: whether it had begun."""

    begun: bool


Found = Alive | Ended | Gone


class Runner(Protocol):
    """What runs jobs. An attempt's files are in `folder(job)`; `start`, `poll` and `stop` are called from one thread."""

    name: str

    def folder(self, job: Job) -> Path: ...

    def start(self, job: Job, arguments: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        """Begin an attempt with these arguments of the command line; returns what it is found by. Raises SplinterpError where it cannot."""
        ...

    def poll(self, job: Job) -> Found: ...

    def stop(self, job: Job, *, now: bool = False) -> bool:
        """Ask the job to stop (SIGTERM: it keeps what it can); `now`: end it (SIGKILL). Says whether there was somebody to hear it."""
        ...


class Folders:
    """Where attempts have their files: `<folder>/<id>/<attempt>`, and a lock for all attempts of a job."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder(self, job: Job) -> Path:
        return self._folder / str(job.id) / str(job.attempt)

    def begin(self, job: Job) -> int:
        """Make the attempt's folder, and take the job's lock: the descriptor, for the job's processes to inherit.

        Raises SplinterpError where an earlier attempt still lives.
        """
        self.folder(job).mkdir(parents=True, exist_ok=True)
        lock = locks.acquire(self.lock(job))
        if lock is None:
            raise SplinterpError("An earlier attempt of the job still runs.")
        return lock

    def lock(self, job: Job) -> Path:
        return self._folder / str(job.id) / JOB_LOCK

    def told(self, job: Job, name: str) -> dict[str, Any] | None:
        """What a file of the attempt holds; None where it is not there yet."""
        with suppress(FileNotFoundError):
            return json.loads((self.folder(job) / name).read_bytes())
        return None

    def ended(self, job: Job) -> Ended | None:
        """How the attempt ended, if that is written down."""
        told = self.told(job, keeper.EXIT)
        return None if told is None else Ended(int(told["code"]), told.get("asked") is not None)


class LocalRunner(Folders):
    """Jobs as processes of this machine, each kept by a keeper (see keeper.py). Whoever holds the job's lock is the job."""

    name = "local"

    def __init__(self, folder: Path, root: Path) -> None:
        super().__init__(folder)
        self._root = root
        self._keepers: list[subprocess.Popen[bytes]] = []

    def start(self, job: Job, arguments: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        lock = self.begin(job)
        folder = self.folder(job)
        try:
            with (folder / LOG).open("ab") as log:
                kept = subprocess.Popen(
                    [sys.executable, "-I", keeper.__file__, str(folder), str(lock), *splinterp(arguments)],
                    cwd=self._root, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True, pass_fds=(lock,),
                )  # fmt: skip
        except OSError as error:
            raise SplinterpError(f"The job cannot be started: {error.strerror}.") from None
        finally:
            os.close(lock)
        self._keepers.append(kept)
        return {"pid": kept.pid, "started": keeper.started(kept.pid)}

    def poll(self, job: Job) -> Found:
        self._keepers = [kept for kept in self._keepers if kept.poll() is None]  # reaps those that have ended
        if locks.is_held(self.lock(job)):
            return Alive()
        return self.ended(job) or Gone(begun=self.told(job, keeper.KEEPER) is not None)

    def stop(self, job: Job, *, now: bool = False) -> bool:
        told = self.told(job, keeper.KEEPER)
        if told is None:  # it has not come so far
            return False
        # The group bears the keeper's id. It is that group as long as one of the two is there, by its id and its time of start.
        if any(one and one[1] is not None and keeper.started(one[0]) == one[1] for one in (told["keeper"], told["child"])):
            with suppress(ProcessLookupError):
                os.killpg(told["keeper"][0], signal.SIGKILL if now else signal.SIGTERM)
                return True
        return False


def splinterp(arguments: Sequence[str]) -> list[str]:
    """The command line as a process. -P: what lies in the root is no Python to be imported, whatever it is called."""
    return [sys.executable, "-P", "-m", "splinterp", *arguments]
