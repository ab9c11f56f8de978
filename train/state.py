"""What an object of a training run must keep to go on bit for bit: named tensors.

Every stateful object has `state()` and `load_state(state)`. Numbers are tensors without dimensions (int64, float64), so that nothing is
rounded. The tensors of `state()` may be the object's own: they are written before the next step, not kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def joined(**parts: State) -> dict[str, Tensor]:
    """States of several objects as one: "weights.W_enc", ..."""
    return {f"{name}.{key}": tensor for name, state in parts.items() for key, tensor in state.items()}


def part(state: State, name: str) -> dict[str, Tensor]:
    """The state of one object out of `joined` ones."""
    return {key.removeprefix(name + "."): tensor for key, tensor in state.items() if key.startswith(name + ".")}


def number(value: float) -> Tensor:
    """A number (int or float) as a tensor that keeps every bit."""
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
