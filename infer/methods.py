"""The methods of sparse inference by name, and the one function that calls them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from ..errors import SAEError, SplinterpError
from ..sae import Codes, SparseCodes, rows_of, sparse_if_sparse, to_dense
from . import greedy, ito, lasso, omp
from .correlate import Correlations, OfDictionary
from .problem import Dictionary, Target
from .slabs import by_slabs, rows_between, slabs
from .support import as_sparse, least_squares, widest

Solver = Callable[[Tensor, Dictionary, Target, Codes | None], Codes]  # of rows y = x − b_dec, in sizes u = z·‖W‖


@dataclass(frozen=True)
class Method:
    """A way from rows to codes.

    Attributes:
        told: what it is, for tables and help. solve: of one slab.
        stops: the fields of a Target by which it knows what to look for; at least one must be given.
        takes: the other fields that it takes.
        start: whether it begins from codes.
        steps: iterations at most where the Target has none; 0: it has no such number.
    """

    told: str
    solve: Solver
    stops: tuple[str, ...]
    takes: tuple[str, ...] = ("signed",)
    start: Literal["none", "may", "must"] = "none"
    steps: int = 0


def _greedy(pursue: Callable[[Correlations, int, bool, float], SparseCodes]) -> Solver:
    def solve(y: Tensor, dictionary: Dictionary, target: Target, _: Codes | None) -> Codes:
        return pursue(OfDictionary(y, dictionary), _width(dictionary, target), target.signed, target.residual or 0.0)

    return solve


def _lasso(minimise: Callable[[lasso.Lasso, int, Tensor], Tensor], steps: int) -> Solver:
    def solve(y: Tensor, dictionary: Dictionary, target: Target, start: Codes | None) -> Codes:
        problem = _problem(y, dictionary, target)
        if start is None:
            begin = torch.zeros_like(problem.rows.first)
        else:
            begin = to_dense(start, dictionary.d_sae)
            begin = begin if target.signed else begin.clamp(min=0)
        return sparse_if_sparse(minimise(problem, target.steps or steps, begin))

    return solve


def _problem(y: Tensor, dictionary: Dictionary, target: Target) -> lasso.Lasso:
    assert target.l1 is not None
    return lasso.Lasso(OfDictionary(y, dictionary), dictionary, target.l1, target.signed)


def _lca(y: Tensor, dictionary: Dictionary, target: Target, _: Codes | None) -> Codes:
    return sparse_if_sparse(lasso.lca(_problem(y, dictionary, target), target.steps or LCA_STEPS, target.rate))


def _ito(y: Tensor, dictionary: Dictionary, target: Target, start: Codes | None) -> Codes:
    assert target.l1 is not None
    begin = None if start is None else to_dense(start, dictionary.d_sae)
    return sparse_if_sparse(ito.optimise(y, dictionary, target.l1, target.steps or ITO_STEPS, target.rate or ito.RATE, begin))


def _ls(y: Tensor, dictionary: Dictionary, target: Target, start: Codes | None) -> Codes:
    assert isinstance(start, SparseCodes)
    return least_squares(y, dictionary, start, target.signed)


LASSO_STEPS, COORDINATE_STEPS, LCA_STEPS, ITO_STEPS = 1000, 20_000, 300, 1000
_BY_K = ("k", "residual")
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "ista": Method("ISTA", _lasso(lasso.ista, LASSO_STEPS), ("l1",), ("signed", "steps"), "may", LASSO_STEPS),
        "fista": Method(
            "FISTA with adaptive restart", _lasso(lasso.fista, LASSO_STEPS), ("l1",), ("signed", "steps"), "may", LASSO_STEPS
        ),
        "cd": Method(
            "coordinate descent", _lasso(lasso.coordinate_descent, COORDINATE_STEPS), ("l1",), ("signed", "steps"), "may",
            COORDINATE_STEPS,
        ),
        "lca": Method("locally competitive algorithm", _lca, ("l1",), ("signed", "steps", "rate"), steps=LCA_STEPS),
        "mp": Method("matching pursuit", _greedy(greedy.matching_pursuit), _BY_K),
        "omp": Method("orthogonal matching pursuit", _greedy(omp.pursue), _BY_K),
        "gradient-pursuit": Method("gradient pursuit", _greedy(greedy.gradient_pursuit), _BY_K),
        "ito": Method("inference-time optimisation", _ito, ("l1",), ("steps", "rate"), "may", ITO_STEPS),
        "ls": Method("least squares on the support", _ls, (), ("signed",), "must"),
    }
)  # fmt: skip


@torch.no_grad()
def infer(name: str, x: Tensor, dictionary: Dictionary, target: Target, start: Codes | None = None) -> Codes:
    """Codes z of rows x [N, d_in] in a dictionary, x ≈ z·W_dec + b_dec, by a method of `METHODS`.

    Greedy methods and ls give SparseCodes [N, k] (without k: as wide as there can be atoms; entries not used are zero), the others RaggedCodes where
    few are not zero, else dense codes [N, d_sae]. Rows are worked on by slabs, on a CPU one in every thread, in float64 if they or the
    dictionary are, else in float32; memory beyond rows and codes does not grow with their number.

    Args:
        start: codes that ls fits on the support of, and from which ista, fista, cd and ito may begin.

    Raises:
        SplinterpError: no such method, or a target that it cannot take or that does not tell it enough.
        SAEError: rows or codes that do not go with the dictionary, or are not finite.
    """
    check(name, target, start is not None)
    _check_rows(x, dictionary, target, start)
    dtype = torch.float64 if torch.float64 in (x.dtype, dictionary.W_dec.dtype) else torch.float32
    dictionary = dictionary.to(dtype)
    _ = dictionary.atoms, dictionary.gram, dictionary.norms  # once, before the threads want them
    if name in ("ista", "fista", "lca"):
        _ = dictionary.lipschitz
    method, solve = METHODS[name], METHODS[name].solve
    unit = _unit(x, dictionary.b_dec)
    scaled = target if target.l1 is None else replace(target, l1=target.l1 / unit)
    width = widest(start) if start is not None and method.start == "must" else None

    @torch.no_grad()  # of each thread
    def of_slab(part: slice) -> Codes:
        y = x[part].to(dtype) / unit - dictionary.b_dec / unit
        if not y.isfinite().all():
            raise SAEError(f"There are values that are not finite among rows {part.start:,} to {part.stop - 1:,}.")
        begin = None
        if start is not None:
            begin = rows_between(start, part)
            _check_start(begin, dictionary.d_sae, part)
            begin = begin if width is None else as_sparse(begin, dictionary.d_sae, width)
            begin = _times(dictionary.sizes(_as(begin, dtype)), 1 / unit)
        return dictionary.values(_times(solve(y, dictionary, scaled, begin), unit))

    row_bytes = dtype.itemsize * _row_numbers(dictionary, target, width, method)
    return by_slabs(of_slab, slabs(len(x), row_bytes, x.device), x.device, dictionary.d_sae)


def check(name: str, target: Target, start: bool) -> None:
    """Refuse what a method cannot take, as `infer` does, before there are rows.

    Raises:
        SplinterpError: see `infer`.
    """
    method = METHODS.get(name)
    if method is None:
        raise SplinterpError(f"There is no method '{name}' of sparse inference; there are {', '.join(METHODS)}.")
    given = [f for f in ("k", "l1", "residual", "steps", "rate") if getattr(target, f) is not None] + ["signed"] * target.signed
    if extra := [f for f in given if f not in (*method.stops, *method.takes)]:
        raise SplinterpError(f"{', '.join(extra)} has no effect on {name}; leave it out.")
    if method.stops and not set(given) & set(method.stops):
        raise SplinterpError(f"{name} needs {' or '.join(method.stops)} to know what codes to look for.")
    if start and method.start == "none":
        raise SplinterpError(f"{name} does not begin from codes; leave the start out.")
    if not start and method.start == "must":
        raise SplinterpError(f"{name} needs codes whose support it can fit on, such as the encoder's.")


def _check_rows(x: Tensor, dictionary: Dictionary, target: Target, start: Codes | None) -> None:
    if x.ndim != 2 or x.shape[1] != dictionary.d_in or not x.is_floating_point():
        raise SAEError(f"Rows must be floats [N, {dictionary.d_in}] for this dictionary; got {x.dtype} {tuple(x.shape)}.")
    if x.device != dictionary.W_dec.device:
        raise SAEError(f"Rows are on {x.device}, the dictionary on {dictionary.W_dec.device}; move one of them.")
    if target.k is not None and target.k > dictionary.d_sae:
        raise SAEError(f"k={target.k} is more than the dictionary's {dictionary.d_sae} latents; lower k.")
    if start is not None:
        if rows_of(start) != len(x):
            raise SAEError(f"Codes to begin from are of {rows_of(start)} rows, not of {len(x)}.")
        if isinstance(start, Tensor) and start.shape[1] != dictionary.d_sae:
            raise SAEError(f"Codes to begin from have {start.shape[1]} latents, the dictionary {dictionary.d_sae}.")
        if _values(start).device != x.device:
            raise SAEError(f"Codes to begin from are on {_values(start).device}, the rows on {x.device}; move one of them.")


def _check_start(start: Codes, d_sae: int, part: slice) -> None:
    where = f"among rows {part.start:,} to {part.stop - 1:,}"
    if not _values(start).isfinite().all():
        raise SAEError(f"Codes to begin from have values that are not finite {where}.")
    if not isinstance(start, Tensor) and ((start.indices < 0) | (start.indices >= d_sae)).any():
        raise SAEError(f"Codes to begin from name latents that the dictionary of {d_sae:,} does not have {where}.")


def _unit(x: Tensor, b_dec: Tensor) -> float:
    """A power of two near the largest magnitude; in units of it squares do not overflow, and nothing else changes."""
    largest = max((abs(float(end)) for t in (x, b_dec) if t.numel() for end in t.aminmax()), default=0.0)
    return 2.0 ** max(-100, min(math.frexp(largest)[1], 100)) if math.isfinite(largest) else 1.0


def _values(codes: Codes) -> Tensor:
    return codes if isinstance(codes, Tensor) else codes.values


def _as(codes: Codes, dtype: torch.dtype) -> Codes:
    return codes.to(dtype) if isinstance(codes, Tensor) else codes._replace(values=codes.values.to(dtype))


def _times(codes: Codes, factor: float) -> Codes:
    return codes * factor if isinstance(codes, Tensor) else codes._replace(values=codes.values * factor)


def _width(dictionary: Dictionary, target: Target) -> int:
    return target.k or min(dictionary.d_in, dictionary.d_sae)


def _row_numbers(dictionary: Dictionary, target: Target, width: int | None, method: Method) -> int:
    """How many numbers a solver holds for a row: a few vectors over the latents and the inputs, and matrices over the chosen atoms."""
    k = width or (_width(dictionary, target) if "k" in method.stops else 0)
    return 8 * dictionary.d_sae + 4 * dictionary.d_in + 8 * k * k + (0 if dictionary.gram is not None else k * dictionary.d_in)
