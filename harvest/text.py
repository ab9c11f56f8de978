"""Where text comes from: the standard library, files, directories and hub data sets, as documents in a fixed order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import TextError
from ..nearest import did_you_mean_path
from .column import Column, Document
from .formats import file_documents, kind_of
from .hub import hub_commit, hub_sentences
from .stdlib import stdlib_documents, stdlib_files

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.+-]+)?")
_SAMPLE_BYTES = 2**28


@dataclass(frozen=True)
class TextSource:
    """Documents that can be read again and again in the same order.

    `read()` yields (name, document); `fingerprint` changes when the documents do. `datasets`: the parts of a mixture, each
    as it may be opened again. `takes`: which of the options split and text_column have an effect on it.
    """

    name: str
    fingerprint: str
    read: Callable[[], Iterator[tuple[str, Document]]]
    datasets: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset()


def open_text(dataset: str, *, split: str = "train", text_column: str = "text", tokens_column: str | None = None) -> TextSource:
    """Find the text that `dataset` names: "stdlib", an existing file or directory, or else a hub data set.

    tokens_column: of a hub data set, .jsonl or .parquet files, whose lists of token ids are then the documents.

    Raises:
        TextError: there is no such text, or it cannot be read as one.
    """
    column = Column(text_column) if tokens_column is None else Column(tokens_column, tokens=True)
    if dataset == "stdlib":
        if column.tokens:
            raise TextError("The text stdlib is not tokenised; leave --tokens-column out.")
        return TextSource(dataset, fingerprint_files(stdlib_files()), stdlib_documents)
    path = Path(dataset).expanduser()
    if path.exists():
        files = directory_files(path) if path.is_dir() else [(path.name, path)]
        if column.tokens:
            _check_tokenised(files)
        sizes, fingerprint = file_sizes(files), fingerprint_files(files)
        takes = frozenset({"text_column"} if any(kind_of(file) in ("jsonl", "parquet") for _, file in files) else ())
        return TextSource(str(path.resolve()), fingerprint, lambda: file_documents(files, column, sizes), takes=takes)
    if kind_of(path) or not _HUB_NAME.fullmatch(dataset):
        meant = did_you_mean_path(path, lambda other: other.is_dir() or kind_of(other) is not None)
        raise TextError(f"There is no file or directory {dataset}; check the path.{meant}")
    return _hub_source(dataset, split, column)


def directory_files(root: Path) -> list[tuple[str, Path]]:
    """All files of documents below `root` as (name relative to it, path), sorted by name; hidden files and folders are left out.

    Arrays (.npy) count only where there is nothing else: beside texts they may be anything.

    Raises:
        TextError: there are none.
    """
    found: list[tuple[str, Path]] = []
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and kind_of(path) and path.is_file():
            found.append((relative.as_posix(), path))
    if not found:
        raise TextError(f"The directory {root} holds no text files (.txt, .md, .jsonl, .parquet, .py and the like).")
    return sorted([named for named in found if kind_of(named[1]) != "npy"] or found)


def _check_tokenised(files: Iterable[tuple[str, Path]]) -> None:
    for _, path in files:
        if kind_of(path) not in ("jsonl", "parquet", "npy"):
            raise TextError(f"{path} is text and has no column of token ids; leave out that file, or --tokens-column.")


def file_sizes(files: Iterable[tuple[str, Path]]) -> dict[Path, int]:
    """Bytes of each file. Raises TextError where one cannot be seen."""
    try:
        return {path: path.stat().st_size for _, path in files}
    except OSError as error:
        raise TextError(f"{error.filename} cannot be read: {error.strerror}.") from None


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


def _hub_source(dataset: str, split: str, column: Column) -> TextSource:
    """A hub data set, streamed, pinned to the commit that its main branch is at now."""
    commit = hub_commit(dataset.partition(":")[0], "dataset", None, TextError)
    if commit is None:
        raise TextError(
            f"The data set {dataset} is streamed from huggingface.co, which cannot be reached; "
            "connect to the network, or give a text file or directory."
        )

    def read() -> Iterator[tuple[str, Document]]:
        return _hub_documents(dataset, commit, split, column)

    return TextSource(dataset, commit, read, takes=frozenset({"split", "text_column"}))


def _hub_documents(dataset: str, commit: str, split: str, column: Column) -> Iterator[tuple[str, Document]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    repo, _, configuration = dataset.partition(":")
    try:
        with hub_sentences(repo, "dataset", None, TextError):
            rows = load_dataset(repo, configuration or None, split=split, revision=commit, streaming=True)
            for number, row in enumerate(rows):
                yield f"{repo}:{number}", column.of(row, f"the data set {repo}")
    except (DatasetsError, ValueError, RuntimeError, ImportError) as error:
        # An unknown split or configuration, a script, an unknown compression: the library's own first line says which.
        raise TextError(f"The data set {dataset} (split '{split}') cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
