"""Documents in a Parquet file: one column, a few hundred rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import TextError
from .column import Column, Document, Ids

ROWS_A_BATCH = 256
READ_AHEAD = 2**20


def parquet_documents(name: str, path: Path, column: Column) -> Iterator[tuple[str, Document]]:
    """Yield (`name:row`, document), rows counted from 1. Of the file, only `column` is read, page by page.

    Raises:
        TextError: the file is damaged or without rows, or has no such column, or it holds something else somewhere.
    """
    import pyarrow.parquet as parquet

    with _damage(path):
        file = parquet.ParquetFile(path, buffer_size=READ_AHEAD, page_checksum_verification=True)
    with file:
        column.check_name(file.schema_arrow.names, str(path))
        kind = file.schema_arrow.field(column.name).type
        if not _fits(kind, column):
            column.refuse(str(path), str(kind))
        if file.metadata.num_rows == 0:
            raise TextError(f"{path} holds no rows; fetch it again or leave it out.")
        batches = file.iter_batches(ROWS_A_BATCH, columns=[column.name], use_threads=False)
        row = 0
        while True:
            with _damage(path, row):
                batch = next(batches, None)
            if batch is None:
                return
            for scalar in batch.column(column.name):
                row += 1
                yield f"{name}:{row}", _document(scalar, column, f"{path}, row {row}")


def _fits(kind: Any, column: Column) -> bool:
    """Whether an Arrow type holds what `column` should."""
    from pyarrow import types

    if not column.tokens:
        inner = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner)
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return lists and types.is_integer(kind.value_type)


def _document(scalar: Any, column: Column, where: str) -> Document:
    if not scalar.is_valid:
        column.refuse(where, "null")
    if column.tokens:
        if scalar.values.null_count:
            column.refuse(where, "a null among its ids")
        return Ids(scalar.values.to_numpy(), where)
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        column.refuse(where, "bytes that are not UTF-8")


@contextmanager
def _damage(path: Path, rows: int = 0) -> Iterator[None]:
    """Arrow's exceptions as a sentence; `rows` were read before."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise TextError(f"{path} cannot be read: {error.strerror}.") from None
        where = f" behind row {rows}" if rows else ""
        raise TextError(f"{path} is damaged{where}, or no Parquet file; fetch it again or leave it out.") from error
