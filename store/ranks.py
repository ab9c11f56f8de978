"""One store written by several processes: each rank writes a part of its own, and whoever ends last joins the parts.

While writing, the store holds <store>/.ranks/<rank>, each a store like any other, with its own pool, log and lock, so that every
rank is resumed for itself. Joining renames the full chunks, writes the ranks' last, partial chunks together anew, and publishes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..devices import threads_at_hand
from ..errors import StoreError
from .check import Contents, committed_lines, load
from .commit import commit_chunk
from .create import begun_plan, create, is_free, saved_attributes, taken
from .files import Lock, file_crc, read_json, sync_folder
from .layout import LOG, METADATA, RANKS, Array
from .manifest import Line, Log
from .opening import open_store
from .places import Location, RemotePath, on_disk, place
from .plan import RESERVED, Plan, make_plan
from .pool import row_norms
from .publish import publish_beginning, publish_complete, remove_remains
from .reader import Store
from .sound import check_pool
from .writer import Writer

PATIENCE = 60.0


def create_rank(
    path: Location,
    rank: int,
    world: int,
    *,
    sites: dict[str, int],
    dtype: str = "bfloat16",
    columns: tuple[str, ...] = (),
    rows: int | None = None,
    attributes: dict[str, Any] | None = None,
    seed: int = 0,
    memory: int = 2**30,
    resume: bool = False,
    chunk_rows: int | None = None,
    max_norms: Mapping[str, float] | None = None,
) -> Writer | None:
    """Begin, or with `resume` go on with, the part of rank `rank` of `world` in the store at `path`; all ranks give the same settings.

    Args:
        rows: rows wanted of all ranks together; each takes an even share. None: as many as come.
        memory: bytes that this rank's pool may take.
        max_norms: as in `create`, but the ranks' bounds may differ in their numbers: those of the rank that begins first hold for all.
        Others as in `create`. There is no `force`: a rank cannot know whether another has begun already.

    Returns:
        A writer of this rank's share, or None when the rank has ended before the resume. In both cases call `join` at the end.

    Raises:
        StoreError: a parameter cannot be, `path` is taken, or it was begun with other settings.
    """
    if not 0 <= rank < world:
        raise StoreError(f"Rank {rank} is not one of {world} ranks.")
    root = _local(path)
    plan = make_plan(
        root,
        sites=sites,
        dtype=dtype,
        columns=columns,
        rows=rows,
        attributes={**(attributes or {}), "ranks": world},
        seed=seed,
        memory=memory,
        chunk_rows=chunk_rows,
        max_norms=max_norms,
    )
    try:
        plan.path.mkdir(parents=True, exist_ok=True)
        lock = Lock(root, patience=PATIENCE)
        try:
            plan = _begin(plan, resume)
        finally:
            lock.release()
    except OSError as error:
        raise StoreError(f"{plan.path} cannot be made: {error.strerror}.") from None
    part = _part(root, rank)
    if part.exists() and not resume:
        raise taken(plan.path)
    if part.exists() and _complete(part):
        return None
    share = None if rows is None else rows * (rank + 1) // world - rows * rank // world
    if share == 0:
        raise StoreError(f"{rows} rows are too few for {world} ranks.")
    return create(
        part,
        sites=sites,
        dtype=dtype,
        columns=columns,
        rows=share,
        attributes={**plan.attributes, "rank": rank},
        seed=seed,
        memory=memory,
        resume=resume,
        chunk_rows=plan.chunk_rows,
        max_norms=plan.max_norms,
    )


def join(path: Location) -> Store | None:
    """Make one store of the ranks' parts, once all have ended; None while one has not. Whoever asks, however often: the result is the same.

    A call that is killed is simply made again. Full chunks keep their rows and are dealt from the ranks in turn; then come the
    rows of the ranks' last chunks.

    Raises:
        StoreError: there are no parts at `path`, or one is damaged, or the disk is full.
    """
    root = _local(path)
    lock = Lock(root, patience=PATIENCE)
    try:
        contents = load(root)
        if not contents.complete:
            world = contents.attributes.get("ranks")
            if not isinstance(world, int):
                raise StoreError(f"{root} is not written by ranks; there is nothing to join.")
            if not all(_complete(_part(root, rank)) for rank in range(world)):
                return None
            _join(contents, [load(_part(root, rank)) for rank in range(world)])
        remove_remains(root)  # one that was killed right after its last word may have left them
        shutil.rmtree(root / RANKS, ignore_errors=True)
        lock.release(remove=True)
        return open_store(root)
    except OSError as error:
        raise StoreError(f"{root} could not be finished: {error.strerror}. Mend that and resume any rank.") from None
    finally:
        lock.release()


def _join(contents: Contents, parts: list[Contents]) -> None:
    plan = _plan_of(contents)
    lines = [committed_lines(part) for part in parts]
    full = [[line for line in own if line.rows == plan.chunk_rows] for own in lines]
    order = [(r, own[i]) for i in range(max(map(len, full))) for r, own in enumerate(full) if i < len(own)]
    publish_beginning(plan)
    log = Log(on_disk(plan.path) / LOG)
    try:
        # The rows of the partial chunks first: they are read where they are.
        partial = [(part, own[-1]) for part, own in zip(parts, lines, strict=True) if own[-1].rows < plan.chunk_rows]
        _write_tails(plan, log, len(order), partial)
        for chunk, (r, line) in enumerate(order):
            _move(plan, parts[r], line, chunk)
            log.lines[chunk] = replace(line, chunk=chunk)
        for array in plan.arrays:
            sync_folder(plan.path / array.path)
        told = {k: v for k, v in parts[0].attributes.items() if k not in RESERVED and k not in plan.attributes and k != "rank"}
        rows, offered, outliers = (
            sum(part.attributes.get(key, 0) for part in parts) for key in ("rows", "offered_rows", "dropped_outliers")
        )
        means = {site: _mean(parts, site) for site in plan.sites}
        publish_complete(plan, log.lines, rows, offered, outliers, told, lambda: None, means)
    finally:
        log.close()


def _local(path: Location) -> Path:
    where = place(path)
    if isinstance(where, RemotePath):
        raise StoreError(
            f"{where} cannot be written by ranks, which rename files; let them write to a file system they share, and copy."
        )
    return where


def _begin(plan: Plan, resume: bool) -> Plan:
    """Make the store that holds the parts, unless another rank has; returns the plan that holds for all."""
    if is_free(plan.path):
        publish_beginning(plan)
        return plan
    saved = saved_attributes(plan.path)
    if saved.get("status") == "complete":
        if not resume:
            raise taken(plan.path)
        raise StoreError(f"{plan.path} is complete; there is nothing to resume.")
    return begun_plan(plan, saved)


def _part(root: Path, rank: int) -> Path:
    return root / RANKS / str(rank)


def _complete(part: Path) -> bool:
    return not is_free(part) and saved_attributes(part).get("status") == "complete"


def _plan_of(contents: Contents) -> Plan:
    known = contents.attributes
    check_pool(known, contents.path / METADATA)
    own = {key: value for key, value in known.items() if key not in RESERVED}
    return Plan(
        contents.path,
        known["sites"],
        known["dtype"],
        tuple(known["columns"]),
        known["planned_rows"],
        known["seed"],
        known["chunk_rows"],
        known["pool_chunks"],
        own,
        max_norms=known.get("max_norms"),
    )


def _mean(parts: list[Contents], site: str) -> np.ndarray:
    """Mean row [d] float64 of a site over all parts, from the means that they published."""
    means = [read_json(part.path / site / METADATA)["attributes"]["mean"] for part in parts]
    return np.average(means, axis=0, weights=[part.rows for part in parts])


def _move(plan: Plan, part: Contents, line: Line, chunk: int) -> None:
    """Rename a full chunk's files to where they belong; those of an earlier, killed call are there already."""
    for array in plan.arrays:
        source, target = array.chunk_path(on_disk(part.path), line.chunk), array.chunk_path(on_disk(plan.path), chunk)
        if source.exists():
            os.replace(source, target)
        elif not target.exists():
            raise StoreError(f"{source} is missing: the store cannot be joined without it.")


def _write_tails(plan: Plan, log: Log, first: int, tails: list[tuple[Contents, Line]]) -> None:
    """Write the rows of partial chunks, one rank's after the other's, as chunks `first`, `first + 1`, ..."""
    for part, line in tails:
        for array in plan.arrays:
            file = array.chunk_path(part.path, line.chunk)
            if file_crc(file)[0] != line.crc32c[array.path]:
                raise StoreError(f"{file} is damaged: it does not match its checksum, so that the store cannot be joined.")
    total = sum(line.rows for _, line in tails)
    with threads_at_hand(1, "splinterp-sums") as beside:
        for i, a in enumerate(range(0, total, plan.chunk_rows)):
            rows = {array.path: _concatenated(array, tails, a, min(total, a + plan.chunk_rows)) for array in plan.arrays}
            norms = {s: row_norms(torch.from_numpy(rows[f"{s}/acts"]).view(plan.storage.torch)).numpy() for s in plan.sites}
            commit_chunk(plan, log, first + i, rows, norms, (0, total, 0, 0, 0), beside)


def _concatenated(array: Array, tails: list[tuple[Contents, Line]], a: int, b: int) -> np.ndarray:
    """Rows [a, b) of the partial chunks taken one after the other."""
    pieces, start = [], 0
    for part, line in tails:
        first, last = max(a - start, 0), min(b - start, line.rows)
        if first < last:
            shape = (line.rows,) if array.d is None else (line.rows, array.d)
            pieces.append(
                np.memmap(array.chunk_path(on_disk(part.path), line.chunk), array.numpy, "r", shape=shape)[first:last]
            )
        start += line.rows
    return np.concatenate(pieces)
