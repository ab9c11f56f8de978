"""create(): begin a store, take over an interrupted one, or replace an old one; never lose one by accident."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ..errors import StoreError
from .files import Lock, is_temporary, read_json, remove_set_aside, set_aside, sync_folder
from .layout import KEY, LOCK, LOG, METADATA, RANKS, WRITER
from .manifest import Log
from .places import AnyPath, Location, RemotePath, on_disk, place, sizes
from .plan import RESERVED, Plan, make_plan
from .publish import publish_beginning, remove_leftovers, remove_remains
from .remote_writer import Fence, RemoteLog, remove_store
from .sound import check_line, check_pool
from .writer import Writer


def create(
    path: Location,
    *,
    sites: dict[str, int],
    dtype: str = "bfloat16",
    columns: tuple[str, ...] = (),
    rows: int | None = None,
    attributes: dict[str, Any] | None = None,
    seed: int = 0,
    memory: int = 2**30,
    resume: bool = False,
    force: bool = False,
    chunk_rows: int | None = None,
    max_norms: Mapping[str, float] | None = None,
) -> Writer:
    """Begin writing a store.

    Args:
        sites: width d of each site, by name (a hook point).
        dtype: "bfloat16", "float16" or "float32".
        columns: names of the uint32 numbers kept with every row.
        rows: how many rows are wanted; the rest is ignored. None: as many as come.
        attributes: plain JSON values saved with the store (model, dataset, ...). They must be the same when resuming, so
            give what changes from run to run (times, versions) to `Writer.finish`.
        seed: of the shuffling.
        memory: bytes that the two pool buffers together may take (one chunk each is the least).
        resume: go on with the interrupted store at `path`, or begin one if there is none.
        force: replace a splinterp store at `path`.
        chunk_rows: rows a chunk; None: 96 MiB chunks, smaller for small stores.
        max_norms: by site, the Euclidean norm above which a row is left out at all sites, and counted. When resuming, those that the
            store was begun with hold.

    Raises:
        StoreError: a parameter cannot be, `path` is taken or in use, or the interrupted store was made otherwise.
    """
    plan = make_plan(
        place(path),
        sites=sites,
        dtype=dtype,
        columns=columns,
        rows=rows,
        attributes=attributes,
        seed=seed,
        memory=memory,
        chunk_rows=chunk_rows,
        max_norms=max_norms,
    )
    return Writer(*begin(plan, resume=resume, force=force))


def begin(plan: Plan, *, resume: bool, force: bool) -> tuple[Plan, Log | RemoteLog, Lock | Fence]:
    """Take the plan's path, lock it, and publish the beginning: what a writer needs.

    Raises:
        StoreError: the path is taken or in use, or the interrupted store was made otherwise.
    """
    if resume and force:
        raise StoreError("Either go on with the old store (--resume) or replace it (--force), not both.")
    try:
        if not is_free(plan.path):
            if force:
                _remove(plan.path)
            elif not resume:
                raise taken(plan.path)
            else:
                saved = saved_attributes(plan.path)
                if isinstance(plan.path, RemotePath) and saved.get("status") != "complete":
                    # Before its fence: one who cannot go on must not stop a writer who can.
                    begun_plan(plan, saved)
        # Resolved: --force on a link to a store has removed what the link points to.
        plan.path.resolve().mkdir(parents=True, exist_ok=True)
        lock = _lock(plan.path, take_over=resume or force)
    except OSError as error:
        raise StoreError(f"{plan.path} cannot be made: {error.strerror}.") from None
    try:
        if not is_free(plan.path):
            # Somebody else may have made a store here between the first look and the lock.
            if not resume:
                raise taken(plan.path)
            saved = saved_attributes(plan.path)
            if saved.get("status") == "complete":
                # Killed in its last moment, perhaps.
                remove_remains(plan.path)
                lock.release(remove=True)
                raise StoreError(f"{plan.path} is complete; there is nothing to resume.")
            plan = begun_plan(plan, saved)
        publish_beginning(plan)
        if not isinstance(plan.path, RemotePath):
            remove_set_aside(plan.path.resolve())  # by one that was killed before it could
        log = _open_log(plan.path, lock)
        for line in log.lines.values():
            check_line(line, plan.sites, plan.arrays, plan.chunk_rows, plan.path / LOG)
        sync_folder(plan.path)
        _drop_lines_without_files(plan, log)
        return plan, log, lock
    except OSError as error:
        lock.release()
        raise StoreError(f"{plan.path} cannot be written: {error.strerror}.") from None
    except BaseException:
        lock.release()
        raise


def _lock(path: AnyPath, *, take_over: bool) -> Lock | Fence:
    return Fence(path, take_over=take_over) if isinstance(path, RemotePath) else Lock(path)


def _open_log(path: AnyPath, lock: Lock | Fence) -> Log | RemoteLog:
    if isinstance(lock, Fence):
        return RemoteLog(lock)
    return Log(on_disk(path) / LOG)


def is_free(path: AnyPath) -> bool:
    """Nothing is there, or no more than the first moments of a killed writer."""
    if isinstance(path, RemotePath):
        return not path.is_file() and all(entry.name == WRITER for entry in path.iterdir())
    if not path.exists() and not path.is_symlink():
        return True
    return path.is_dir() and all(entry.name == LOCK or is_temporary(entry.name) for entry in path.iterdir())


def taken(path: AnyPath) -> StoreError:
    try:
        saved = saved_attributes(path)
    except StoreError:
        saved = {}
    if saved.get("status") == "writing":
        # Only harvests can be resumed; imports, merges and subsets are begun again.
        resume = "" if saved.get("source") else "go on with --resume, "
        return StoreError(f"{path} exists already and is unfinished; {resume}give another name or --force.")
    return StoreError(f"{path} exists already; give another name or --force.")


def saved_attributes(path: AnyPath) -> dict[str, Any]:
    """The attributes of the splinterp store at `path`.

    Raises:
        StoreError: there is none, so nothing there is ours to change.
    """
    try:
        return dict(read_json(path / METADATA)["attributes"][KEY])
    except (StoreError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(path, RemotePath) and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # a network that fails says nothing of what is there
        raise StoreError(
            f"{path} exists and is not recognisably a splinterp store; remove it yourself or give another name."
        ) from None


def _remove(path: AnyPath) -> None:
    """Remove the splinterp store at `path`, unless somebody is writing it."""
    saved_attributes(path)
    if isinstance(path, RemotePath):
        remove_store(path)
        return
    target = path.resolve()
    with ExitStack() as locks:
        for folder in (target, *(target / RANKS).glob("*")):
            locks.callback(Lock(folder).release)
        # Renamed first: a kill half-way through leaves no half store under the name.
        set_aside(target)
    remove_set_aside(target)


def begun_plan(plan: Plan, saved: dict[str, Any]) -> Plan:
    """`plan` as the store with the attributes `saved` was begun: its pool may follow from another memory budget, its bounds on
    norms from rows that come out otherwise in their last bits elsewhere.

    Raises:
        StoreError: the store was begun with other parameters: naming the first that differs; or they are damaged.
    """
    check_pool(saved, plan.path / METADATA)
    bounds = saved.get("max_norms")
    same_sites = set(bounds or ()) == set(plan.max_norms or ())
    begun = replace(plan, pool_chunks=saved.get("pool_chunks"), max_norms=bounds if same_sites else plan.max_norms)
    asked = begun.root_attributes("writing", 0, {})
    saved = {key: value for key, value in saved.items() if key != "attributes_crc32c"} | {"rows": 0}
    keys = [*RESERVED, *sorted({*asked, *saved} - set(RESERVED))]
    # The bounds last: what the creator says of how they came about is told first.
    for key in sorted(keys, key=lambda key: key == "max_norms"):
        if saved.get(key) != asked.get(key):
            raise StoreError(
                f"{plan.path} was begun with {key} = {saved.get(key)}, not {asked.get(key)}: "
                "resume it with the same settings, or begin anew with --force."
            )
    return begun


def _drop_lines_without_files(plan: Plan, log: Log | RemoteLog) -> None:
    """A committed chunk whose file has gone or been cut no longer counts, and will be written again."""
    found = {array: sizes(plan.path / array.path) for array in plan.arrays}
    for chunk in list(log.lines):
        if any(there.get(a.chunk_name(chunk)) != a.chunk_bytes(plan.chunk_rows) for a, there in found.items()):
            log.withdraw(chunk)
    remove_leftovers(plan.path)
