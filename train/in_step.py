"""What the ranks of a run must have in common before its first step: settings, the memory they count on, and the state to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import SplinterpError
from .budget import memory_budget, solves_by_cg
from .checkpoint import Position
from .config import TrainConfig
from .group import Group
from .state import State

_APART = "statistics."  # each rank has its own; those of a checkpoint are the first's


def agree(
    config: TrainConfig, described: Mapping[str, Any], position: Position, device: torch.device, group: Group
) -> tuple[TrainConfig, Position]:
    """The settings and the position to train with: the first rank's position, and the least memory that any rank has.

    Raises:
        SplinterpError: the ranks were started differently, or do not have the memory for a Gram matrix that training needs.
    """
    if not group.several:
        return config, position
    own = {name: described[name] for name in ("settings", "site", "store_fingerprint")}
    told = group.tell({**own, "position": asdict(position)})
    with group.agreed():
        if json.loads(json.dumps(own)) != {name: told[name] for name in own}:
            raise SplinterpError(
                f"Rank {group.rank} was started with other settings or on another store than rank 0; give all ranks the same."
            )
    memory = torch.tensor(config.memory or memory_budget(config, device) // group.sharing)
    group.min_(memory)
    config = replace(config, memory=int(memory))
    with group.agreed():
        if config.method == "pam" and solves_by_cg(config, device):
            raise SplinterpError(
                "Several ranks train with the Gram matrix only, and it does not fit each rank's memory for it; raise --memory, use fewer "
                "--latents, or train in one process."
            )
    return config, Position(**told["position"])


class Stateful(Protocol):
    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: State) -> None: ...


def share_state(of: Stateful, group: Group) -> None:
    """Give every rank the state that the first has, but for the statistics: there the others have those of no rows."""
    if not group.several:
        return
    state = {name: t.detach().contiguous() for name, t in of.state().items() if not name.startswith(_APART)}
    told = group.tell({name: (str(t.dtype), list(t.shape), t.device.type) for name, t in state.items()})
    if not group.first:
        like = lambda kind, shape, device: torch.empty(shape, dtype=getattr(torch, kind.split(".")[1]), device=device)  # noqa: E731
        state = {name: like(*what) for name, what in told.items()}
    for tensor in state.values():
        group.broadcast_(tensor)
    if not group.first:
        of.load_state({**of.state(), **state})
