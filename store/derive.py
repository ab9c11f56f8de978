"""What stores made of other stores share: attributes taken over, the tokenizer kept, inputs never overwritten."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from typing import Any

from ..errors import StoreError
from .places import AnyPath, copy_files
from .plan import RESERVED
from .reader import Store

TOKENIZER = "tokenizer"
PIECE = 4096


def told_of(store: Store) -> dict[str, Any]:
    """What `store` says of itself beyond its layout: model, dataset, context, ..."""
    return {key: value for key, value in store.attributes.items() if key not in RESERVED}


def origin_of(store: Store) -> dict[str, Any]:
    return {"path": str(store.path.absolute()), "rows": store.rows, "fingerprint": store.fingerprint}


def refuse_overwriting(out: AnyPath, stores: Sequence[Store]) -> None:
    """Raises StoreError when `out` is one of `stores`: with force it would be removed before it is read."""
    for store in stores:
        if out.resolve() == store.path.resolve():
            raise StoreError(f"{out} is itself to be read; give the new store another name.")


def same_tokenizer(stores: Sequence[Store]) -> bool:
    """Whether all stores have a tokenizer of exactly the same files, or none has any."""
    folders = [store.local(TOKENIZER) for store in stores]
    names = [sorted(p.name for p in folder.iterdir()) if folder.is_dir() else None for folder in folders]
    if any(n != names[0] for n in names):
        return False
    return all(not filecmp.cmpfiles(folders[0], folder, names[0] or [], shallow=False)[1] for folder in folders[1:])


def copy_tokenizer(store: Store, out: AnyPath) -> None:
    folder = store.local(TOKENIZER)
    if folder.is_dir():
        copy_files(folder, out / TOKENIZER)


def pieces(store: Store) -> list[tuple[int, int]]:
    """[a, b) spans of at most 4096 rows that cover the store; none crosses a chunk, so each is read without a copy."""
    return [
        (a, min(a + PIECE, end))
        for first in range(0, store.rows, store.chunk_rows)
        for end in (min(first + store.chunk_rows, store.rows),)
        for a in range(first, end, PIECE)
    ]
