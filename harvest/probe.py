"""What a harvest will cost, from a few batches that are forwarded and thrown away."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..devices import suitable_threads
from ..errors import TextError
from .compiled import compile_sentences
from .first import check_first_rows
from .plan import Plan, free_bytes
from .run import load_reader, token_batches
from .tokens import load_tokenizer, skipped_tokens, special_tokens

SECONDS = 5.0
MOST_BATCHES = 64


@dataclass(frozen=True)
class Probe:
    """tokens_per_s: rows a second and process in the forward pass. seconds: of the whole harvest at that rate, over all ranks.

    free: bytes free where the store will lie; None where that cannot be known (a URL).
    """

    tokens_per_s: float
    seconds: float
    free: int | None


def probe(todo: Plan) -> Probe:
    """Load the model and forward batches of the text for some seconds; writes nothing.

    The first batch warms up and is not counted, unless the text has no other.

    Raises:
        ModelError, TextError: as `harvest`.
    """
    tokenizer = load_tokenizer(todo.checkpoint.name, todo.checkpoint.path, **todo.checkpoint.options)
    bos, separator = special_tokens(todo.checkpoint.name, tokenizer, todo.config.separator)
    skip = skipped_tokens(
        todo.checkpoint.name, tokenizer, todo.config.skip_tokens, todo.config.skip_special, todo.facts.vocabulary
    )
    reader = load_reader(todo, tokenizer)
    rates: list[tuple[int, float]] = []
    with suitable_threads(4 * todo.facts.d_model**2, todo.device), compile_sentences(todo.checkpoint.name):
        for batch in token_batches(todo, tokenizer, bos, separator, skip):
            begun = time.perf_counter()
            # To the host, because a GPU only takes orders until then.
            rows = {site: x.cpu() for site, x in reader.read(batch.ids, batch.keep).items()}
            rates.append((batch.kept, time.perf_counter() - begun))
            if len(rates) == 1:
                check_first_rows(rows, todo)
            if len(rates) >= MOST_BATCHES or (len(rates) > 1 and sum(seconds for _, seconds in rates[1:]) > SECONDS):
                break
    if not rates:
        raise TextError(
            f"{todo.text.name} holds no text to harvest: all its documents are empty, or none of their tokens is kept."
        )
    counted = rates[1:] or rates
    rate = sum(tokens for tokens, _ in counted) / sum(seconds for _, seconds in counted)
    return Probe(rate, todo.rows / rate / todo.ranks.world, free_bytes(todo.config.out))
