"""The loop over batches: each is read once, and taken by every training that has not had it yet."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ..quantities import format_bytes, format_seconds
from .checkpoint import state_bytes
from .interrupts import Interrupts
from .state import State
from .training import Diverged, Tell, Training

# Told the stage ("train" or "last solve"), rows done, rows in all, and figures to show.
Progress = Callable[[str, int, int, dict[str, float]], None]


class Stopped(Exception):
    """The user asked for an end, and the step in hand is done and in a checkpoint, if the disk took it."""


def run_steps(
    running: list[Training], left: Callable[[Training, Diverged], None], tell: Tell, progress: Progress | None = None
) -> None:
    """All steps that the trainings have not taken yet, from the least advanced on; each batch is read once, for all of them.

    Those that diverge are taken out of the list `running`, so that nothing here holds their memory.

    They have the rows, the batches and their order in common. Checkpoints are taken by all after the same batch. Time that passes while
    waiting for a batch counts in equal parts for those that take it.

    Args:
        left: told of a training that has diverged; where it returns, the others go on.
        tell: given sentences that are no errors.
        progress: given the figures of a single training; of several the best and the worst FVU.

    Raises:
        Stopped: on a SIGINT or SIGTERM, after the step and its checkpoints.
    """
    threads, rows, config = torch.get_num_threads(), running[0].rows, running[0].config
    done = min(training.position.rows for training in running)

    def each(some: Iterable[Training], act: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `act` gives for those that do not diverge by it."""
        given = []
        for training in some:
            try:
                given.append(act(training, *arguments))
            except Diverged as at:
                running.remove(training)
                left(training, at)
        return given

    check_room(running, tell)
    waiting = time.monotonic()
    try:
        with Interrupts() as interrupts:
            for x in rows.training(config.batch_size, config.rows, config.seed_of_order, done):
                done += len(x)
                behind = [training for training in running if training.position.rows < done]
                waited = (time.monotonic() - waiting) / max(1, len(behind))
                told = each(behind, Training.step, x, waited)
                if not running:
                    return
                behind = [training for training in behind if training in running]
                if progress and any(told):
                    progress("train", done, config.rows, _shown(running))
                if interrupts.asked:
                    size = sum(state_bytes(training.method.state()) for training in behind)
                    what = "a checkpoint" if len(behind) == 1 else f"{len(behind)} checkpoints"
                    tell(f"Stopping at step {-(-done // config.batch_size):,}: writing {what} of {format_bytes(size)} …")
                    each(behind, Training.keep, True)
                    raise Stopped
                if behind and all(training.checkpoints.due() for training in behind):
                    first = not any(training.checkpoints.cost for training in behind)
                    each(behind, Training.keep)
                    if first:
                        _tell_cost([training for training in behind if training.checkpoints.size], tell)
                waiting = time.monotonic()
    finally:
        torch.set_num_threads(threads)


def _shown(trainings: Sequence[Training]) -> dict[str, float]:
    if len(trainings) == 1:
        return trainings[0].figures
    fvus = [training.figures["fvu"] for training in trainings if training.figures]
    return {"best fvu": min(fvus), "worst fvu": max(fvus)} if fvus else {}


def check_room(trainings: Sequence[Training], tell: Tell) -> None:
    """Tell where the disk cannot hold the checkpoints, and another one, as it must while one replaces the other."""
    sizes = [state_bytes(training.method.state()) for training in trainings]
    needed, at = sum(sizes) + max(sizes), trainings[0].checkpoints.path.parent
    free = shutil.disk_usage(at).free
    if free < needed:
        tell(
            f"Checkpoints take at least {format_bytes(needed)} while one replaces another, but {format_bytes(free)} are free at {at}: "
            "there may be nothing to resume from."
        )


def _tell_cost(trainings: Sequence[Training], tell: Tell) -> None:
    """What the first checkpoints took; nothing where the disk refused them."""
    if not trainings:
        return
    kept = [training.checkpoints for training in trainings]
    size, cost = format_bytes(sum(one.size for one in kept)), format_seconds(sum(one.cost for one in kept))
    what, pause = "Checkpoint" if len(kept) == 1 else f"{len(kept)} checkpoints", format_seconds(max(one.pause for one in kept))
    tell(f"{what}: {size} ({_parts(trainings[0].method.state())}), written in {cost}; one every {pause}.")


def _parts(state: State) -> str:
    """What a checkpoint holds, in words."""
    named = {"weights": "weights", "gradient": "optimiser", "statistics": "statistics"}
    return ", ".join(word for prefix, word in named.items() if any(name.startswith(prefix) for name in state))
