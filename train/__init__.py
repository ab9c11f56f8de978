"""Training: PAM-SGD with a decoder in closed form, and the Adam baseline."""

from .auto import auto_batch_size, auto_lr
from .config import TrainConfig
from .decoder import Decoder, Penalties, solve_decoder
from .directory import remove_run
from .gram import Statistics
from .last_solve import LastSolve, last_solve
from .rows import raw_rows
from .run import train
from .stages import TrainResult

__all__ = [
    "Decoder",
    "LastSolve",
    "Penalties",
    "Statistics",
    "TrainConfig",
    "TrainResult",
    "auto_batch_size",
    "auto_lr",
    "last_solve",
    "raw_rows",
    "remove_run",
    "solve_decoder",
    "train",
]
