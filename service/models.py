"""What the API takes and gives, for its OpenAPI description and for checking requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .commands import LONGEST_ARGUMENT, MOST_ARGUMENTS
from .jobs import State

Argument = Annotated[str, Field(max_length=LONGEST_ARGUMENT)]
LARGEST_ID = 2**63 - 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Submission(_Strict):
    """A job to queue: a command of the command line with its arguments, or with options by their names, or both."""

    command: Annotated[str, Field(max_length=40)]
    arguments: Annotated[list[Argument], Field(max_length=MOST_ARGUMENTS)] = []
    options: Annotated[dict[str, str | int | float | bool | list[str | int | float] | None], Field(max_length=100)] = {}
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    threads: Annotated[int | None, Field(ge=1, le=4096)] = None
    ranks: Annotated[int, Field(ge=1, le=64)] = 1
    label: Annotated[str, Field(max_length=200)] = ""
    request: Annotated[
        str | None,
        Field(
            max_length=100,
            min_length=1,
            description="The same again gives the job that it made before, rather than another one.",
        ),
    ] = None


class Stop(_Strict):
    now: Annotated[bool, Field(description="End it at once (SIGKILL), without a last checkpoint.")] = False


class Change(_Strict):
    priority: Annotated[int, Field(ge=-1000, le=1000)]


class JobProgress(BaseModel):
    done: int | None
    total: int | None
    share: float | None
    rows_per_second: float | None
    seconds_left: float | None
    figures: dict[str, float]


class JobSeen(BaseModel):
    id: int
    command: str
    arguments: list[str]
    command_line: Annotated[str, Field(description="Repeats its present attempt by hand, in the service's root.")]
    out: str | None
    state: State
    message: str
    label: str
    priority: int
    device: str
    slot: str | None
    threads: int
    ranks: int
    attempt: int
    restarts: int
    submitted: float
    begun: float | None
    started: float | None
    ended: float | None
    exit_code: int | None
    result: dict[str, Any] | None
    waits_seconds: float | None
    expected_seconds: float | None
    progress: JobProgress


class JobList(BaseModel):
    total: int
    counts: dict[str, int]
    jobs: list[JobSeen]


class LogPart(BaseModel):
    """`offset`: where the next part begins. `ended`: whether there will be no more of this attempt."""

    text: str
    offset: int
    attempt: int
    ended: bool


class StoreOut(BaseModel):
    name: str
    rows: int
    sites: dict[str, int]
    dtype: str
    model: str | None
    dataset: str | None
    bytes: int
    health: Literal["whole", "being written", "unfinished", "damaged"]
    trouble: str


class RunOut(BaseModel):
    name: str
    kind: Literal["run", "sweep", "sae"]
    state: Literal["finished", "unfinished", "diverged"]
    store: str | None
    site: str | None
    started: str | None
    figures: dict[str, Any]
    settings: dict[str, Any]
    members: list[str]
    changed: float


class MetricsPart(BaseModel):
    """Lines of metrics.jsonl. `offset`: where the next ones begin; smaller than asked for where the run went back to a checkpoint."""

    lines: list[dict[str, Any]]
    offset: int


class OptionOut(BaseModel):
    name: str
    flag: str | None
    shape: Literal["text", "flag", "choice"]
    default: Any
    told: str | None
    help: str
    required: bool
    multiple: bool


class CommandOut(BaseModel):
    name: str
    help: str
    options: list[OptionOut]


class ServiceOut(BaseModel):
    version: str
    root: str
    runner: str
    gpus: list[str]
    threads: int
    counts: dict[str, int]


class Problem(BaseModel):
    detail: str
