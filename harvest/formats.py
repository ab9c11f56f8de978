"""Files of documents, read as a stream: text, JSON lines, either compressed; Parquet; arrays of token ids."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ..errors import TextError
from .column import Column, Document
from .parquet import parquet_documents
from .tokenized import npy_documents

_SUFFIXES = (
    ".txt .text .md .rst .tex .html .htm .xml .csv .tsv .json .yaml .yml .toml .ini .cfg "
    ".py .pyi .ipynb .c .h .cc .cpp .hpp .cu .rs .go .java .kt .js .jsx .ts .tsx .css .rb .php .pl .sh .sql .r .jl .lua "
    ".hs .ml .scala .swift .cs .el .lisp .vim .f90"
)
TEXT_SUFFIXES = frozenset(_SUFFIXES.split())
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
LONGEST_DOCUMENT = 2**30
UNPACKED_AT_ONCE = 2**20

Kind = Literal["text", "jsonl", "parquet", "npy"]


def kind_of(path: Path) -> Kind | None:
    """What a file's name says that it holds; None for a name that says nothing. Only .txt and .jsonl may be compressed."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        inner: dict[str, Kind] = {".txt": "text", ".jsonl": "jsonl"}
        return inner.get(path.with_suffix("").suffix.lower())
    if suffix in TEXT_SUFFIXES:
        return "text"
    kinds: dict[str, Kind] = {".jsonl": "jsonl", ".parquet": "parquet", ".npy": "npy"}
    return kinds.get(suffix)


def file_documents(
    files: Iterable[tuple[str, Path]], column: Column, sizes: Mapping[Path, int] | None = None
) -> Iterator[tuple[str, Document]]:
    """A text file is one document; .jsonl has one a line, named `file:line`; .parquet and .npy one a row, `file:row`, from 1.

    A file of no known kind is taken for text. Line ends stay as they are: what is harvested is what stands in the file.

    Args:
        sizes: bytes that the files had when they were found.

    Raises:
        TextError: a file is damaged, not UTF-8, or without a document where one should be; or no longer what was found.
    """
    for name, path in files:
        size = (sizes or {}).get(path)
        if size is not None and _size(path) != size:
            raise _changed(path)
        match kind_of(path):
            case "jsonl":
                yield from _jsonl_documents(name, path, column)
            case "parquet":
                yield from parquet_documents(name, path, column)
            case "npy":
                yield from npy_documents(name, path)
            case _:
                yield name, _whole_text(path)
        # One that grows meanwhile has lost nothing.
        if size is not None and _size(path) < size:
            raise _changed(path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}.") from None


def _changed(path: Path) -> TextError:
    return TextError(
        f"{path} has changed since the harvest began: restore it and go on with --resume, or begin again with --force."
    )


def _whole_text(path: Path) -> str:
    with _opened(path) as file:
        content = file.read(LONGEST_DOCUMENT + 1) if path.suffix.lower() in COMPRESSIONS else file.read()
    if path.suffix.lower() in COMPRESSIONS and len(content) > LONGEST_DOCUMENT:
        raise TextError(f"{path} unpacks to more than {LONGEST_DOCUMENT} bytes, too long for one document; split it.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text (byte {error.start}); convert it or leave it out.") from None


def _jsonl_documents(name: str, path: Path, column: Column) -> Iterator[tuple[str, Document]]:
    with _opened(path) as file:
        number = 0
        while line := file.readline(LONGEST_DOCUMENT + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > LONGEST_DOCUMENT:
                raise TextError(f"{where}, is longer than {LONGEST_DOCUMENT} bytes, too long for one document; split it.")
            if not line.strip():
                continue
            try:
                record: Any = json.loads(line)
            except (ValueError, RecursionError):  # also a UnicodeDecodeError
                raise TextError(f"{where}, is not valid JSON; mend or remove that line.") from None
            if not isinstance(record, dict):
                raise TextError(f'{where}, is not a JSON object; each line must be one, such as {{"text": "..."}}.')
            yield f"{name}:{number}", column.of(record, where)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked piece by piece if its name ends in .gz or .zst; what fails within becomes a sentence."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    try:
        if compression is None:
            with path.open("rb") as file:
                yield file
            return
        if path.stat().st_size == 0:
            raise TextError(f"{path} is an empty file, not a {compression} archive; fetch it again or leave it out.")
        import pyarrow

        # Unlike zstandard's own reader, Arrow's tells an archive that breaks off from one that ends.
        with (
            pyarrow.input_stream(str(path), compression=compression) as stream,
            io.BufferedReader(stream, UNPACKED_AT_ONCE) as file,
        ):
            yield file
    except OSError as error:
        if error.strerror:
            raise TextError(f"{path} cannot be read: {error.strerror}.") from None
        raise TextError(f"{path} is damaged, or no {compression} archive; fetch it again or leave it out.") from error
