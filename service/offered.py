"""The command line's commands and options as data: for the form, for the API's description, and for parsing with the commands themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
import typer.main

from ..errors import SplinterpError

Shape = Literal["text", "flag", "choice"]  # a choice: yes, no, or left to the command
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]  # typer itself has no name for it
_TOLD_DEFAULT = re.compile(r"\s*\\?\[default: (?P<told>[^\]]*)\]")


class UsageError(SplinterpError):
    """Arguments that the command line would refuse, with its own words."""


@dataclass(frozen=True)
class Option:
    """An option of a command, or (without flags) an argument.

    Attributes:
        name: of the Python parameter. flag: `--out`; None of an argument. off: the flag that says no, where there is one.
        default: None where the command chooses itself; `told` then says how, where the help does.
        is_path: whether the command takes it for a path, whatever it is called.
    """

    name: str
    flag: str | None
    off: str | None
    shape: Shape
    default: Any
    told: str | None
    help: str
    required: bool
    multiple: bool
    is_path: bool

    @property
    def label(self) -> str:
        return (self.flag or self.name).lstrip("-").replace("-", " ")


@dataclass(frozen=True)
class Command:
    """A command of the command line: its options in their order, arguments first."""

    name: str
    help: str
    options: tuple[Option, ...]

    def option(self, name: str) -> Option | None:
        return next((option for option in self.options if option.name == name), None)


@cache
def commands() -> Mapping[str, Command]:
    """Every plain command of the Typer application, by name."""
    from ..cli import app

    callbacks = {
        info.name or info.callback.__name__.replace("_", "-"): info.callback
        for info in app.registered_commands
        if info.callback
    }
    return {
        name: Command(name, inspect.getdoc(callbacks[name]) or "", tuple(_options(command.params, callbacks[name])))
        for name, command in _click_commands().items()
        if name in callbacks
    }


def parse(name: str, arguments: Sequence[str]) -> tuple[dict[str, Any], frozenset[str]]:
    """(parameters by name, the names of those given) of a command line that is parsed by the command itself, and not run.

    Raises:
        UsageError: in the command line's words.
    """
    command = _click_commands()[name]
    try:
        context = command.make_context(name, list(arguments), resilient_parsing=False)
    except _USAGE_ERROR as error:
        raise UsageError(error.format_message()) from None  # pyright: ignore[reportAttributeAccessIssue]
    except (typer.Exit, typer.Abort):
        raise UsageError("Options that only print something are no jobs.") from None
    given = {n for n in context.params if (source := context.get_parameter_source(n)) and source.name == "COMMANDLINE"}
    return dict(context.params), frozenset(given)


@cache
def _click_commands() -> dict[str, Any]:
    from ..cli import app

    found = dict(typer.main.get_command(app).commands)  # pyright: ignore[reportAttributeAccessIssue]
    for command in found.values():
        command.add_help_option = False  # it would print on the service's own terminal
    return found


def _options(parameters: Sequence[Any], callback: Any) -> list[Option]:
    """Of click's parameters, with the types of the function that they belong to."""
    hints = get_type_hints(callback)
    options = []
    for one in parameters:
        types = _plain_types(hints[one.name])
        is_argument = not one.opts[0].startswith("-")
        flag, off = (None, None) if is_argument else (_long(one.opts), _long(one.secondary_opts))
        told = _TOLD_DEFAULT.search(one.help or "")
        shape: Shape = "text"
        if bool in types:
            shape = "choice" if off else "flag"
        options.append(
            Option(
                one.name,
                flag,
                off,
                shape,
                one.default,
                told["told"] if told else None,
                _TOLD_DEFAULT.sub("", one.help or "").strip(),
                one.required,
                one.multiple or one.nargs != 1,
                Path in types,
            )
        )
    return sorted(options, key=lambda option: option.flag is not None)


def _long(names: Sequence[str]) -> str | None:
    return max(names, key=len) if names else None


def _plain_types(hint: Any) -> set[Any]:
    """The types within a hint: {list, int} of `list[int] | None`."""
    if get_origin(hint) in (Union, UnionType):
        return set().union(*(_plain_types(one) for one in get_args(hint) if one is not NoneType))
    if get_origin(hint) is list:
        return {list, *_plain_types(get_args(hint)[0])}
    return {hint}
