"""What a target is, and what counts as a finding."""

from __future__ import annotations

import resource
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from splinterp.errors import SplinterpError

SECONDS = 5.0  # of processor time that one input may take
MEMORY = 2**30  # bytes that it may take besides what the process has


class Prepared(NamedTuple):
    """A target in a folder of its own: valid inputs to begin from, what is done with an input, and words that may stand in one, where it is of lines."""

    seeds: Sequence[bytes]
    one: Callable[[bytes], object]
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Target:
    """`reads`: what the input is, in words. `prepare`: makes valid files in an empty folder."""

    name: str
    reads: str
    prepare: Callable[[Path], Prepared]


class Finding(NamedTuple):
    """What an input brought about that it should not. `place`: the error's class and the innermost line of ours, the same for one defect."""

    place: str
    told: str


class TooLongError(Exception):
    """An input took more than SECONDS."""


def attempt(one: Callable[[bytes], object], data: bytes) -> Finding | None:
    """Give an input to a target. None: it was taken, or refused in a sentence."""
    try:
        with limited():
            one(data)
    except SplinterpError as error:
        if not str(error).strip():
            return Finding(f"empty sentence: {type(error).__name__}", "")
    except Exception as error:
        if isinstance(error, OSError) and error.errno and error.filename and error.strerror:
            return None  # the system's own refusal, which the command line tells in a sentence
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/campaigns/" not in frame.filename and "/site-packages/" not in frame.filename]
        ours = [frame for frame in ours if "/lib/python" not in frame.filename] or list(frames)
        at = f"{'/'.join(ours[-1].filename.split('/')[-2:])}:{ours[-1].lineno}"
        return Finding(f"{type(error).__name__} at {at}", "".join(traceback.format_exception(error))[-4000:])
    return None


@contextmanager
def limited() -> Iterator[None]:
    """SECONDS, told by an exception, and MEMORY, beyond which an allocation fails."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TooLongError(f"more than {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def _data_bytes() -> int:
    """Private writable memory that the process has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[5]) * resource.getpagesize()
