"""Numbers as people write them: 10k, 1M, 2.5B; and as people read them; and JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeGuard

from .errors import SplinterpError

_LARGEST = 1e300  # whole numbers may be larger than any float
DEEPEST = 100  # nesting of JSON that is read
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_BYTES = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?(?:([kmgt])(i)?)?b?", re.IGNORECASE)
_QUANTITY = re.compile(r"(\d{1,15}|\d{1,3}(?:[_,]\d{3}){1,5})(?:\.(\d{1,12}))?([kmb]?)", re.IGNORECASE)


def parse_quantity(text: str) -> int:
    """'10k' -> 10000, '1M' -> 1000000, '2.5B' -> 2500000000; underscores and commas may group digits.

    Raises:
        SplinterpError: not a positive whole number in this notation.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise SplinterpError(f"'{text}' is not a number; write for example 20000, 10k, 1M or 2.5B.")
    whole, fraction, suffix = match.groups(default="")
    factor = _FACTORS[suffix.lower()]
    value, rest = int(re.sub("[_,]", "", whole)) * factor, int(fraction or 0) * factor
    if rest % 10 ** len(fraction):
        raise SplinterpError(f"'{text}' is not a whole number; write for example 20000, 10k, 1M or 2.5B.")
    value += rest // 10 ** len(fraction)
    if value < 1:
        raise SplinterpError(f"'{text}' must be at least 1.")
    return value


def parse_bytes(text: str) -> int:
    """'1GiB' -> 1073741824, '500 MB' -> 500000000, '20G' -> 20000000000: powers of 1024 with an i, of 1000 without.

    Raises:
        SplinterpError: not a positive size in this notation.
    """
    match = _BYTES.fullmatch(text.strip())
    value = 0
    if match is not None:
        number, letter, binary = match.groups(default="")
        value = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(letter.lower() or " "))
    if value < 1:
        raise SplinterpError(f"'{text}' is not a size in bytes; write for example 500MB, 1GiB or 20G.")
    return value


def format_count(n: float) -> str:
    """1234567 -> '1.23M'."""
    n = min(n, _LARGEST)
    for factor, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= 0.9995 * factor:
            return f"{_three_digits(n / factor)}{suffix}"
    return _three_digits(n)


def format_number(x: float) -> str:
    """1234.56 -> '1,235', 0.00002 -> '0.00002': a whole number, or four significant digits, and never an exponent."""
    if isinstance(x, int):
        return f"{x:,}"
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{Decimal(f'{x:.4g}'):f}"


def counted(n: float, thing: str, shown: Callable[[float], str] = format_number) -> str:
    """(1, 'row') -> '1 row', (2000, 'row') -> '2,000 rows'."""
    told = shown(n)
    return f"{told} {thing}" if told == "1" else f"{told} {thing}s"


def format_bytes(n: float) -> str:
    """1234567 -> '1.18 MiB'."""
    n = min(n, _LARGEST)
    for factor, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(n) >= 0.9995 * factor:
            return f"{_three_digits(n / factor)} {suffix}"
    return f"{n:.0f} B"


def _three_digits(x: float) -> str:
    """1.234 -> '1.23', 1010.4 -> '1010'."""
    return f"{x:.3g}" if abs(x) < 999.5 else f"{x:.0f}"


def format_seconds(s: float) -> str:
    """4000 -> '1 h 07 min'."""
    if s < 90:
        return f"{s:.0f} s" if s >= 10 else f"{s:.2g} s"
    if s < 5400:
        return f"{s / 60:.0f} min"
    return f"{int(s // 3600)} h {int(s % 3600 // 60):02d} min"


def parse_json(text: str | bytes) -> Any:
    """The JSON value of a text.

    Raises:
        ValueError: it is none. Nesting beyond measure is damage like any other: Python's own parser ends in a RecursionError.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    # What is nested a little less would end whatever goes through it in the same error.
    if sum(map(text.count, brackets)) > DEEPEST and _depth(value) > DEEPEST:  # pyright: ignore[reportArgumentType]
        raise ValueError("it is nested too deeply")
    return value


def _depth(value: Any) -> int:
    """How deep lists and dictionaries are nested."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
        depth += 1
    return depth


def is_count(value: object) -> TypeGuard[int]:
    """Whether a JSON value is a whole number of things, of at most 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def is_figure(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a finite number that a float can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def json_safe(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON has not, in dictionaries and lists too."""
    if isinstance(value, dict):
        return {key: json_safe(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
