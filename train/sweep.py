"""Several SAEs from one pass over a store: the runs of a sweep are trained together, and each batch is read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import Interrupted, SplinterpError
from ..store import Store
from ..store.files import read_json
from .axes import Member, axes_of
from .budget import shares
from .directory import SUMMARY, note_divergence, timestamp, write_json
from .loop import Progress
from .rows import Rows
from .run import GOES_ON, check_beginning, take_steps
from .stages import Run
from .sweep_directory import SWEEP, begun, check_goes_on, check_is_sweep, ended, locked, remove_sweep
from .training import CHECKPOINT_EVERY, Diverged, Tell


@dataclass(frozen=True)
class MemberResult:
    """What came of a member: its `summary`, or the step by which it `diverged`."""

    member: Member
    directory: Path
    summary: Mapping[str, Any] | None
    diverged: int | None


def train_sweep(
    store: Store,
    site: str | None,
    members: Sequence[Member],
    out: Path,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    force: bool = False,
    *,
    resume: bool = False,
    checkpoint_every: float = CHECKPOINT_EVERY,
    logger: str = "none",
    tell: Tell = lambda sentence: None,
) -> list[MemberResult]:
    """Train all members on a site's training rows, reading each batch once, and leave a run directory of each in `out`.

    Each directory is what `train` leaves with the member's settings: on a CPU to the bit, but for times. `out` holds `sweep.json` besides:
    the members' settings, and at the end their figures. Of the memory for statistics and solves (the `memory` of the members' settings,
    which is theirs together) each has its share. A member that diverges is told of and left, and the others go on. Last solves come one
    after another, when the steps of all are done.

    Args: as those of `train`; `force` and `resume` are about the sweep in `out`.

    Raises:
        SplinterpError: as from `train`; or all members diverged.
        Interrupted: on a Ctrl-C or SIGTERM; says what is kept.
    """
    check_beginning(store, out, logger, resume=resume, force=force)
    rows = Rows.of(store, store.site(site).name, torch.device(device))
    before = begun(out) if resume else None
    members = _with_memory(members, rows, before)
    described: dict[str, Any] = {
        "store": str(store.path.resolve()), "store_fingerprint": store.fingerprint, "site": rows.site, "started": timestamp(), "state": "training",
        "axes": axes_of(members), "members": {member.name: {"values": dict(member.values), "settings": asdict(member.config)} for member in members},
    }  # fmt: skip
    diverged: dict[str, int] = {}

    def left(run: Run, at: Diverged) -> None:
        diverged[run.out.name] = at.args[0]
        note_divergence(run.out, at.args[0])
        run.tell(
            f"diverged by step {at.args[0]:,} (the loss or a weight is no number) and is left; there is {run.checkpoints.told()}."
        )

    with ExitStack() as stack:
        finished: set[str] = set()
        if before:
            stack.enter_context(locked(out))
            check_goes_on(out, before, described)
            described["started"] = before["started"]
            finished, diverged = ended(out, members)
        runs = [
            stack.enter_context(Run(rows, member.config, out / member.name, _prefixed(tell, member.name)))
            for member in members
            if member.name not in finished and member.name not in diverged
        ]
        for run in runs:
            if before:
                run.find()
        for run in runs:
            run.prepare(checkpoint_every, len(runs))
        if not before:
            if force and out.exists():
                check_is_sweep(out, members)
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out))
            if (out / SWEEP).exists():
                remove_sweep(out)
            write_json(out / SWEEP, described)
        for run in runs:
            run.begin(logger)
        take_steps(runs, out, left, tell, progress)
        trained = [run for run in runs if run.sae]
        for i, run in enumerate(trained):
            try:
                run.finish(progress, f"last solve {i + 1} of {len(trained)}")
            except KeyboardInterrupt:
                raise Interrupted(
                    f"Interrupted; {out} holds {len(finished) + i} finished SAEs and {len(trained) - i} as trained, without the last solve and "
                    f"without a summary. {GOES_ON}"
                ) from None
        results = [_result(member, out / member.name, diverged.get(member.name)) for member in members]
        for result in results:
            described["members"][result.member.name] |= _figures(result)
        write_json(out / SWEEP, described | {"state": "finished"})
    if not any(result.summary for result in results):
        raise SplinterpError(
            f"All {len(members)} SAEs of the sweep in {out} diverged (a loss or a weight was no number); start it again with --force and a "
            "lower --lr."
        )
    return results


def _with_memory(members: Sequence[Member], rows: Rows, before: Mapping[str, Any] | None) -> list[Member]:
    """The members, each with its share of the memory; with that of `before`, a sweep that goes on, if none is asked for."""
    configs = [member.config for member in members]
    parts = shares(configs, len(rows.mean), rows.device)
    if before and configs[0].memory is None:
        told = [before["members"].get(member.name, {}).get("settings", {}).get("memory") for member in members]
        parts = [part if was is None else was for part, was in zip(parts, told, strict=True)]
    return [replace(member, config=replace(member.config, memory=part)) for member, part in zip(members, parts, strict=True)]


def _result(member: Member, directory: Path, diverged: int | None) -> MemberResult:
    return MemberResult(member, directory, None if diverged is not None else read_json(directory / SUMMARY), diverged)


def _figures(result: MemberResult) -> dict[str, Any]:
    """What sweep.json tells of a member in the end."""
    if result.summary is None:
        return {"diverged": result.diverged}
    before = result.summary["before_last_solve"]
    told = {name: result.summary[name] for name in ("fvu", "l0", "dead_fraction")}
    return told | {"fvu_before_last_solve": before["fvu"] if before else None}


def _prefixed(tell: Tell, name: str) -> Tell:
    return lambda sentence: tell(f"{name}: {sentence}")
