"""The column of a record that holds a document: its text, or its token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ..errors import TextError


class Ids(NamedTuple):
    """A document that comes tokenised.

    ids: [n] of any integer dtype; may be memory-mapped. where: file and row, for sentences.
    """

    ids: np.ndarray
    where: str


Document = str | Ids


@dataclass(frozen=True)
class Column:
    """The column called `name`, of texts, or, with `tokens`, of lists of token ids."""

    name: str
    tokens: bool = False

    def of(self, record: Mapping[str, Any], where: str) -> Document:
        """The document in `record`, which stands at `where`: a str, or a list or array of integers.

        Raises:
            TextError: the record has no such column, or it holds something else.
        """
        self.check_name(record, where)
        value = record[self.name]
        if not self.tokens:
            if not isinstance(value, str):
                self.refuse(where, _kind(value))
            return value
        try:
            ids = np.asarray(value)
        except ValueError:
            self.refuse(where, "a list that is not of integers")
        if isinstance(value, list) and not value:
            ids = ids.astype(np.int64)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            self.refuse(where, "a list that is not of integers" if isinstance(value, list) else _kind(value))
        return Ids(ids, where)

    def check_name(self, names: Mapping[str, Any] | list[str], where: str) -> None:
        """Raises TextError when the column is not among `names`."""
        if self.name not in names:
            columns = ", ".join(names) or "none"
            raise TextError(f"There is no column '{self.name}' in {where}, only {columns}: choose with {self._option}.")

    def refuse(self, where: str, found: str) -> NoReturn:
        """Raises TextError: the column holds `found`."""
        wanted = "a list of token ids" if self.tokens else "text"
        raise TextError(f"Column '{self.name}' in {where} holds {found}, not {wanted}: choose with {self._option}.")

    @property
    def _option(self) -> str:
        return "--tokens-column" if self.tokens else "--text-column"


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
