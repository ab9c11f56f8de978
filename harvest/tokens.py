"""From documents to token ids: the model's tokenizer, checked, and run over batches of texts."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError, SplinterpError, TextError
from .column import Document, Ids
from .hub import hub_sentences
from .tokenizer_file import ids_sound

DOCUMENTS_A_BATCH = 512
CHARACTERS_A_BATCH = 2**19
LONGEST_PIECE = 2**20

# Tokenizers that have encoded something, by their contents, for good: the library (0.23) never gives back the words that one remembers, some MiB
# a tokenizer and thread, so that a process that harvests again and again would grow with every copy.
_USED: dict[bytes, Any] = {}

Encode = Callable[[list[str]], list[np.ndarray]]


def load_tokenizer(name: str, path: str, **options: Any) -> Any:
    """The tokenizer of a model directory or hub repository.

    Args:
        name: what the user called the model, for sentences.
        path: directory or repository.
        options: revision, local_files_only, trust_remote_code, as transformers takes them.

    Raises:
        ModelError: there is none, or it encodes text to nothing.
    """
    from transformers import AutoTokenizer

    missing = (
        f"The model {name} comes without a usable tokenizer; put its tokenizer.json and tokenizer_config.json into {path}."
    )
    try:
        if (file := Path(path) / "tokenizer.json").is_file() and not ids_sound(file):
            raise ModelError(f"{file} is damaged: a token has an id that cannot be.")
        with hub_sentences(path, "model", options.get("revision"), ModelError):
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except SplinterpError:
        raise
    except Exception as error:  # tokenizers has no class of its own, and transformers takes the files for what they should be
        raise ModelError(missing) from error
    # transformers makes an empty tokenizer of a directory that holds only a config.json, and says nothing.
    try:
        empty = not len(encoder(tokenizer)(["A few words of text."])[0])
    except Exception as error:
        raise ModelError(missing) from error
    if empty:
        raise ModelError(missing)
    return tokenizer


def special_tokens(name: str, tokenizer: Any, separator: str) -> tuple[int, int | None]:
    """(id of BOS, id of the separator or None). A tokenizer without BOS uses EOS in its place, as TransformerLens does.

    Raises:
        ModelError: the tokenizer has no such token.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first = bos if bos is not None else eos
    if first is None:
        raise ModelError(f"The tokenizer of {name} has neither a BOS nor an EOS token, so its rows would have no start.")
    if separator == "eos" and eos is None:
        raise ModelError(f"The tokenizer of {name} has no EOS token; use --separator bos or none.")
    return first, {"bos": first, "eos": eos, "none": None}[separator]


def skipped_tokens(
    name: str, tokenizer: Any, skip_tokens: Sequence[int], skip_special: bool, vocabulary: int
) -> tuple[int, ...]:
    """The ids whose rows are left out of the store, sorted: `skip_tokens`, and the tokenizer's special tokens on request.

    Raises:
        ModelError: an id that the model lacks.
    """
    for token in skip_tokens:
        if not 0 <= token < vocabulary:
            raise ModelError(f"{name} has the tokens 0..{vocabulary - 1}; asked to skip {token}.")
    return tuple(sorted({*skip_tokens, *(tokenizer.all_special_ids if skip_special else ())}))


def encoder(tokenizer: Any) -> Encode:
    """A function from texts to their ids [n] int64 each, without special tokens added, truncation or padding."""
    if not tokenizer.is_fast:
        return lambda texts: [np.array(ids, np.int64) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    # A copy, because a saved tokenizer may say to truncate, and the one that is saved with the store should go on to.
    own = copy.deepcopy(tokenizer.backend_tokenizer)
    own.no_truncation()
    own.no_padding()
    backend = _USED.setdefault(hashlib.sha256(own.to_str().encode()).digest(), own)
    return lambda texts: [np.array(e.ids, np.int64) for e in backend.encode_batch_fast(texts, add_special_tokens=False)]


def encode_documents(
    encode: Encode, documents: Iterable[Document], vocabulary: int, name: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the document, ids [n] int64), some hundred documents at a time; a very long one in several pieces.

    A document that comes as ids is checked and passed on as it is.

    Raises:
        ModelError: the tokenizer gives an id that the model's vocabulary lacks.
        TextError: a document comes with such an id.
    """
    for batch in _batches(documents):
        texts = [piece for _, piece in batch if isinstance(piece, str)]
        encoded = iter(encode(texts) if texts else [])
        for index, piece in batch:
            if isinstance(piece, str):
                ids = next(encoded)
                if len(ids) and int(ids.max()) >= vocabulary:
                    raise ModelError(
                        f"The tokenizer of {name} gives the token {int(ids.max())}, but the model knows only {vocabulary} tokens: "
                        "they do not belong together; put the model's own tokenizer beside it."
                    )
            else:
                ids = _checked(piece, vocabulary, name)
            yield index, ids


def _checked(document: Ids, vocabulary: int, name: str) -> np.ndarray:
    ids = document.ids
    for extreme in (int(ids.min()), int(ids.max())) if len(ids) else ():
        if not 0 <= extreme < vocabulary:
            raise TextError(
                f"There is a token {extreme} in {document.where}, but {name} knows the tokens 0..{vocabulary - 1}: "
                "it was tokenised for another model; give that model or the text itself."
            )
    return ids.astype(np.int64)


def _batches(documents: Iterable[Document]) -> Iterator[list[tuple[int, Document]]]:
    """(document index, piece of it), in batches."""
    batch: list[tuple[int, Document]] = []
    size = 0
    for index, document in enumerate(documents):
        for piece in split_text(document) if isinstance(document, str) else _split_ids(document):
            batch.append((index, piece))
            size += len(piece) if isinstance(piece, str) else len(piece.ids)
            if len(batch) == DOCUMENTS_A_BATCH or size >= CHARACTERS_A_BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _split_ids(document: Ids) -> Iterator[Ids]:
    for start in range(0, max(1, len(document.ids)), LONGEST_PIECE):
        yield Ids(document.ids[start : start + LONGEST_PIECE], document.where)


def split_text(text: str, longest: int = LONGEST_PIECE) -> Iterator[str]:
    """Cut a text that is longer than `longest` characters, so that a huge file needs no huge encoding.

    A cut falls before a line break that follows a letter or digit, where the usual pre-tokenizers part words anyway;
    failing that, at `longest` characters.
    """
    start = 0
    while len(text) - start > longest:
        cut = start + longest
        for at in range(cut, start + longest // 2, -1):
            if text[at] == "\n" and text[at - 1].isalnum():
                cut = at
                break
        yield text[start:cut]
        start = cut
    yield text[start:]
