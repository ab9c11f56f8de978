"""Greedy sparse inference of ours against scikit-learn's orthogonal matching pursuit, on rows that are sparse in a random dictionary.

    splinterp bench infer --latents 1536 --d-in 384 --k 32

Rows are Σ of k atoms with half-normal values plus noise of a tenth of their norm; atoms are random and of unit norm. Contenders run in turn, round
by round in a new order, and a speed's ratio is to scikit-learn's in the same round: of its two ways, by the Gram matrix and without, the
faster there. scikit-learn codes row by row in one process, whose BLAS has one thread here, since its products are too short to share out; ours
takes all threads. So that both can be read, rows a second are given by the clock and by processor time (all threads together), which other
work on the machine changes little. Gram matrices are made beforehand. Memory is what a process of its own takes for
non-negative OMP of so many rows, and of eight times as many, beyond what it had with the rows in place; their codes are part of it.
"""

from __future__ import annotations

import resource
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ..devices import choose_device
from ..errors import SplinterpError
from ..infer import Dictionary, Target, infer
from ..sae import SparseCodes, decode
from .contest import measure, threads_set

# Name, method and sign of ours.
OURS = {
    "omp": ("omp", True),
    "non-negative omp": ("omp", False),
    "gradient pursuit": ("gradient-pursuit", True),
    "non-negative gradient pursuit": ("gradient-pursuit", False),
    "matching pursuit": ("mp", True),
    "non-negative matching pursuit": ("mp", False),
}
BY_GRAM, BY_ROWS = "scikit-learn omp, Gram", "scikit-learn omp, no Gram"
_PIECE = 1024  # rows that are made at a time
_MORE = 8


@dataclass(frozen=True, kw_only=True)
class InferBench:
    """What to measure.

    Raises:
        SplinterpError: a value that cannot be.
    """

    latents: int = 1536
    d_in: int = 384
    k: int = 32
    rows: int = 4096
    """That ours code in a round."""
    sklearn_rows: int = 64
    """That scikit-learn codes in a round: one after the other, so that more would only take longer."""
    rounds: int = 5
    threads: int | None = None
    """None: as many as torch takes."""
    device: str = "auto"
    """Of ours."""

    def __post_init__(self) -> None:
        for what in ("latents", "d_in", "k", "rows", "sklearn_rows", "rounds"):
            if getattr(self, what) < 1:
                raise SplinterpError(f"{what} must be at least 1, not {getattr(self, what)}.")
        if self.k > min(self.latents, self.d_in):
            raise SplinterpError(
                f"k={self.k} is more than rows of {self.d_in} from {self.latents} latents can be told by; lower --k."
            )
        if self.threads is not None and self.threads < 1:
            raise SplinterpError(f"The number of threads must be at least 1, not {self.threads}.")

    @property
    def contenders(self) -> list[str]:
        """Who takes part."""
        return [*OURS, *([BY_GRAM, BY_ROWS] if find_spec("sklearn") else [])]

    @property
    def steps(self) -> int:
        """Contenders' runs in all, and two of memory."""
        return self.rounds * len(self.contenders) + 2


def problem(config: InferBench, rows: int) -> tuple[Tensor, Dictionary]:
    """Rows [rows, d_in], and the dictionary that they are sparse in."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(config.latents, config.d_in, generator=generator), dim=1)
    x = torch.empty(rows, config.d_in)
    for piece in x.split(_PIECE):
        chosen = torch.rand(len(piece), config.latents, generator=generator).topk(config.k, dim=1).indices
        values = torch.randn(len(piece), config.k, generator=generator).abs()
        piece.copy_(decode(SparseCodes(chosen, values), atoms, torch.zeros(config.d_in)))
        noise = torch.randn(piece.shape, generator=generator) / config.d_in**0.5
        piece.addcmul_(noise, piece.norm(dim=1, keepdim=True), value=0.1)
    return x, Dictionary(atoms, torch.zeros(config.d_in))


def run(config: InferBench, progress: Callable[[], None] | None = None) -> dict[str, Any]:
    """What was measured; see `table`. `progress` is called after each contender's run and each process of `steps`."""
    progress = progress or (lambda: None)
    device = choose_device(config.device)
    x, dictionary = problem(config, config.rows)
    ours_x, ours = x.to(device), Dictionary(dictionary.W_dec.to(device), dictionary.b_dec.to(device))
    synchronise: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    codes: dict[str, SparseCodes] = {}
    processor: dict[str, list[float]] = {name: [] for name in config.contenders}

    def contender(name: str) -> Callable[[], None]:
        method, signed = OURS[name]

        def run_once() -> None:
            found = infer(method, ours_x, ours, Target(k=config.k, signed=signed))
            assert isinstance(found, SparseCodes)
            codes[name] = found
            synchronise()

        return run_once

    def clocked(name: str, act: Callable[[], None]) -> Callable[[], None]:
        def run_once() -> None:
            begun = time.process_time()
            act()
            processor[name].append(time.process_time() - begun)

        return run_once

    acts = {name: contender(name) for name in OURS}
    if find_spec("sklearn"):
        acts |= _sklearn(config, x, dictionary)
    with threads_set(config.threads):
        for name in OURS:  # code is tuned, and the Gram matrix made, when the clock starts
            infer(OURS[name][0], ours_x[:2], ours, Target(k=config.k, signed=OURS[name][1]))
        seconds = measure({n: clocked(n, act) for n, act in acts.items()}, config.rounds, lambda _: synchronise(), progress)
        memory = []
        for rows in (config.rows, _MORE * config.rows):
            memory.append({"rows": rows, "mib": _in_a_process(config, rows)})
            progress()
        threads = torch.get_num_threads()
    by_clock, by_processor = (
        {name: [_rows(config, name) / t for t in times[name]] for name in acts} for times in (seconds, processor)
    )
    whole = float(x.double().square().sum())
    return {
        "shape": {"rows": config.rows, "d_in": config.d_in, "latents": config.latents, "k": config.k},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} CPU threads",
        "rounds": config.rounds,
        "rows_per_s": {name: statistics.median(r) for name, r in by_clock.items()},
        "rows_per_processor_s": {name: statistics.median(r) for name, r in by_processor.items()},
        "ratios": _ratios(by_clock),
        "processor_ratios": _ratios(by_processor) if device.type == "cpu" else {},
        "fvu": {name: _squared_error(found, ours_x, ours) / whole for name, found in codes.items()},
        "l0": {name: float((found.values != 0).double().sum(1).mean()) for name, found in codes.items()},
        "memory": memory,
    }


def _sklearn(config: InferBench, x: Tensor, dictionary: Dictionary) -> dict[str, Callable[[], None]]:
    from sklearn.linear_model import orthogonal_mp, orthogonal_mp_gram

    some = x[: config.sklearn_rows]
    gram = (dictionary.W_dec @ dictionary.W_dec.T).numpy()
    atoms, rows = dictionary.W_dec.T.numpy(), some.T.numpy()

    def alone(code: Callable[[], object]) -> Callable[[], None]:
        def run_once() -> None:
            with threadpool_limits(1), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of atoms that depend on each other
                code()

        return run_once

    return {
        BY_GRAM: alone(lambda: orthogonal_mp_gram(gram, atoms.T @ rows, n_nonzero_coefs=config.k)),
        BY_ROWS: alone(lambda: orthogonal_mp(atoms, rows, n_nonzero_coefs=config.k)),
    }


def _rows(config: InferBench, name: str) -> int:
    return config.rows if name in OURS else min(config.sklearn_rows, config.rows)


def _ratios(speeds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of ours to scikit-learn's faster way in the same round: median, smallest and largest."""
    if BY_GRAM not in speeds:
        return {}
    best = [max(pair) for pair in zip(speeds[BY_GRAM], speeds[BY_ROWS], strict=True)]
    shares = {name: [s / b for s, b in zip(speeds[name], best, strict=True)] for name in OURS}
    return {name: {"median": statistics.median(s), "low": min(s), "high": max(s)} for name, s in shares.items()}


def _squared_error(codes: SparseCodes, x: Tensor, dictionary: Dictionary) -> float:
    return float((decode(codes, dictionary.W_dec, dictionary.b_dec) - x).double().square().sum())


def _in_a_process(config: InferBench, rows: int) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_memory, config, rows, torch.get_num_threads()).result()


def _memory(config: InferBench, rows: int, threads: int) -> float:
    """MiB at the peak of coding so many rows, beyond what is there when they have been made."""
    torch.set_num_threads(threads)
    x, dictionary = problem(config, rows)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    infer("omp", x, dictionary, Target(k=config.k))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(0, peak - pages * resource.getpagesize()) / 2**20


def table(result: dict[str, Any]) -> str:
    """Markdown: a line a contender: rows a second by the clock and by processor time, each as a multiple of scikit-learn's, FVU and L0."""
    s = result["shape"]
    lines = [
        f"{s['rows']:,} rows, d_in {s['d_in']:,}, {s['latents']:,} latents, k={s['k']}, {result['device']}, {result['rounds']} rounds.",
        "",
        "| | rows/s | × scikit-learn | rows per processor second | × scikit-learn | FVU | L0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, speed in result["rows_per_s"].items():
        clock, processor = (_spread(result[key].get(name)) for key in ("ratios", "processor_ratios"))
        quality = f"{result['fvu'][name]:.4f} | {result['l0'][name]:.1f}" if name in result["fvu"] else " | "
        lines.append(
            f"| {name} | {speed:,.0f} | {clock} | {result['rows_per_processor_s'][name]:,.0f} | {processor} | {quality} |"
        )
    memory = ", ".join(
        f"{m['rows']:,} rows: {m['mib']:,.0f} MiB, codes {m['rows'] * s['k'] * 12 / 2**20:,.0f} MiB of it"
        for m in result["memory"]
    )
    return "\n".join([*lines, "", f"Memory of non-negative omp on the CPU: {memory}."])


def _spread(share: dict[str, float] | None) -> str:
    return "" if share is None else f"{share['median']:.1f} ({share['low']:.1f}–{share['high']:.1f})"
