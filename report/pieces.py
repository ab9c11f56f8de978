"""Token ids as the pieces of text that they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np

from .windows import ABSENT

CUT = "\ufffd"


def pieces(tokenizer: Any, tokens: np.ndarray) -> list[str | None]:
    """The text of each token of a window [t] where it stands, so that together they are the text; None where there is no token.

    A character that is cut between tokens belongs to the last of them, and the others are "\ufffd".

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
    """
    there = [int(token) for token in tokens if token != ABSENT]
    whole = tokenizer.decode_batch([there[: i + 1] for i in range(len(there))], skip_special_tokens=False)
    alone = tokenizer.decode_batch([[token] for token in there], skip_special_tokens=False)
    told: list[str] = []
    before = ""
    for i, (text, own) in enumerate(zip(whole, alone, strict=True)):
        text = text.rstrip(CUT)
        if text.startswith(before):
            new = text[len(before) :]
            told.append((new.lstrip(CUT) if told and told[-1] == CUT else new) or (CUT if CUT in own else ""))
        else:  # a decoder that mends what it has said before
            told.append(own)
        before = whole[i].rstrip(CUT)
    texts = iter(told)
    return [None if token == ABSENT else next(texts) for token in tokens]


def visible(text: str) -> str:
    """Text on one line, control characters made visible."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else "·" for c in shown)
