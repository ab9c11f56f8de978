"""Which of several processes this is, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import SplinterpError


@dataclass(frozen=True)
class Ranks:
    """Which of `world` processes this is; `local` counts those on this machine, `here` in all, and chooses the GPU."""

    rank: int = 0
    world: int = 1
    local: int = 0
    here: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """What torchrun says (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE); one process where it says nothing.

        Raises:
            SplinterpError: it says something else than numbers that agree.
        """
        named = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        named = {name: environment.get(name, default) for name, default in named.items()}
        named["LOCAL_WORLD_SIZE"] = environment.get("LOCAL_WORLD_SIZE", named["WORLD_SIZE"])
        try:
            rank, world, local, here = map(int, named.values())
        except ValueError:
            rank, world, local, here = -1, 0, 0, 0
        if not 0 <= rank < world or local < 0 or not 1 <= here <= world:
            told = ", ".join(f"{name}={value}" for name, value in named.items())
            raise SplinterpError(f"{told} is not what torchrun sets; unset them for a single process.")
        return cls(rank, world, local, here)

    @property
    def several(self) -> bool:
        return self.world > 1

    def device(self, name: str, gpus: int) -> str:
        """`name`, with "auto" and "cuda" made the GPU of this rank on its machine."""
        return f"cuda:{self.local % gpus}" if self.several and gpus and name in ("auto", "cuda") else name


def speaks_for_all(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process tells what all ranks meet alike: the first one does, and any where torchrun's variables do not agree."""
    try:
        return Ranks.of_environment(environment).rank == 0
    except SplinterpError:
        return True
