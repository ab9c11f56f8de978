"""What finished and running runs say of themselves: their settings, figures and curves, read from their directories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SplinterpError
from ..names import is_plain
from ..quantities import is_count, is_figure, json_safe, parse_json

RUN, METRICS, SUMMARY, CONFIG, SWEEP = "run.json", "metrics.jsonl", "summary.json", "cfg.json", "sweep.json"
# Settings of cfg.json, for SAEs that have no run.json.
OF_CONFIG = ("architecture", "d_in", "d_sae", "k", "rescale_acts_by_decoder_norm", "apply_b_dec_to_input")


@dataclass(frozen=True)
class RunSeen:
    """A run directory, as it is now. What a run does not tell is None, or empty.

    Attributes:
        settings: by name; of an SAE without run.json (a refit's, another program's: not `described`) those of its cfg.json.
        store: the path, and fingerprint of the store that it was trained and evaluated on. site: likewise.
        fvu, l0, dead: on held-out rows; of a run without a summary the last FVU on the way, and l0 and dead of its last training steps.
        seconds: of everything, or so far.
        curve: rows, seconds and held-out FVU on the way, and at the end.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    store: str | None = None
    fingerprint: str | None = None
    site: str | None = None
    finished: bool = False
    fvu: float | None = None
    l0: float | None = None
    dead: float | None = None
    rows: int | None = None
    seconds: float | None = None
    curve: list[tuple[float, float, float]] = field(default_factory=list)
    described: bool = True


def read_runs(paths: Sequence[Path]) -> tuple[list[RunSeen], list[str]]:
    """The runs in these directories, a sweep's members one by one; and sentences on what they lack.

    Raises:
        SplinterpError: a directory is not there, is no run's and no SAE's, or has a damaged file; or none has a figure.
    """
    members = list(dict.fromkeys(path for given in paths for path in _members(given)))
    in_one_folder = len(members) > 1 and len({path.absolute().parent for path in members}) == 1
    seen, lacking = [], []
    for path in members:
        label = path.absolute().name if in_one_folder else str(path)
        run, lack = read_run(label, path)
        lacking += [f"{label} {lack}."] if lack else []
        seen.append(run)
    if all(run.fvu is None and not run.curve for run in seen):
        raise SplinterpError(f"There is nothing to compare: {' '.join(lacking)}")
    return seen, lacking


def differing(runs: Sequence[RunSeen]) -> dict[str, list[Any]]:
    """By name, the settings in which the runs differ, each with a value a run; None where a run has no such setting.

    SAEs without run.json, of which few settings are known, are held against one another.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    alike = [[run for run in runs if run.described == described] for described in (True, False)]
    differ = [
        name
        for name in names
        if any(_differ(some[0].settings.get(name), run.settings.get(name)) for some in alike for run in some)
    ]
    return {name: [run.settings.get(name) for run in runs] for name in differ}


def different_stores(runs: Iterable[RunSeen]) -> str | None:
    """A sentence where the runs' figures are of different rows."""
    known = {(run.fingerprint, run.site): run for run in runs if run.fingerprint}
    if len(known) < 2:
        return None
    named = "; ".join(f"{run.name}: {run.site} of {run.store}" for run in known.values())
    return f"These runs were evaluated on different rows, so that their figures say little of one another ({named})."


def _differ(a: object, b: object) -> bool:
    """1 and 1.0 are one value; 1 and True are not."""
    return a != b or isinstance(a, bool) != isinstance(b, bool)


def _members(path: Path) -> list[Path]:
    if not path.is_dir():
        raise SplinterpError(f"There is no run at {path}; give the directories of runs.")
    if (path / SWEEP).is_file():
        names = read_object(path / SWEEP).get("members")
        if not isinstance(names, dict) or not all(map(is_plain, names)):
            raise SplinterpError(f"{path / SWEEP} is damaged; give the directories of its runs one by one.")
        return [path / name for name in names if (path / name).is_dir()]
    if not any((path / name).is_file() for name in (RUN, SUMMARY, CONFIG)):
        raise SplinterpError(f"{path} is neither a run nor an SAE: it has none of {RUN}, {SUMMARY} and {CONFIG}; leave it out.")
    return [path]


def read_run(name: str, path: Path) -> tuple[RunSeen, str | None]:
    """The run or SAE in one directory, called `name`; and what it lacks, as the end of a sentence.

    Raises:
        SplinterpError: a file of it is damaged.
    """
    described, summary, config = (read_object(path / file) for file in (RUN, SUMMARY, CONFIG))
    settings = described.get("settings")
    if not (known := isinstance(settings, dict)):
        settings = {name: config[name] for name in OF_CONFIG if config.get(name) is not None}
    lines = read_lines(path / METRICS)
    last = lines[-1] if lines else {}
    curve = [
        (float(line["rows"]), float(line["seconds"]), float(line["held_out_fvu"]))
        for line in lines
        if all(is_figure(line.get(key)) for key in ("rows", "seconds", "held_out_fvu"))
    ]
    lack, seconds = None, summary.get("seconds")
    if isinstance(seconds, dict):
        seconds = sum(value for value in seconds.values() if is_figure(value))
    if not summary:
        diverged = described.get("diverged")
        lack = f"diverged by step {diverged}" if diverged else f"has no {SUMMARY}: it is not finished"
        lack += ", and its figures are those on the way" if curve else ", and there are no figures of it yet"
    elif not is_figure(summary.get("fvu")):
        lack = f"has a {SUMMARY} without a finite FVU"
    elif described and is_count(steps := summary.get("steps")) and last.get("step") != steps:
        told = f"has a {METRICS} that does not come to its last step, {steps}" if lines else f"has lost its {METRICS}"
        lack = f"{told}: its curve is not whole"
    fvu = number(summary.get("fvu")) if summary else (curve[-1][2] if curve else None)
    rows = number(summary.get("rows_trained") if summary else last.get("rows"))
    spent = number(seconds if summary else last.get("seconds"))
    if summary and curve and fvu is not None and rows and spent:
        curve.append((rows, spent, fvu))
    dead = summary.get("dead_fraction")
    if not summary and is_figure(last.get("dead")) and is_figure(settings.get("d_sae")) and settings["d_sae"] > 0:
        dead = last["dead"] / settings["d_sae"]
    told = {
        key: value if isinstance(value := described.get(key), str) else None for key in ("store", "store_fingerprint", "site")
    }
    return RunSeen(
        name, settings, told["store"], told["store_fingerprint"], told["site"], bool(summary), fvu,
        number(summary.get("l0") if summary else last.get("l0")), number(dead), None if rows is None else int(rows), spent, curve, known,
    ), lack  # fmt: skip


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json_safe(parse_json(path.read_bytes()))  # infinities, too: no figures
    except ValueError:  # UnicodeDecodeError is one
        found = None
    if not isinstance(found, dict):
        raise SplinterpError(f"{path} is damaged: it is no JSON object.")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; of a running run the last line may be cut off."""
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace")
    try:
        found = [parse_json(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        if all(isinstance(line, dict) for line in found):
            return found
    except ValueError as error:
        raise SplinterpError(f"{path} is damaged: {error}.") from None
    raise SplinterpError(f"{path} is damaged: it does not hold a JSON object a line.")


def number(value: Any) -> float | None:
    """A value of a file that is a figure; None of any other."""
    return float(value) if is_figure(value) else None


def recorded_store(run: Path) -> str:
    """The store that a run says it was trained on."""
    store = read_object(run / RUN).get("store")
    if not isinstance(store, str):
        raise SplinterpError(f"{run} does not say which store its rows come from; name it with --store.")
    if "://" not in store and not Path(store).exists():
        raise SplinterpError(f"The store that {run} was trained on, {store}, is no longer there; name it with --store.")
    return store
