"""Training: PAM-SGD with a decoder in closed form, and the Adam baseline. Called, it is `splinterp.api.train`."""

from ..callable_packages import make_callable
from .auto import auto_batch_size, auto_lr
from .axes import Member, members, parse_axes
from .config import TrainConfig
from .decoder import Decoder, Penalties, solve_decoder
from .directory import remove_run
from .gram import Statistics
from .group import ALONE, Group, joined_ranks
from .job import Job, free_run_name, job
from .last_solve import LastSolve, last_solve
from .refit import RefitResult, refit
from .rows import check_width, raw_rows
from .run import train
from .settings import TrainOptions, TrainSettings
from .stages import TrainResult
from .sweep import MemberResult, train_sweep

__all__ = [
    "ALONE",
    "Decoder",
    "Group",
    "Job",
    "LastSolve",
    "Member",
    "MemberResult",
    "Penalties",
    "RefitResult",
    "Statistics",
    "TrainConfig",
    "TrainOptions",
    "TrainResult",
    "TrainSettings",
    "auto_batch_size",
    "auto_lr",
    "check_width",
    "free_run_name",
    "job",
    "joined_ranks",
    "last_solve",
    "members",
    "parse_axes",
    "raw_rows",
    "refit",
    "remove_run",
    "solve_decoder",
    "train",
    "train_sweep",
]

make_callable(__name__)
