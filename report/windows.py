"""The tokens around rows of a store, and a latent's codes there. A store is shuffled on disk, so neighbours are looked up by sequence and position.

One look over the columns finds them; memory is that of the windows, and not of the sequences or the store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import StoreError
from ..sae import SAE, to_dense
from ..store import Store
from .statistics import rows_at_once

ABSENT = -1


@dataclass(frozen=True)
class Windows:
    """The rows within `width` positions of some row, in its sequence, in order; that row itself stands at place `width`.

    Attributes:
        rows, tokens: int64 [n, 2·width + 1], row numbers and token ids; -1 where the store has no such row (beyond the sequence's ends, or
            left out of the harvest).
    """

    rows: np.ndarray
    tokens: np.ndarray


def column_at(store: Store, name: str, rows: np.ndarray) -> np.ndarray:
    """A column's values at some rows [n], int64, chunk by chunk."""
    values = np.empty(len(rows), np.int64)
    for a, b, here in _by_chunk(store, rows):
        values[here] = store.column(name, a, b)[rows[here] - a]
    return values


def load_tokenizer(store: Store) -> Any:
    """The tokenizer that was saved with a harvested store (a `tokenizers.Tokenizer`).

    Raises:
        StoreError: the store holds no tokens, or no tokenizer, or a damaged one.
    """
    from tokenizers import Tokenizer

    from ..harvest.tokenizer_file import ids_sound

    file = store.local("tokenizer") / "tokenizer.json"
    if not {"token_id", "position", "sequence"} <= set(store.columns) or not file.is_file():
        raise StoreError(
            f"{store.path} holds no tokens, so that its rows cannot be led back to text; it was imported, not harvested."
        )
    try:
        if not ids_sound(file):
            raise ValueError("a token has an id that cannot be")
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no class of its own
        raise StoreError(f"{file} is damaged ({error}); harvest the store again, or copy the model's own there.") from error


def windows_at(store: Store, rows: np.ndarray, width: int, progress: Callable[[int], None] | None = None) -> Windows:
    """The windows around rows [n] of a store that has the columns token_id, position and sequence."""
    if not len(rows):
        return Windows(*(np.empty((0, 2 * width + 1), np.int64) for _ in range(2)))
    centres = _keys(column_at(store, "sequence", rows), column_at(store, "position", rows))
    wanted = np.unique(centres)
    found = [(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))]
    for a in range(0, store.rows, store.chunk_rows):
        b = min(a + store.chunk_rows, store.rows)
        keys = _keys(store.column("sequence", a, b), store.column("position", a, b))
        near = np.flatnonzero(_near(keys, wanted, width))
        found.append((keys[near], near + a, store.column("token_id", a, b)[near].astype(np.int64)))
        if progress:
            progress(b)
    keys, numbers, tokens = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.argsort(keys, kind="stable")
    keys, numbers, tokens = keys[order], numbers[order], tokens[order]
    position = (centres & np.uint64(0xFFFFFFFF)).astype(np.int64)[:, None] + np.arange(-width, width + 1)
    asked = _keys(np.broadcast_to((centres >> np.uint64(32))[:, None], position.shape), position.clip(0))
    place = np.searchsorted(keys, asked).clip(max=max(0, len(keys) - 1))
    there = (keys[place] == asked) & (position >= 0)
    return Windows(np.where(there, numbers[place], ABSENT), np.where(there, tokens[place], ABSENT))


@torch.inference_mode()
def codes_at(
    sae: SAE,
    store: Store,
    site: str,
    rows: np.ndarray,
    latents: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The codes of latents [n] at rows [n, t], float32 [n, t]; 0 where the row is -1. Each row is encoded once, however often it is named."""
    values = np.zeros(rows.shape, np.float32)
    flat = np.flatnonzero(rows.reshape(-1) != ABSENT)
    flat = flat[np.argsort(rows.reshape(-1)[flat], kind="stable")]
    wanted, place = np.unique(rows.reshape(-1)[flat], return_inverse=True)  # place: ascending, as flat is by row
    latent, step = latents[flat // rows.shape[1]], rows_at_once(sae.config.d_sae)
    for a, b, here in _by_chunk(store, wanted):
        for first in range(0, len(here), step):
            some = here[first : first + step]
            x = store.acts(site, a, b)[torch.from_numpy(wanted[some] - a)].to(sae.W_enc.device, torch.float32)
            codes = to_dense(sae.encode(x), sae.config.d_sae)
            these = slice(*np.searchsorted(place, [some[0], some[-1] + 1]))
            at = (torch.from_numpy(index).to(codes.device) for index in (place[these] - some[0], latent[these]))
            values.reshape(-1)[flat[these]] = codes[tuple(at)].cpu().numpy()
            if progress:
                progress(int(some[-1]) + 1, len(wanted))
    return values


def _by_chunk(store: Store, rows: np.ndarray):
    """(first row, last row + 1, places in `rows`) of every chunk that has some of them; the places ascend."""
    order = np.argsort(rows // store.chunk_rows, kind="stable")
    chunks, starts = np.unique(rows[order] // store.chunk_rows, return_index=True)
    for chunk, places in zip(chunks.tolist(), np.split(order, starts[1:]), strict=True):
        yield chunk * store.chunk_rows, min((chunk + 1) * store.chunk_rows, store.rows), places


def _keys(sequence: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Sequence and position, 32 bits each, in one number, uint64: neighbours differ by one."""
    return (sequence.astype(np.uint64) << np.uint64(32)) | position.astype(np.uint64)


def _near(keys: np.ndarray, wanted: np.ndarray, width: int) -> np.ndarray:
    """Of which keys there is a wanted one (ascending) at most `width` positions away in the same sequence."""
    after = np.searchsorted(wanted, keys)
    near = np.zeros(len(keys), bool)
    for side in (after.clip(max=len(wanted) - 1), (after - 1).clip(0)):
        other = wanted[side]
        apart = np.maximum(keys, other) - np.minimum(keys, other)
        near |= (apart <= np.uint64(width)) & (keys >> np.uint64(32) == other >> np.uint64(32))
    return near
