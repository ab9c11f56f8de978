"""Documents that come as token ids in a .npy file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import TextError
from ..store.import_arrays import HEADER_DAMAGE
from .column import Document, Ids


def npy_documents(name: str, path: Path) -> Iterator[tuple[str, Document]]:
    """Yield the rows of an integer array [N, T], each a document `name:row` from 1; or an array [N] as one document.

    The file is memory-mapped, so that a header can promise no more than the file has.

    Raises:
        TextError: the file is damaged, empty, or not such an array.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror or error}.") from None
    except HEADER_DAMAGE as error:
        raise TextError(f"{path} is damaged, or no .npy array of integers; write it again with numpy.save.") from error
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise TextError(
            f"{path} is an array {list(array.shape)} of {array.dtype}; token ids are integers, [documents, tokens] or [tokens]."
        )
    if not array.size:
        raise TextError(f"{path} holds no token ids: its array is {list(array.shape)}.")
    if array.ndim == 1:
        yield name, Ids(array, str(path))
        return
    for row, ids in enumerate(array, 1):
        yield f"{name}:{row}", Ids(ids, f"{path}, row {row}")
