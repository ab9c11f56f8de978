"""What the ranks of a run must have in common before its first step: settings, the memory they count on, and the state to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from ..errors import SplinterpError
from .adam import AdamBaseline
from .budget import memory_budget
from .checkpoint import Position
from .config import TrainConfig
from .encoder import Weights
from .group import Group
from .pam import PAM
from .state import State

_APART = "statistics."  # each rank has its own


def agree(
    config: TrainConfig, described: Mapping[str, Any], position: Position, device: torch.device, group: Group
) -> tuple[TrainConfig, Position]:
    """The settings and the position to train with: the first rank's position, and the least memory that any rank has.

    Raises:
        SplinterpError: the ranks were started differently.
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
    return replace(config, memory=int(memory)), Position(**told["position"])


def deal(state: State, to: PAM | AdamBaseline | Weights, group: Group) -> State:
    """What every rank is to load of the state in a checkpoint that the first has read (empty if there is none).

    Weights, moments and counters are the same for all; statistics stay with the first, and the rows of a window are dealt out.
    """
    names = group.tell(list(state))
    if not names:
        return {}
    # Where it has statistics of the other kind, none are dealt out, and loading says what is missing.
    fitting = isinstance(to, PAM) and all(name in names for name in to.state() if name.startswith(_APART))
    own = to.dealt(state) if isinstance(to, PAM) and fitting else {}
    shared = {name: t.contiguous() for name, t in state.items() if not name.startswith(_APART)}
    told = group.tell({name: (str(t.dtype), list(t.shape)) for name, t in shared.items()})
    if not group.first:
        shared = {name: torch.empty(shape, dtype=getattr(torch, kind.split(".")[1])) for name, (kind, shape) in told.items()}
    group.broadcast_(*shared.values())
    return {**shared, **own}
