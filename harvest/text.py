"""Where text comes from: the standard library, files, directories and hub data sets, as documents in a fixed order."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TextError
from .hub import hub_commit, hub_sentences
from .stdlib import stdlib_documents, stdlib_files

_SUFFIXES = (
    ".txt .text .md .rst .tex .html .htm .xml .csv .tsv .json .yaml .yml .toml .ini .cfg "
    ".py .pyi .ipynb .c .h .cc .cpp .hpp .cu .rs .go .java .kt .js .jsx .ts .tsx .css .rb .php .pl .sh .sql .r .jl .lua "
    ".hs .ml .scala .swift .cs .el .lisp .vim .f90"
)
TEXT_SUFFIXES = frozenset(_SUFFIXES.split())
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.+-]+)?")
_SAMPLE_BYTES = 2**28


@dataclass(frozen=True)
class TextSource:
    """Documents that can be read again and again in the same order.

    `read()` yields (name, text); `fingerprint` changes when the documents do.
    """

    name: str
    fingerprint: str
    read: Callable[[], Iterator[tuple[str, str]]]


def open_text(dataset: str, *, split: str = "train", text_column: str = "text") -> TextSource:
    """Find the text that `dataset` names: "stdlib", an existing file or directory, or else a hub data set.

    Raises:
        TextError: there is no such text, or it cannot be read as one.
    """
    if dataset == "stdlib":
        return TextSource(dataset, fingerprint_files(stdlib_files()), stdlib_documents)
    path = Path(dataset).expanduser()
    if path.is_dir():
        files = directory_files(path)
        return TextSource(str(path.resolve()), fingerprint_files(files), lambda: file_documents(files, text_column))
    if path.exists():
        files = [(path.name, path)]
        return TextSource(str(path.resolve()), fingerprint_files(files), lambda: file_documents(files, text_column))
    if path.suffix.lower() in TEXT_SUFFIXES | {".jsonl"} or not _HUB_NAME.fullmatch(dataset):
        raise TextError(f"There is no file or directory {dataset}; check the path.")
    return _hub_source(dataset, split, text_column)


def directory_files(root: Path) -> list[tuple[str, Path]]:
    """All text files below `root` as (name relative to it, path), sorted by name; hidden files and folders are left out.

    Raises:
        TextError: there are none.
    """
    found = []
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and path.suffix.lower() in TEXT_SUFFIXES | {".jsonl"} and path.is_file():
            found.append((relative.as_posix(), path))
    if not found:
        raise TextError(f"The directory {root} holds no text files (.txt, .md, .jsonl, .py and the like).")
    return sorted(found)


def file_documents(files: Iterable[tuple[str, Path]], text_column: str) -> Iterator[tuple[str, str]]:
    """A file is one document; a .jsonl file has one a line, named `file:line`.

    Raises:
        TextError: a file is not UTF-8, or a line of a .jsonl file is not a JSON object with text in `text_column`.
    """
    for name, path in files:
        if path.suffix.lower() == ".jsonl":
            yield from _jsonl_documents(name, path, text_column)
            continue
        try:
            # Line ends stay as they are: what is harvested is what stands in the file.
            with path.open(encoding="utf-8-sig", newline="") as file:
                text = file.read()
        except UnicodeDecodeError as error:
            raise TextError(f"{path} is not UTF-8 text (byte {error.start}); convert it or leave it out.") from None
        except OSError as error:
            raise TextError(f"{path} cannot be read: {error.strerror}.") from None
        yield name, text


def _jsonl_documents(name: str, path: Path, text_column: str) -> Iterator[tuple[str, str]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}.") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record: Any = json.loads(line)
            except ValueError:  # also a UnicodeDecodeError
                raise TextError(f"{path}, line {number}, is not valid JSON; mend or remove that line.") from None
            if not isinstance(record, dict):
                raise TextError(
                    f'{path}, line {number}, is not a JSON object; each line must be one, such as {{"text": "..."}}.'
                )
            yield f"{name}:{number}", _text_of(record, text_column, f"{path}, line {number}")


def _text_of(record: dict[str, Any], text_column: str, where: str) -> str:
    if text_column not in record:
        columns = ", ".join(record) or "none"
        raise TextError(f"There is no column '{text_column}' in {where}, only {columns}: choose with --text-column.")
    text = record[text_column]
    if not isinstance(text, str):
        raise TextError(f"Column '{text_column}' in {where} holds {type(text).__name__}, not text: choose with --text-column.")
    return text


def fingerprint_files(files: Iterable[tuple[str, Path]]) -> str:
    """16 hex digits of the names, sizes and contents of files, in order.

    Of contents the first 256 MiB count, so that a corpus of any size is answered for in a second; a later change that
    keeps every size goes unnoticed.
    """
    digest, left = hashlib.sha256(), _SAMPLE_BYTES
    for name, path in files:
        try:
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            if left:
                with path.open("rb") as file:
                    content = file.read(left)
                digest.update(content)
                left -= len(content)
        except OSError as error:
            raise TextError(f"{path} cannot be read: {error.strerror}.") from None
    return digest.hexdigest()[:16]


def _hub_source(dataset: str, split: str, text_column: str) -> TextSource:
    """A hub data set, streamed, pinned to the commit that its main branch is at now."""
    commit = hub_commit(dataset.partition(":")[0], "dataset", None, TextError)
    if commit is None:
        raise TextError(
            f"The data set {dataset} is streamed from huggingface.co, which cannot be reached; "
            "connect to the network, or give a text file or directory."
        )

    def read() -> Iterator[tuple[str, str]]:
        return _hub_documents(dataset, commit, split, text_column)

    return TextSource(dataset, commit, read)


def _hub_documents(dataset: str, commit: str, split: str, text_column: str) -> Iterator[tuple[str, str]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repo, _, configuration = dataset.partition(":")
    try:
        with hub_sentences(repo, "dataset", None, TextError):
            rows = load_dataset(repo, configuration or None, split=split, revision=commit, streaming=True)
            for number, row in enumerate(rows):
                yield f"{repo}:{number}", _text_of(row, text_column, f"the data set {repo}")
    except (DatasetsError, ValueError, RuntimeError, ImportError) as error:
        # An unknown split or configuration, a script, an unknown compression: the library's own first line says which.
        raise TextError(f"The data set {dataset} (split '{split}') cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
