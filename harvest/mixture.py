"""Several data sets with weights, interleaved document by document."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from ..errors import TextError
from .column import Document
from .text import TextSource, open_text

T = TypeVar("T")


def open_texts(
    datasets: Sequence[str], *, split: str = "train", text_column: str = "text", tokens_column: str | None = None, seed: int = 0
) -> TextSource:
    """The text of one data set, or of several `NAME::WEIGHT` in proportion to their weights (1 where none is given).

    The documents of a mixture are the same, in the same order, for the same data sets, weights and seed.

    Raises:
        TextError: as `open_text`; a weight is not a positive number; or, on reading, a part of a mixture has no document.
    """
    named = [split_weight(dataset) for dataset in datasets]
    parts = [open_text(name, split=split, text_column=text_column, tokens_column=tokens_column) for name, _ in named]
    if len(parts) == 1:
        return parts[0]
    weights = [weight for _, weight in named]

    def read() -> Iterator[tuple[str, Document]]:
        return interleave([_not_empty(part) for part in parts], weights, seed)

    told = json.dumps([[part.fingerprint, weight] for part, weight in zip(parts, weights, strict=True)])
    return TextSource(
        name=" + ".join(f"{part.name} ({w / sum(weights):.3g})" for part, w in zip(parts, weights, strict=True)),
        fingerprint=hashlib.sha256(told.encode()).hexdigest()[:16],
        read=read,
        datasets=tuple(f"{part.name}::{weight!r}" for part, weight in zip(parts, weights, strict=True)),
        takes=frozenset().union(*(part.takes for part in parts)),
    )


def split_weight(dataset: str) -> tuple[str, float]:
    """`NAME::WEIGHT` -> (NAME, WEIGHT), and any other name -> (name, 1). A name that itself ends so needs a weight of its own.

    Raises:
        TextError: the weight is a number, but not a positive one.
    """
    name, mark, text = dataset.rpartition("::")
    try:
        weight = float(text)
    except ValueError:
        return dataset, 1.0
    if not (mark and name):
        return dataset, 1.0
    if not (weight > 0 and math.isfinite(weight)):
        raise TextError(f"The weight {text} of the data set {name} is not a positive number; write for example {name}::0.3.")
    return name, weight


def interleave(streams: Sequence[Iterable[T]], weights: Sequence[float], seed: int) -> Iterator[T]:
    """Merge streams in proportion to their weights; when one ends, the others go on.

    Item k of stream i is due at (k + u_i) / w_i, with u_i uniform in [0, 1) by `seed`; items come in the order in which they
    are due. So, until a stream ends, n items hold n w_i / Σw of stream i, give or take less than the number of streams.
    """
    generator = random.Random(seed)
    phases = [generator.random() for _ in streams]

    def due(i: int) -> Iterator[tuple[float, int, T]]:
        return (((k + phases[i]) / weights[i], i, item) for k, item in enumerate(streams[i]))

    for _, _, item in heapq.merge(*(due(i) for i in range(len(streams))), key=lambda entry: entry[:2]):
        yield item


def _not_empty(part: TextSource) -> Iterator[tuple[str, Document]]:
    documents = part.read()
    first = next(documents, None)
    if first is None:
        raise TextError(f"The data set {part.name} holds no document; leave it out of the mixture.")
    yield first
    yield from documents
