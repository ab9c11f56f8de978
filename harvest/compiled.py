"""The model's blocks through torch.compile."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ModelError


def compile_blocks(bridge: Any) -> None:
    """Have each block of a bridge compiled when it first runs, hooks and all; a batch of another shape may compile once more."""
    # Of no use to who harvests: that a call inside TransformerLens splits a graph in two.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._dynamo")
    for block in bridge.blocks:
        block.compile()


@contextmanager
def compile_sentences(name: str) -> Iterator[None]:
    """Within the block, what the compiler fails at is a ModelError."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        why = str(error).strip().split("\n", 1)[0]
        raise ModelError(f"torch.compile cannot compile {name} here; leave --compile out. It says: {why}") from error
