"""What a sweep trains: the cross product of its axes, each some values of one option of `train`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ..errors import SplinterpError
from ..quantities import parse_quantity
from .config import TrainConfig
from .effects import no_effect, refuse
from .settings import TrainOptions

MOST_MEMBERS = 1000  # of a sweep: all of them are in memory together
Axes = Mapping[str, Sequence[Any]]  # the values of each option that is swept, by its name


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise SplinterpError(f"'{text}' is neither yes nor no.")
    return text == "yes"


def _or_auto(text: str) -> float | None:
    return None if text == "auto" else float(text)


# Every option that neither changes the rows nor where they are trained on: the members of a sweep have these in common.
SWEPT: dict[str, Callable[[str], Any]] = {
    "method": str, "activation": str, "latents": parse_quantity, "expansion": parse_quantity, "k": parse_quantity,
    "k-start": parse_quantity, "k-anneal": float, "l1": float, "l0": float, "bandwidth": float, "revive": str, "lr": _or_auto, "warmup": float, "decay": float,
    "encoder-steps": parse_quantity, "mu-enc": float, "nu-enc": float, "mu-dec": float, "nu-dec": float, "alpha": float, "beta": float,
    "ridge": _or_auto, "decoder-steps": _yes, "pursuit": float, "jitter": _or_auto, "solve-every": parse_quantity, "memory-rows": parse_quantity, "last-solve": _yes, "precision": str,
    "seed": int,
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One SAE of a sweep: `name`, that of its directory too ("k=16,seed=0"), what sets it apart from the others, and its settings."""

    name: str
    values: Mapping[str, str]
    config: TrainConfig


def parse_axes(told: Sequence[str]) -> Axes:
    """["k=16,32", "seed=0,1"] -> {"k": [16, 32], "seed": [0, 1]}.

    Raises:
        SplinterpError: not in this form, an option that cannot be swept, a value that is none of its values, or one given twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in told:
        name, equals, values = text.partition("=")
        if not equals or not values.strip():
            raise SplinterpError(f"--sweep {text} names no values; write for example --sweep k=16,32,64.")
        if name not in SWEPT:
            raise SplinterpError(
                f"--sweep {name}: that is not for sweeps; choose among {', '.join(SWEPT)}. All else the SAEs of a sweep have in common."
            )
        if name in axes:
            raise SplinterpError(f"--sweep {name} is given twice; write all its values behind one, with commas.")
        axes[name] = []
        for value in values.split(","):
            parsed = _parsed(name, value.strip())
            if parsed in axes[name]:
                raise SplinterpError(f"--sweep {name} has the value {shown(parsed)} twice.")
            axes[name].append(parsed)
    return axes


def members(options: TrainOptions, axes: Axes, d_in: int, training_rows: int) -> list[Member]:
    """The SAEs of a sweep over `axes`, otherwise as `options` say; the last axis changes fastest.

    All have the order of the rows in common: that of --order-seed, or else of --seed. An option of which only some SAEs make use is left
    out of the settings of the others.

    Raises:
        SplinterpError: the settings of one cannot be, two have the same, or an option has no effect in any of them.
    """
    order = options.seed if options.order_seed is None else options.order_seed
    count = math.prod(map(len, axes.values()))
    if count > MOST_MEMBERS:
        raise SplinterpError(
            f"The sweep would be of {count:,} SAEs, and one is of {MOST_MEMBERS:,} at most; give fewer values."
        )
    made: list[Member] = []
    idle: list[dict[str, str]] = []  # what has no effect in each
    for values in product(*axes.values()):
        told = {name: shown(value) for name, value in zip(axes, values, strict=True)}
        name = ",".join(f"{axis}={value}" for axis, value in told.items())
        swept = {axis.replace("-", "_"): value for axis, value in zip(axes, values, strict=True)}
        own = replace(options, **swept, order_seed=order)
        idle.append(no_effect(own))
        try:
            config = replace(own, **dict.fromkeys(idle[-1])).config(d_in, training_rows)
        except SplinterpError as error:
            raise SplinterpError(f"The sweep's {name} is refused: {error}") from None
        made.append(Member(name, told, replace(config, memory=options.memory)))  # it is theirs together
    refuse({name: why for name, why in idle[0].items() if all(name in other for other in idle)}, " in this sweep")
    for i, member in enumerate(made):
        same = next((other for other in made[:i] if other.config == member.config), None)
        if same:
            raise SplinterpError(
                f"The sweep's {same.name} and {member.name} are one and the same SAE; leave out what has no effect there."
            )
    return made


def axes_of(saes: Sequence[Member]) -> dict[str, list[str]]:
    """The axes that span a sweep's members, their values as the members' names have them."""
    return {name: list(dict.fromkeys(member.values[name] for member in saes)) for name in saes[0].values}


def shown(value: Any) -> str:
    """A value as a member's name has it, and the same for every way to write it."""
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def _parsed(name: str, text: str) -> Any:
    try:
        return SWEPT[name](text)
    except SplinterpError as error:
        raise SplinterpError(f"--sweep {name}: {error}") from None
    except ValueError:
        raise SplinterpError(f"--sweep {name}: '{text}' is not a number.") from None
