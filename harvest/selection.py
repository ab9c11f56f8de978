"""Which tokens of the text are stored: those at chosen positions of their row, and of these every n-th."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from ..errors import TextError

LAST = "last"
_SPAN = re.compile(r"([0-9]{1,9})|([0-9]{0,9}):([0-9]{0,9})")


class Positions(NamedTuple):
    """Positions in a row of the model's input, 0 being BOS's place.

    spans: half-open [first, end) in order, neither overlapping nor touching; an end of None is none at all.
    last: besides them, the row's last token of the text.
    """

    spans: tuple[tuple[int, int | None], ...]
    last: bool

    def __str__(self) -> str:
        """What `parse_positions` makes these positions of again."""
        spans = [f"{a}" if b == a + 1 else f"{a}:{'' if b is None else b}" for a, b in self.spans]
        return ",".join([*spans, *[LAST] * self.last])

    def mask(self, text: np.ndarray) -> np.ndarray:
        """[..., T] bool: the chosen places of rows whose text is at `text`, [..., T] bool."""
        chosen = np.zeros(text.shape, bool)
        for first, end in self.spans:
            chosen[..., first:end] = True
        if self.last:
            chosen |= text & (np.cumsum(text, axis=-1) == text.sum(axis=-1, keepdims=True))
        return chosen


def parse_positions(spec: str, context: int, bos_kept: bool) -> Positions:
    """Read "last", positions (5) and half-open ranges (a:b, a:, :b), separated by commas.

    Raises:
        TextError: `spec` is something else, or a part of it holds no position of a row of `context` tokens that could be stored.
    """
    spans: list[tuple[int, int | None]] = []
    last = False
    for part in (part.strip() for part in spec.split(",")):
        match = _SPAN.fullmatch(part)
        if part == LAST:
            last = True
            continue
        if match is None or part == ":":
            raise TextError(
                f"'{part}' names no positions; write last, a number, or a range such as 5:10, 5: or :10, with commas between them."
            )
        at, first, end = match.groups()
        span = (int(at), int(at) + 1) if at else (int(first or 0), int(end) if end else None)
        _check(part, span, context, bos_kept)
        spans.append(span)
    return Positions(_joined(spans), last)


def _check(part: str, span: tuple[int, int | None], context: int, bos_kept: bool) -> None:
    first, end = span
    if end is not None and end <= first:
        raise TextError(f"The range {part} holds no position: its end, which does not count, must be above its beginning.")
    if first >= context:
        raise TextError(f"There is no position {first} in a context of {context} tokens; they are 0..{context - 1}.")
    if span == (0, 1) and not bos_kept:
        raise TextError("Position 0 is that of BOS, whose rows are left out; name others, or keep it with --keep-bos.")


def _joined(spans: list[tuple[int, int | None]]) -> tuple[tuple[int, int | None], ...]:
    """The same positions, in order, with spans that overlap or touch made one."""
    joined: list[tuple[int, int | None]] = []
    for first, end in sorted(spans, key=lambda span: span[0]):
        before = joined[-1] if joined else None
        if before is None or (before[1] is not None and first > before[1]):
            joined.append((first, end))
        else:
            joined[-1] = (before[0], None if end is None or before[1] is None else max(end, before[1]))
    return tuple(joined)


def every_nth(keep: np.ndarray, n: int, before: int) -> np.ndarray:
    """Of the tokens kept in `keep`, bool of any shape, the first and every n-th after it, counted through the whole stream.

    Counted in row-major order; `before` tokens were kept earlier in the stream.
    """
    number = before + np.cumsum(keep).reshape(keep.shape) - 1
    return keep & (number % n == 0)
