"""A run's directory: what describes it, what --resume finds in it, and how it makes room for another run."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import SplinterpError, StoreError
from ..infer.mlp import mlps_of
from ..quantities import json_safe
from ..sae.files import CONFIG, WEIGHTS
from ..store import Store
from ..store.files import is_temporary, read_json, temporary, write_bytes
from ..store.layout import LOCK
from .budget import memory_budget
from .checkpoint import CHECKPOINT
from .config import TrainConfig
from .precision import rounding

METRICS, RUN, SUMMARY = "metrics.jsonl", "run.json", "summary.json"
TENSORBOARD, WANDB = "tensorboard", "wandb"  # what loggers write, each into a folder of its own


def describe(store: Store, site: str, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """What run.json holds."""
    packages = ("torch", "transformer-lens", "transformers", "zarr", "numpy")
    return {
        "settings": asdict(config),
        "pursuit": config.pull,
        "jitter": config.noise,
        "memory": memory_budget(config, device),
        "store": str(store.path.resolve()),
        "store_fingerprint": store.fingerprint,
        "site": site,
        "store_rows": store.rows,
        "training_rows": store.split_rows("train"),
        "validation_rows": store.split_rows("validation"),
        "held_out_rows": store.split_rows("held_out"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "precision": rounding(config.precision, device),
        "started": timestamp(),
        "versions": {"splinterp": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}},
    }


def is_begun(directory: Path) -> bool:
    """Whether a run has been begun in `directory`, which may not exist.

    Raises:
        SplinterpError: it holds something else than a run.
    """
    if (directory / RUN).is_file():
        return True
    if not directory.exists() or unbegun(directory):
        return False
    raise SplinterpError(f"{directory} is not a run directory (it has no {RUN}); give the --out of the run to go on with.")


def resumed(directory: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json is to hold once the run in `directory` goes on as `described`.

    The settings, the site and the store's contents must be those that it was begun with. Only a run that has diverged goes on otherwise:
    with a lower learning rate, for with the same one it would come to the same end.

    Raises:
        SplinterpError: it is finished, or something differs.
    """
    told = _described(directory)
    if (directory / SUMMARY).exists():
        for path in (directory / CHECKPOINT, temporary(directory / CHECKPOINT)):
            path.unlink(missing_ok=True)  # killed between its last file and its end
        raise SplinterpError(f"The run in {directory} is finished: there is nothing to resume. --force trains it again.")
    was, now = _compared(told), _compared(json.loads(json.dumps(described)))
    lower = "diverged" in told and now["lr"] < was["lr"]
    check_same(directory, was, {**now, "lr": was["lr"]} if lower else now)
    if "diverged" in told and not lower:
        raise SplinterpError(
            f"The run in {directory} diverged at step {told['diverged']:,} and would do so again; give --resume a lower --lr "
            f"(it was {was['lr']:g})."
        )
    if lower:
        told["diverged_before"] = [*told.get("diverged_before", []), {"step": told.pop("diverged"), "lr": was["lr"]}]
    return {
        **told,
        "settings": described["settings"],
        "ranks": described["ranks"],
        "resumed": [*told.get("resumed", []), timestamp()],
    }


def _described(directory: Path) -> dict[str, Any]:
    """What run.json holds. Raises SplinterpError where it is damaged."""
    try:
        told = read_json(directory / RUN)
    except StoreError as error:
        raise SplinterpError(f"{str(error).rstrip('.')}; start the run again with --force.") from None
    settings, lists = told.get("settings"), (told.get(name, []) for name in ("resumed", "diverged_before"))
    whole = isinstance(settings, dict) and all(isinstance(one, list) for one in lists)
    if "diverged" in told:
        whole = whole and type(told["diverged"]) is int and isinstance(told["settings"].get("lr"), int | float)
    if not whole:
        raise SplinterpError(f"{directory / RUN} is damaged: it does not describe a run; start the run again with --force.")
    return told


def check_same(directory: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """See that what was begun in `directory` goes on with the same settings. Raises SplinterpError otherwise."""
    differing = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if differing:
        raise SplinterpError(
            f"{directory} was begun with {', '.join(f'{name}={was.get(name)}' for name in differing)}, and not with "
            f"{', '.join(f'{name}={now.get(name)}' for name in differing)}; --resume needs the same (another --out starts anew)."
        )


def note_divergence(directory: Path, step: int) -> None:
    """Write into run.json that training came to its end at `step`."""
    write_json(directory / RUN, {**read_json(directory / RUN), "diverged": step})


def unbegun(directory: Path) -> bool:
    """Whether a run was stopped between making the directory and describing itself there."""
    return directory.is_dir() and all(path.name == LOCK or is_temporary(path.name) for path in directory.iterdir())


def check_is_run(directory: Path) -> None:
    """See that `directory` holds a run, or nothing. Raises SplinterpError otherwise: --force must not touch it."""
    if not (directory / RUN).is_file() and not unbegun(directory):
        raise SplinterpError(
            f"{directory} is not a run directory (it has no {RUN}), so that --force leaves it alone; give another --out."
        )


def remove_run(directory: Path) -> None:
    """Remove a run's own files from its directory, and the directory if nothing else lies in it, to make room for another run.

    Raises:
        SplinterpError: it is not a run directory, so that --force must not touch it.
    """
    check_is_run(directory)
    for name in (TENSORBOARD, WANDB):
        shutil.rmtree(directory / name, ignore_errors=True)
    for path in mlps_of(directory):  # they are for the decoder that goes
        path.unlink()
        path.with_suffix(".json").unlink(missing_ok=True)
    for name in (SUMMARY, CHECKPOINT, WEIGHTS, CONFIG, METRICS, RUN):  # the one that marks a run goes last
        temporary(directory / name).unlink(missing_ok=True)
        (directory / name).unlink(missing_ok=True)
    if not any(directory.iterdir()) and not directory.is_symlink():
        directory.rmdir()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON, with null for what is no finite number, durably replacing the file as a whole."""
    write_bytes(path, (json.dumps(json_safe(content), indent=2, allow_nan=False) + "\n").encode())


def _compared(told: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same when a run is resumed, by name."""
    settings = {
        name: value for name, value in told.get("settings", {}).items() if name != "memory"
    }  # what it decides, the checkpoint tells
    settings.setdefault("jitter", 0.0)  # a run begun before there was any
    return {**settings, **{name: told.get(name) for name in ("site", "store_fingerprint", "training_rows")}}


def timestamp() -> str:
    """The time, as files have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
