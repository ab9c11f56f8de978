"""Which commands are jobs: what they read and write, what their arguments may be, and how they go on after an interruption."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..errors import SplinterpError
from . import locks, offered
from .catalogue import read, store_attributes
from .paths import PathError, Root

Mode = Literal["first", "resume", "retry"]
MOST_ARGUMENTS, LONGEST_ARGUMENT = 200, 1000
_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)?")  # of the hub
_LOCK = ".lock"


class RefusedError(SplinterpError):
    """A job that cannot be: says why."""


@dataclass(frozen=True)
class Kind:
    """A command that may be a job.

    Attributes:
        reads: parameters that are paths to read. names: parameters that are a path to read, or the name of something known or on the hub.
        writes: the parameter that is the path to write. marker: files in it, one of which shows that it has been begun.
        resumes: whether --resume goes on with what was interrupted. as_json: whether its last line is to be its figures.
        withheld: options that clients may not give.
    """

    reads: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    writes: str | None = None
    markers: tuple[str, ...] = ()
    resumes: bool = False
    as_json: bool = False
    withheld: tuple[str, ...] = ("as_json",)


RUN_MARKERS = ("run.json", "sweep.json")
KINDS: Mapping[str, Kind] = {
    # Code that a hub model brings along would run as the service's user.
    "harvest": Kind((), ("model", "dataset"), "out", ("zarr.json",), resumes=True, withheld=("trust_remote_code", "dry_run")),
    "train": Kind(("store",), (), "out", RUN_MARKERS, resumes=True),
    "refit": Kind(("sae", "store"), (), "out", RUN_MARKERS),
    "encode": Kind(("sae", "store"), (), "out", ("zarr.json",)),
    "eval": Kind(("sae", "store"), ("model", "dataset"), as_json=True),
    "report": Kind(("run", "store", "baseline"), ("model",), "out"),
    "verify": Kind(("store",)),
}


@dataclass(frozen=True)
class Work:
    """What a job does: a command line that its command has accepted.

    Attributes:
        arguments: behind the command's name; they name every output, so that the same line always means the same work.
        reads, writes: claims (see Root.claim). out: the output, as the client calls it. device: what --device says, where there is one.
    """

    command: str
    arguments: tuple[str, ...]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    out: str | None = None
    device: str = "cpu"
    force: bool = False


def work_of(root: Root, command: str, arguments: Sequence[str], taken: Set[str] = frozenset()) -> Work:
    """The work that a command line is, parsed by the command itself; an output that it leaves to the command gets a name, none of `taken`.

    Raises:
        RefusedError: there is no such command. UsageError: in the command line's words. PathError: a path leads out of the root.
    """
    kind = KINDS.get(command)
    if kind is None:
        raise RefusedError(f"'{command[:40]}' is no job; there are {', '.join(KINDS)}.")
    if len(arguments) > MOST_ARGUMENTS or any(len(one) > LONGEST_ARGUMENT for one in arguments):
        raise RefusedError(f"A job has at most {MOST_ARGUMENTS} arguments of at most {LONGEST_ARGUMENT} characters.")
    if any("\0" in one or not one.isprintable() for one in arguments):
        raise RefusedError("Arguments are of printable characters alone.")
    values, given = offered.parse(command, arguments)
    for name in kind.withheld:
        if name in given and (option := offered.commands()[command].option(name)):
            raise RefusedError(f"{option.flag} is not for the service's jobs; leave it out.")
    arguments = list(arguments)
    if kind.writes and kind.writes not in given:
        values[kind.writes] = _free_output(root, command, kind, values, taken)
        arguments = [f"--{kind.writes}", values[kind.writes], *arguments]
    reads = [root.claim(value, name) for name in kind.reads for value in _texts(values.get(name))]
    reads += [claim for name in kind.names for value in _texts(values.get(name)) if (claim := _named(root, value, name))]
    encoder = str(values.get("encoder") or "")
    if encoder.startswith("mlp:"):
        reads.append(root.claim(encoder.removeprefix("mlp:"), "encoder"))
    out = str(values[kind.writes]) if kind.writes else None
    return Work(
        command, tuple(arguments), tuple(dict.fromkeys(reads)), (root.claim(out, "out"),) if out else (),
        root.name(root.inside(out, "out")) if out else None, str(values.get("device") or "cpu"), bool(values.get("force")),
    )  # fmt: skip


def arguments_from(command: str, options: Mapping[str, Any]) -> list[str]:
    """A command line of options by their parameters' names, as a form gives them: an empty value is one left out.

    Raises:
        RefusedError: an option is unknown, or a flag has no yes or no.
    """
    if command not in KINDS:
        raise RefusedError(f"'{command[:40]}' is no job; there are {', '.join(KINDS)}.")
    known = offered.commands()[command]
    flags, positional = list[str](), list[str]()
    unknown = [name for name in options if known.option(name) is None]
    if unknown:
        raise RefusedError(f"{command} has no option '{unknown[0][:40]}'.")
    for option in known.options:
        values = [value for value in _texts(options.get(option.name)) if value != ""]
        if not option.multiple and len(values) > 1:
            raise RefusedError(f"{option.flag or option.name} is given once.")
        for value in values:
            if option.flag is None:
                positional.append(value)
            elif option.shape == "text":
                flags.append(f"{option.flag}={value}")
            elif value.lower() in ("true", "yes", "on"):
                flags.append(option.flag)
            elif value.lower() not in ("false", "no", "off"):
                raise RefusedError(f"{option.flag} is yes or no.")
            elif option.off:
                flags.append(option.off)
    return [*flags, *(["--", *positional] if positional else [])]


def check_places(root: Root, work: Work, to_come: Set[str] = frozenset()) -> None:
    """See that what is read is there, or will be (`to_come`: the claims of jobs before), and that the output is free.

    Raises:
        RefusedError: it is not.
    """
    for claim in work.reads:
        if not (root.path / claim).exists() and not any(claim == one or claim.startswith(f"{one}/") for one in to_come):
            raise RefusedError(f"There is nothing at {claim}, and no job that will write it.")
    for claim in work.writes:
        taken = claim in to_come or ((root.path / claim).exists() and not work.force and "--resume" not in work.arguments)
        if taken:
            raise RefusedError(
                f"{work.out} exists already, or another job writes it; give another --out (or --force, where it exists)."
            )


def lacking(root: Root, work: Work) -> str | None:
    """What a job would read and cannot yet, in words: a path that is not there, or a store that is not finished. None: nothing."""
    for claim in work.reads:
        path = root.path / claim
        if not path.exists():
            return f"{claim}, which is not there"
        told = store_attributes(path)
        if told.get("status", "complete") != "complete":
            return f"{claim}, which is not finished"
    return None


def next_arguments(root: Root, work: Work, mode: Mode, since: float) -> list[str]:
    """The arguments of an attempt: as given, or so that what this job began (at `since` or later) goes on, or is done anew.

    An output directory in which the job had not come further than locking it is removed.
    """
    kind, arguments = KINDS[work.command], list(work.arguments)
    if kind.as_json and "--json" not in arguments:
        arguments.insert(0, "--json")
    if mode == "first" or not kind.writes or work.out is None:
        return arguments
    out = root.path / work.out
    _clear(out)
    if not _begun(out, kind, since):
        return arguments
    plain = [one for one in arguments if one not in ("--resume", "--force")]
    return ["--resume" if mode == "resume" and kind.resumes else "--force", *plain]


def is_finished(root: Root, work: Work, since: float) -> bool:
    """Whether the output is complete, and this job's: it was killed, perhaps, between its last file and its end."""
    kind = KINDS[work.command]
    if not kind.resumes or work.out is None:
        return False
    out = root.path / work.out
    if not _begun(out, kind, since):
        return False
    if work.command == "harvest":
        return store_attributes(out).get("status") == "complete"
    return (out / "summary.json").is_file() or read(out / "sweep.json").get("state") == "finished"


def _begun(out: Path, kind: Kind, since: float) -> bool:
    """Whether the output at `out` was begun after `since`. File systems keep times by a coarser clock than ours."""
    found = [out / name for name in kind.markers] if kind.markers else [out]
    return any(path.exists() and path.stat().st_mtime > since - 1.0 for path in found)


def _clear(out: Path) -> None:
    """Remove a directory that holds nothing but a lock that nobody has, and half-written files."""
    if not out.is_dir() or out.is_symlink():
        return
    inside = list(out.iterdir())
    rest = [path for path in inside if path.name != _LOCK and not (path.name.startswith(".") and path.name.endswith(".tmp"))]
    if rest or locks.is_seen(out / _LOCK):
        return
    for path in inside:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody else's, since just now
        out.rmdir()


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


def _named(root: Root, value: str, what: str) -> str | None:
    """The claim of a path inside the root, without a weight (`::0.3`); None of a name that is known, or the hub's."""
    path = value
    if what == "dataset" and "::" in value:
        path = value.rpartition("::")[0]
    claim = root.claim(path, what)
    if (root.path / claim).exists():
        return claim
    if not _NAME.fullmatch(path):
        raise PathError(f"There is no {what} at '{value}'.")
    return None


def _free_output(root: Root, command: str, kind: Kind, values: Mapping[str, Any], taken: Set[str]) -> str:
    """A name for the output of a command that was given none."""
    if command == "report":
        return f"{values['run']}/report.html"
    default = values.get(kind.writes or "")
    if default is not None:
        return str(default)
    store = PurePosixPath(str(values.get("store", "run"))).name.removesuffix(".zarr")
    how = "sweep" if values.get("sweep") else values.get("method", command)
    name = f"runs/{store}-{how}-{datetime.now():%Y%m%d-%H%M%S}"
    found, n = name, 1
    while found in taken or (root.path / found).exists():
        n += 1
        found = f"{name}-{n}"
    return found
