"""The form that queues a job: a field for each of the command's options, with its default filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .commands import KINDS, RefusedError
from .offered import Command, Option, commands

# What is seen at first; the rest is under "More settings".
MAIN = {
    "train": ("store", "out", "method", "activation", "k", "expansion", "latents", "epochs", "tokens", "lr", "seed", "sweep", "device"),
    "harvest": ("model", "layer", "hook", "dataset", "tokens", "context", "out", "device"),
    "eval": ("sae", "store", "encoder", "k", "split", "model", "device"),
}  # fmt: skip
_NUMBER = re.compile(r"-?\d{1,9}")
RUNS, STORES = ("sae", "run", "baseline"), ("store",)


@dataclass(frozen=True)
class Field:
    """A field of the form. `known`: the list of names that it offers: "stores", "runs" or none."""

    option: Option
    value: str
    placeholder: str
    known: str


def fields_of(command: Command, values: Mapping[str, str]) -> dict[str, list[Field]]:
    """The command's fields in two groups, with what was given before, or the defaults."""
    main = MAIN.get(command.name)
    groups: dict[str, list[Field]] = {"main": [], "more": []}
    for option in command.options:
        if option.name in KINDS[command.name].withheld:
            continue
        known = "stores" if option.name in STORES else "runs" if option.name in RUNS else ""
        field = Field(option, values.get(option.name, _default(option)), option.told or "", known)
        groups["main" if main is None or option.name in main else "more"].append(field)
    if main:
        groups["main"].sort(key=lambda field: main.index(field.option.name))
    return groups


def options_of(command: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """What the form's fields give as options; those that say what the default is are left out, and the command line stays short.

    Raises:
        RefusedError: there is no such command.
    """
    known = commands().get(command)
    if known is None or command not in KINDS:
        raise RefusedError(f"'{command[:40]}' is no job.")
    found: dict[str, Any] = {}
    for option in known.options:
        value = fields.get(option.name, "").strip()
        if not value or value == _default(option):
            continue
        found[option.name] = [line.strip() for line in value.splitlines() if line.strip()] if option.multiple else value
    return found


def settings_of(fields: Mapping[str, str]) -> dict[str, Any]:
    """What the form says of the job itself. Raises RefusedError where that is no number."""
    found: dict[str, Any] = {"label": fields.get("job_label", "").strip()[:200]}
    for name, least, most in (("priority", -1000, 1000), ("threads", 1, 4096), ("ranks", 1, 64)):
        value = fields.get(f"job_{name}", "").strip()
        if not value:
            continue
        if not _NUMBER.fullmatch(value) or not least <= int(value) <= most:
            raise RefusedError(f"{name.capitalize()} must be a number from {least} to {most}.")
        found[name] = int(value)
    return found


def _default(option: Option) -> str:
    if option.default is None or option.default == () or isinstance(option.default, bool):
        return ""
    if isinstance(option.default, list | tuple):
        return "\n".join(map(str, option.default))
    return str(option.default)
