"""One SAE in training: a step a batch, its figures on the way, and the checkpoints from which it can go on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..devices import threads_for
from ..errors import SplinterpError
from ..evaluate.metrics import evaluate_rows
from ..quantities import format_bytes, format_seconds
from ..sae import SAE, non_zeros
from .adam import AdamBaseline
from .checkpoint import CHECKPOINT, Position, state_bytes, unsound, write_checkpoint
from .config import TrainConfig
from .gradient import StepFigures
from .jitter import jittered
from .loggers import Logger, MetricsFile
from .pam import PAM
from .rows import Rows
from .schedule import k_at, lr_at
from .state import State, joined
from .window import Window

HELD_OUT_EVERY = 0.1  # of the run
HELD_OUT_ROWS = 8192  # rows used for the figures on the way; the last ones use them all
CHECKPOINT_EVERY = 600.0  # seconds
MOST_OF_THE_TIME = 0.05  # that checkpoints may take

# Told a sentence that is no error.
Tell = Callable[[str], None]


class Diverged(Exception):
    """The loss or a weight is no number. The argument is the step by which that was seen."""


class Checkpoints:
    """Writes a run's checkpoints every `every` seconds, but for no more than a twentieth of the time.

    Attributes:
        step: of the last whole checkpoint; None before the first. cost: seconds that it took. size: its bytes.
    """

    def __init__(self, directory: Path, every: float, position: Position, found: bool, runs: int = 1) -> None:
        """The run goes on from `position`, by a checkpoint if one was `found`; so many `runs` share the twentieth."""
        self.path, self.every, self.runs = directory / CHECKPOINT, every, runs
        self.step = position.steps if found else None
        self.cost, self.size, self._written_at = 0.0, 0, time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() - self._written_at >= self.pause

    @property
    def pause(self) -> float:
        """Seconds from one to the next."""
        return max(self.every, self.runs * self.cost / MOST_OF_THE_TIME)

    def write(self, position: Position, state: State) -> None:
        """Replace the checkpoint. Raises OSError where the disk refuses (the one before is kept), Diverged for a state that is no number."""
        if unsound(state):
            raise Diverged(position.steps)
        begun = time.monotonic()
        try:
            write_checkpoint(self.path, position, state)
            self.step, self.size = position.steps, state_bytes(state)
        finally:
            self._written_at = time.monotonic()
            self.cost = self._written_at - begun

    def told(self) -> str:
        """What there is to go on from, in words."""
        if self.step is None:
            return "no checkpoint yet"
        cost = f" ({format_bytes(self.size)}, {format_seconds(self.cost)})" if self.size else ""
        return f"a checkpoint of step {self.step:,}{cost}"


class Training:
    """One SAE in training: how far it has come, and where its figures and its checkpoints go.

    Of several ranks each has one; only the first has `metrics`, and writes. All call the same, in the same order.

    Attributes:
        figures: of its last line of metrics.jsonl.
    """

    def __init__(
        self, method: PAM | AdamBaseline, rows: Rows, config: TrainConfig, position: Position, metrics: MetricsFile | None,
        checkpoints: Checkpoints, tell: Tell, logger: Logger | None = None,
    ) -> None:  # fmt: skip
        self.method, self.rows, self.config, self.position = method, rows, config, position
        self.metrics, self.checkpoints, self.tell, self.logger = metrics, checkpoints, tell, logger
        self.figures: dict[str, float] = {}
        self._threads = threads_for(len(rows.mean) * config.d_sae, rows.device)
        self._log_every, self._evaluate_every = max(1, config.steps // 200), max(1, int(HELD_OUT_EVERY * config.steps))
        self._noise, self._noise_seed = config.noise, (config.seed << 31 | 1 << 30) % 2**62
        self._loss = 0.0

    def step(self, x: Tensor, n: int, waited: float = 0.0) -> bool:
        """One batch of n normalised rows, of which x [N, d_in] is this rank's share; returns whether there are new `figures`. Raises Diverged.

        Args:
            x: stays as it is.
            waited: seconds for the batch, which count as the training's.
        """
        begun, position = time.monotonic() - waited, self.position
        if torch.get_num_threads() != self._threads:  # runs of several sizes take turns
            torch.set_num_threads(self._threads)
        lr, self.method.weights.k = lr_at(position.steps, self.config), k_at(position.steps, self.config)
        if self._noise:
            x = jittered(x, self._noise, n, self._noise_seed + position.steps, self.rows.group)
        done = self.method.step(x, lr, n)
        position.steps, position.rows = position.steps + 1, position.rows + n
        position.window_error += done.squared_error
        position.window_rows += n
        position.seconds += time.monotonic() - begun
        self._loss = done.loss
        step, last = position.steps, position.steps == self.config.steps
        evaluating = step % self._evaluate_every == 0 or last
        if not (evaluating or step % self._log_every == 0 or done.half_steps):
            return False
        begun = time.monotonic()
        self._check()
        self._log(done, n, lr, evaluating)
        position.seconds += time.monotonic() - begun
        return True

    def keep(self, stopping: bool = False) -> None:
        """Replace the checkpoint; a disk that refuses is told, and is no reason to lose what is in memory. Raises Diverged."""
        self._check()
        self._keep(self.method.whole_state(), "" if stopping else " Training goes on.")

    def end(self) -> SAE:
        """The SAE of normalised rows that the steps led to, which a small checkpoint holds too. Raises Diverged."""
        self.position.dead = len(self.method.gradient.dead.indices())
        self._keep(joined(weights=self.method.weights.state()), " Training is done.")
        return self.method.weights.sae()

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint, about: of the rows in a window each rank has its part."""
        kept = self.method.statistics if isinstance(self.method, PAM) else None
        of_others = (self.rows.group.world - 1) * state_bytes(kept.state()) if isinstance(kept, Window) else 0
        return state_bytes(self.method.state()) + of_others

    def _check(self) -> None:
        if not math.isfinite(self._loss):
            raise Diverged(self.position.steps)

    def _keep(self, state: State, then: str) -> None:
        position, kept = self.position, self.checkpoints
        with self.rows.group.all_or_none(Diverged, position.steps):
            try:
                if self.metrics:
                    position.metrics_bytes = self.metrics.sync()
                    kept.write(position, state)
            except OSError as error:
                before = f"that of step {kept.step:,} is kept" if kept.step is not None else "there is none yet"
                self.tell(f"The checkpoint of step {position.steps:,} could not be written ({error.strerror}); {before}.{then}")
        position.seconds += kept.cost

    def _log(self, done: StepFigures, n: int, lr: float, evaluating: bool) -> None:
        """A line of metrics.jsonl, of the steps since the last one, which was on n rows."""
        position = self.position
        self.figures = {
            "fvu": position.window_error
            / (position.window_rows * len(self.rows.mean)),  # rows have mean square 1 per dimension
            "l0": self.rows.group.sum(non_zeros(done.codes)) / n,
            "dead": float(len(self.method.gradient.dead.indices())),
        }
        line = {
            "step": position.steps, "rows": position.rows, "loss": done.loss, **self.figures, "lr": lr, "seconds": position.seconds,
            **(done.half_steps or {}),
        }  # fmt: skip
        if self.config.k_start is not None and self.method.weights.k is not None:
            line["k"] = self.method.weights.k
        if self.metrics:
            if evaluating:
                line["held_out_fvu"] = float(evaluate_rows(self.method.weights.sae(), held_out_rows(self.rows))["fvu"])
            self.metrics.log(line)
        if self.logger:
            self.logger.log(position.steps, line)
        position.window_error, position.window_rows = 0.0, 0


def held_out_rows(rows: Rows) -> Iterator[Tensor]:
    """The held-out rows that give the figures on the way, normalised, in batches."""
    seen = 0
    for x in rows.once("held_out", 4096):
        yield x
        seen += len(x)
        if seen >= HELD_OUT_ROWS:
            return


def diverged(at: Diverged, config: TrainConfig, checkpoints: Checkpoints) -> SplinterpError:
    """The sentence for it."""
    begins = f"Training diverged by step {at.args[0]:,} (the loss or a weight is no number)"
    if checkpoints.step is None:
        return SplinterpError(
            f"{begins}, before the first checkpoint; start again with --force and a lower --lr (it was {config.lr:g})."
        )
    return SplinterpError(
        f"{begins}; {checkpoints.path} keeps step {checkpoints.step:,}. --resume with a lower --lr (it was {config.lr:g}) goes on from there; "
        "where that diverges as well, --force begins anew."
    )
