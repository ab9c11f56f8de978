"""Numbers as people write them: 10k, 1M, 2.5B; and as people read them."""

from __future__ import annotations

import re

from .errors import SplinterpError

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,12})?)([kmb]?)", re.IGNORECASE)


def parse_quantity(text: str) -> int:
    """'10k' -> 10000, '1M' -> 1000000, '2.5B' -> 2500000000; underscores and commas may group digits.

    Raises:
        SplinterpError: not a positive whole number in this notation.
    """
    match = _QUANTITY.fullmatch(text.strip().replace("_", "").replace(",", ""))
    if match is None:
        raise SplinterpError(f"'{text}' is not a number; write for example 20000, 10k, 1M or 2.5B.")
    digits, suffix = match.groups()
    value = round(float(digits) * _FACTORS[suffix.lower()]) if "." in digits else int(digits) * _FACTORS[suffix.lower()]
    if value < 1:
        raise SplinterpError(f"'{text}' must be at least 1.")
    return value


def format_count(n: float) -> str:
    """1234567 -> '1.23M'."""
    for factor, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= factor:
            return f"{n / factor:.3g}{suffix}"
    return f"{n:.3g}"


def format_bytes(n: float) -> str:
    """1234567 -> '1.18 MiB'."""
    for factor, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(n) >= factor:
            return f"{n / factor:.3g} {suffix}"
    return f"{n:.0f} B"


def format_seconds(s: float) -> str:
    """4000 -> '1 h 07 min'."""
    if s < 90:
        return f"{s:.0f} s" if s >= 10 else f"{s:.2g} s"
    if s < 5400:
        return f"{s / 60:.0f} min"
    return f"{int(s // 3600)} h {int(s % 3600 // 60):02d} min"
