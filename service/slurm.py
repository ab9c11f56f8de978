"""Jobs through Slurm: sbatch puts them in its queue, squeue says where they are, scancel stops them; all scheduling is Slurm's.

Root and service folder must lie on a file system that the compute nodes share, and this Python be there under the same path.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from ..errors import SplinterpError
from . import keeper, locks
from .jobs import Job
from .runner import LOG, Alive, Ended, Folders, Found, Gone, splinterp

SCRIPT, BEGUN = "job.sh", "begun"
LOOK_EVERY = 2.0
UNSEEN = 60.0  # seconds that a network file system may take to show what a job has written
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED")
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL", "DEADLINE")
_PATIENCE = 60.0


class SlurmRunner(Folders):
    """Jobs of Slurm's queue, found by names of their own, so that one whose number was never learnt is not submitted twice.

    Args:
        folder: of the attempts' files. root: where jobs run. options: sbatch's own, such as --partition=gpu.
    """

    name = "slurm"

    def __init__(self, folder: Path, root: Path, options: Sequence[str] = ()) -> None:
        super().__init__(folder)
        self._root, self._options = root, list(options)
        self._listed: dict[str, tuple[str, str]] = {}
        self._looked = -LOOK_EVERY
        self._missing: dict[int, float] = {}
        self._killed = set[str]()  # names; of these nothing more is written

    def start(self, job: Job, arguments: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        lock = self.begin(job)
        path = self.folder(job) / SCRIPT
        path.write_text(self.script(job, arguments), encoding="utf-8")
        try:
            # sbatch holds the job's lock: where the service dies meanwhile, the next one waits for what comes of it.
            told = _asked(["sbatch", "--parsable", *self._options, str(path)], pass_fds=(lock,))
        finally:
            os.close(lock)
        self._looked = -LOOK_EVERY
        return {"slurm": told.strip().split(";")[0]}

    def script(self, job: Job, arguments: list[str]) -> str:
        """The batch script of an attempt; every argument is quoted."""
        folder = shlex.quote(str(self.folder(job)))
        launcher = []
        if job.ranks > 1:
            launcher = [
                sys.executable,
                "-P",
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={job.ranks}",
                "-m",
                "splinterp",
            ]
        command = shlex.join([*launcher, *arguments] if launcher else splinterp(arguments))
        return "\n".join([
            "#!/bin/bash",
            f"#SBATCH --job-name={self._name(job)}",
            "#SBATCH --nodes=1 --ntasks=1",
            f"#SBATCH --cpus-per-task={job.threads * job.ranks}",
            f"#SBATCH --chdir={shlex.quote(str(self._root))}",
            f"#SBATCH --output={shlex.quote(str(self.folder(job) / LOG))} --open-mode=append",
            "#SBATCH --no-requeue",  # the service starts it again itself, with --resume
            "#SBATCH --signal=B:TERM@120",  # time for a last checkpoint before the limit
            f"touch {folder}/{BEGUN}",
            f"export OMP_NUM_THREADS={job.threads}",
            "asked=null",
            "trap 'asked=15; kill -TERM $step 2> /dev/null' TERM",  # srun hands it on
            f"srun --ntasks=1 {command} &",
            "step=$!",
            "wait $step; code=$?",
            "while kill -0 $step 2> /dev/null; do wait $step; code=$?; done",  # a trap ends the first wait
            f'echo "{{\\"code\\": $code, \\"asked\\": $asked, \\"ended\\": $(date +%s)}}" > {folder}/{keeper.EXIT}.tmp',
            f"mv {folder}/{keeper.EXIT}.tmp {folder}/{keeper.EXIT}",
            "",
        ])  # fmt: skip

    def poll(self, job: Job) -> Found:
        if ended := self.ended(job):
            self._missing.pop(job.id, None)
            # The shell tells a signal as 128 and its number.
            return Ended(128 - ended.code if ended.code > 128 else ended.code, ended.asked)
        if locks.is_held(self.lock(job)) or not self._look():
            return Alive(waiting=job.state == "starting")
        found = self._listed.get(self._name(job))
        if found and found[1] not in _OVER:
            self._missing.pop(job.id, None)
            return Alive(waiting=found[1] in _WAITING)
        begun = (self.folder(job) / BEGUN).exists()
        since = self._missing.setdefault(job.id, monotonic())
        if (begun or job.handle) and monotonic() - since < UNSEEN and self._name(job) not in self._killed:
            return Alive(waiting=not begun)
        self._missing.pop(job.id)
        # Cancelled from outside, its time limit or a node that failed: it goes on, as after any interruption.
        return Ended(-15, asked=True) if begun or job.handle else Gone(begun=False)

    def stop(self, job: Job, *, now: bool = False) -> bool:
        self._look()
        found = self._listed.get(self._name(job))
        if found is None:
            return False
        waiting = found[1] in _WAITING
        # The script hands the signal on, and writes down how the command ended.
        _asked(["scancel", *([] if now or waiting else ["--batch", "--signal=TERM"]), found[0]])
        if now or waiting:
            self._killed.add(self._name(job))
        self._looked = -LOOK_EVERY
        return True

    def _name(self, job: Job) -> str:
        root = hashlib.sha256(str(self._root).encode()).hexdigest()[:8]
        return f"splinterp-{root}-{job.id}-{job.attempt}"

    def _look(self) -> bool:
        """Ask squeue, now and then; says whether what is known is worth anything."""
        if monotonic() - self._looked < LOOK_EVERY:
            return True
        try:
            told = _asked(["squeue", "--me", "--noheader", "--format=%j|%i|%T"])
        except SplinterpError:  # its controller is away: nothing is known of any job
            return False
        parts = [line.strip().split("|") for line in told.splitlines()]
        self._listed = {part[0]: (part[1], part[2]) for part in parts if len(part) == 3}
        self._looked = monotonic()
        return True


def _asked(command: list[str], pass_fds: tuple[int, ...] = ()) -> str:
    """The output of one of Slurm's commands. Raises SplinterpError, with its own words, where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False, pass_fds=pass_fds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SplinterpError(f"{command[0]} cannot be asked: {error}.") from None
    if done.returncode:
        raise SplinterpError(f"{command[0]} refused: {done.stderr.strip() or done.returncode}.")
    return done.stdout
