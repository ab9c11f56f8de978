"""flock: who is alive is told by the kernel, which frees a lock when the last process that has it open is gone."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..errors import SplinterpError


def acquire(path: Path) -> int | None:
    """A descriptor that holds the exclusive lock on `path`, which is made if need be; None where somebody else holds it.

    A process that inherits the descriptor holds the lock too, and goes on holding it when this one has gone.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as error:
        os.close(fd)
        raise SplinterpError(
            f"{path} cannot be locked ({error.strerror}); the service's own folder must lie on a disk that knows flock."
        ) from None
    return fd


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on `path`."""
    if not path.exists():
        return False
    fd = acquire(path)
    if fd is None:
        return True
    os.close(fd)
    return False


def is_seen(path: Path) -> bool:
    """Whether the kernel's list has a lock on `path`: for files of others, whom a try to lock it might just then keep out."""
    try:
        found = path.stat()
        listed = Path("/proc/locks").read_text(encoding="ascii")
    except OSError:
        return False
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any(name in line.split() for line in listed.splitlines())
