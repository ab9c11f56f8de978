"""Where a run's figures go: metrics.jsonl always, and TensorBoard or Weights & Biases where asked for."""

from __future__ import annotations

import importlib.util
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from ..errors import SplinterpError
from ..quantities import json_safe
from ..store.files import write_all
from .directory import TENSORBOARD, WANDB

LoggerName = Literal["none", "tensorboard", "wandb"]


class Logger(Protocol):
    """Takes the figures of a run: those of a line of metrics.jsonl, and the summary's."""

    def log(self, step: int, figures: Mapping[str, float]) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: one object a line.

    Args:
        keep: the length at the checkpoint that the run goes on from; what was written after it is written again.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        """Raises SplinterpError where less than `keep` bytes are there."""
        if keep and (not path.is_file() or path.stat().st_size < keep):
            raise SplinterpError(
                f"{path} is shorter than its checkpoint says ({keep:,} bytes): lines are lost; start again with --force."
            )
        # Unbuffered: what a full disk has refused is not refused again when the file is closed.
        self._file = path.open("r+b" if keep else "wb", buffering=0)
        self._file.truncate(keep)
        self._file.seek(keep)

    def log(self, line: Mapping[str, float]) -> None:
        try:
            write_all(self._file.fileno(), memoryview((json.dumps(json_safe(dict(line)), allow_nan=False) + "\n").encode()))
        except OSError as error:
            error.filename = error.filename or self._file.name  # a full disk does not say whose
            raise

    def sync(self) -> int:
        """Make every line durable; returns the length."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def check_logger(name: str) -> None:
    """See that a logger can be opened.

    Raises:
        SplinterpError: it is unknown, or its package is missing.
    """
    if name not in get_args(LoggerName):
        raise SplinterpError(f"--logger {name} is unknown; choose one of {', '.join(get_args(LoggerName))}.")
    if name != "none" and importlib.util.find_spec(name) is None:
        raise SplinterpError(f'--logger {name} needs a package that is not here: pip install "splinterp[{name}]".')


def open_logger(name: str, directory: Path, described: Mapping[str, Any], step: int) -> Logger | None:
    """The logger `name` of the run in `directory`, which goes on after `step`; None for "none".

    Raises:
        SplinterpError: it is unknown, its package is missing, or it cannot begin.
    """
    check_logger(name)
    match name:
        case "tensorboard":
            return TensorBoard(directory, step)
        case "wandb":
            return WandB(directory, described)
        case _:
            return None


class TensorBoard:
    """Event files in `<run>/tensorboard`; what an interrupted run wrote after its checkpoint is marked as superseded."""

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / TENSORBOARD), purge_step=step + 1 if step else None)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        for name, value in _numbers(summary).items():
            self._writer.add_scalar(f"summary/{name}", value, int(summary["steps"]))

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of the project "splinterp", in `<run>/wandb`; without a network by WANDB_MODE=offline, then `wandb sync`."""

    def __init__(self, directory: Path, described: Mapping[str, Any]) -> None:
        import wandb
        from wandb.errors import Error

        started = described["started"]
        (directory / WANDB).mkdir(exist_ok=True)  # or wandb takes another place
        # The same name for the same run each time it is resumed, and for no other.
        identity = f"{zlib.crc32(f'{directory.resolve()} {started}'.encode()):08x}"
        try:
            self._run = wandb.init(
                project="splinterp",
                name=directory.name,
                id=identity,
                resume="allow",
                reinit="create_new",  # a sweep has several runs at a time
                dir=str(directory),
                config=dict(described),
            )
        except Error as error:
            raise SplinterpError(
                f"Weights & Biases does not take this run ({str(error).rstrip('.')}); set WANDB_MODE=offline, or use `wandb login`."
            ) from error

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(_numbers(summary))

    def close(self) -> None:
        self._run.finish()


def _numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in summary.items() if isinstance(value, int | float)}
