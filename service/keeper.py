"""Stays with one job's process and writes down how it ended, so that the service may come and go meanwhile.

    python -I keeper.py FOLDER LOCK COMMAND …

Run as a script, in a session of its own, with the standard library alone. FOLDER gets `keeper.json` ({"keeper": [pid, started], "child":
[pid, started]}, started in the kernel's ticks since boot) and, at the end, `exit.json` ({"code", "asked", "ended"}; code as subprocess has
it, asked: whether this process was told to end, and by which signal). LOCK is the descriptor of a lock that keeper and job hold while they live.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from types import FrameType

KEEPER, EXIT = "keeper.json", "exit.json"


def started(pid: int) -> int | None:
    """When a process started, in ticks since boot: with its id it names the process for good. None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def write(path: str, value: dict[str, object]) -> None:
    """Durably replace a file as a whole."""
    beside = f"{path}.tmp"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def main(folder: str, lock: int, command: list[str]) -> None:
    asked: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    # Handlers rather than SIG_IGN, which the job would inherit. Signals go to the whole group, so that the job has them too.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, take)
    me = os.getpid()
    write(os.path.join(folder, KEEPER), {"keeper": [me, started(me)], "child": None})
    code = 127
    if asked:
        code = -asked[0]
    else:
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(lock,))
        except OSError as error:
            print(f"The command cannot be started: {error}", flush=True)
        else:
            if asked:  # before the job was there to hear it
                child.send_signal(asked[0])
            write(os.path.join(folder, KEEPER), {"keeper": [me, started(me)], "child": [child.pid, started(child.pid)]})
            code = child.wait()
    write(os.path.join(folder, EXIT), {"code": code, "asked": asked[0] if asked else None, "ended": time.time()})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
