"""A sweep's directory: a run directory of each member, and sweep.json, which says what they are, and how it makes room for another sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import SplinterpError, StoreError
from ..names import is_plain
from ..store.files import Lock, read_json, temporary
from .axes import Member
from .checkpoint import CHECKPOINT
from .directory import RUN, SUMMARY, check_same, remove_run, unbegun

SWEEP = "sweep.json"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """The directory is this process's alone. Raises StoreError where another process has it."""
    lock = Lock(directory)
    try:
        yield
    finally:
        lock.release(remove=True)


def begun(out: Path) -> dict[str, Any] | None:
    """What sweep.json tells of the sweep in `out`, which may not exist; None where none has been begun.

    Raises:
        SplinterpError: `out` holds something else, or the file is damaged.
    """
    if (out / SWEEP).exists():
        return _read(out)
    if out.exists() and not unbegun(out):
        raise SplinterpError(f"{out} is not a sweep (it has no {SWEEP}); give the --out of the sweep to go on with.")
    return None


def check_goes_on(out: Path, before: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    """See that the sweep in `out`, of which sweep.json told `before`, is unfinished, and the one `described`.

    Raises:
        SplinterpError: it is finished, or something differs.
    """
    if before["state"] == "finished":
        raise SplinterpError(f"The sweep in {out} is finished: there is nothing to resume. --force trains it again.")
    was, now = list(before["members"]), list(described["members"])
    if was != now:
        raise SplinterpError(
            f"{out} was begun as a sweep of {'; '.join(was)}, and not of {'; '.join(now)}; --resume needs the same (another --out starts anew)."
        )
    for name in was:
        check_same(out / name, _compared(before, name), _compared(json.loads(json.dumps(described)), name))


def ended(out: Path, members: Sequence[Member]) -> tuple[set[str], dict[str, int]]:
    """The names of those that are finished; and of those that diverged, with the step."""
    finished = {member.name for member in members if (out / member.name / SUMMARY).exists()}
    for name in finished:  # perhaps killed between its last file and its end
        with locked(out / name):
            for path in (out / name / CHECKPOINT, temporary(out / name / CHECKPOINT)):
                path.unlink(missing_ok=True)
    told = {member.name: out / member.name / RUN for member in members if member.name not in finished}
    steps = {name: read_json(path).get("diverged") for name, path in told.items() if path.exists()}
    return finished, {name: step for name, step in steps.items() if step is not None}


def check_is_sweep(out: Path, members: Sequence[Member] = ()) -> None:
    """See that `out` holds a sweep, and no other runs where those of `members` are to be.

    Raises:
        SplinterpError: that is not so, and --force must not touch it.
    """
    if not (out / SWEEP).is_file() and unbegun(out):
        return
    if not (out / SWEEP).is_file():
        raise SplinterpError(f"{out} is not a sweep (it has no {SWEEP}), so that --force leaves it alone; give another --out.")
    own = _read(out)["members"]
    for member in members:
        if member.name not in own and (out / member.name).exists():
            raise SplinterpError(
                f"{out / member.name} is not of the sweep in {out}, so that --force leaves it alone; give another --out."
            )


def remove_sweep(out: Path) -> None:
    """Remove a sweep's runs and its own file from `out`, which this process has locked; what else lies there stays.

    Raises:
        SplinterpError: it is not a sweep, or another process works on one of its runs.
    """
    check_is_sweep(out)
    for name in _read(out)["members"]:
        directory = out / name
        if directory.is_symlink():
            raise SplinterpError(f"{directory} is a link, so that --force leaves it alone; remove it, or give another --out.")
        if not directory.is_dir():
            continue
        with locked(directory):
            if (directory / RUN).is_file():
                remove_run(directory)
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
    temporary(out / SWEEP).unlink(missing_ok=True)
    (out / SWEEP).unlink()


def _read(out: Path) -> dict[str, Any]:
    try:
        told = read_json(out / SWEEP)
        whole = all(is_plain(name) and _is_described(one) for name, one in told["members"].items())
        if whole and {"state", "started"} <= told.keys():
            return told
    except (StoreError, KeyError, TypeError, AttributeError) as error:
        raise SplinterpError(f"{out / SWEEP} is damaged ({error!r}); give another --out.") from None
    raise SplinterpError(f"{out / SWEEP} is damaged; give another --out.")


def _is_described(one: Any) -> bool:
    """Whether a member's settings are there, and their memory is one."""
    memory = one["settings"].get("memory") if isinstance(one["settings"], dict) else 0
    return memory is None or (type(memory) is int and memory > 0)


def _compared(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What must be the same of a member when the sweep is resumed."""
    # A sweep begun before there was jitter has none.
    return {"jitter": 0.0, **told["members"][name]["settings"], **{key: told.get(key) for key in ("site", "store_fingerprint")}}
